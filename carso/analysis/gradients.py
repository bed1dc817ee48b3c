"""`python -m carso.analysis.gradients --dataset digits`: does a defence's gradient go where its classifier's goes, and do CARSO's paths cancel?

Of the margin, at the clean images that the classifier gets right. `to the classifier`: the cosine between the defence's mean gradient over `--draws`
draws and the classifier's own. `to itself`: between two such means of different draws, which is the most that noise lets the first one be, squared.
`corrected`: the first over the root of the second, the cosine without the noise. `cancelling`, of CARSO alone: an image enters it through several
layers; 1 - |sum| / sum of |.| of the gradients through each of them: 0 where they pull together, 1 where they undo each other. Medians over images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cli.main import Parser
from bench.errors import BadInput
from bench.files import data_folder
from bench.judging.environment import commit
from bench.judging.execute import make_deterministic, pick_device, preflight
from bench.judging.randomness import random_stream
from bench.judging.setup import prepare
from bench.judging.target import is_correct, margin, predict_draws
from bench.questions import plan as plans
from bench.questions.discover import discover
from bench.questions.plan import Plan
from bench.questions.request import Request
from bench.questions.spec import Cell, split_commas
from carso.model import CARSO
from carso.representation import taps

DEFENCES = "at,carso,vae,tta,noise[classifier=@robust]"
ROWS = 1024  # samples of draws of images that are held at once


def parse(argv: Sequence[str]) -> argparse.Namespace:
    p = Parser(
        prog="python -m carso.analysis.gradients",
        description=(__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
    )
    p.add_argument("--dataset", default="digits", help="a registered dataset, or folder:PATH")
    p.add_argument(
        "--defences",
        default=DEFENCES,
        help="names with knobs; the default is CARSO and controls around the same classifier",
    )
    p.add_argument("--n", type=int, default=200, help="images of the fixed class-stratified subset")
    p.add_argument(
        "--draws", type=int, default=32, help="in each mean gradient of a stochastic defence"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument(
        "--data-dir", type=Path, help="where data sets lie; default: BENCH_DATA, or data/"
    )
    return p.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 printed, 2 bad input, 130 interrupted."""
    try:
        print(command(parse(sys.argv[1:] if argv is None else argv)))
        return 0
    except BadInput as error:
        print(f"gradients: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gradients: interrupted", file=sys.stderr)
        return 130


def command(args: argparse.Namespace) -> str:
    """The table, in Markdown, and below it what made it."""
    discover()
    if args.draws < 1:
        raise BadInput(f"--draws {args.draws} is too small; the least is 1")
    names = tuple(split_commas(args.defences))
    cells = plans.plan(
        [Request(dataset=args.dataset, n=args.n, seed=args.seed, defences=names, attacks=("none",))]
    ).cells
    device, data_dir = (
        pick_device(args.device),
        data_folder(args.data_dir),
    )
    make_deterministic()
    plans.fetch_missing(Plan("gradients", cells))
    preflight(cells, data_dir)
    # Nothing here depends on the threat model: of several cells of a defence one is enough.
    rows = [
        (cell.defence.name, *measured(cell, args.draws, torch.device(device), str(data_dir)))
        for cell in {c.defence: c for c in cells}.values()
    ]
    head = ("defence", "to the classifier", "to itself", "corrected", "cancelling")
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    facts = f"{args.dataset}, n={args.n}, {args.draws} draws, seed {args.seed}, {device}, torch {torch.__version__}, commit {commit()}"
    return "\n".join([*lines, "", facts])


def measured(cell: Cell, count: int, device: torch.device, data_dir: str) -> list[str]:
    """The four figures of one row, as text."""
    bench = prepare(cell, str(device), data_dir)
    x, y = bench.data.x.to(device), bench.data.y.to(device)
    method = bench.defence
    classifier: nn.Module = getattr(method, "base", method)
    parts: list[list[Tensor]] = []
    few = max(1, ROWS // (count * int(getattr(method, "samples", 1) or 1)))
    for index, (some, labels) in enumerate(zip(x.split(few), y.split(few), strict=True)):
        with torch.no_grad():
            held = is_correct(classifier(some), labels)
        some, labels = some[held], labels[held]
        if not len(some):
            continue
        with random_stream(device, cell.key, index, "gradients"):
            own = slope(classifier, some, labels, 1)
            one, other = (
                slope(method, some, labels, count if bench.stochastic else 1) for _ in range(2)
            )
            lost = (
                [cancelling(method, some, labels, count)]
                if isinstance(method, CARSO) and method.purifier.layers
                else []
            )
        to_classifier = (cosine(one, own) + cosine(other, own)) / 2
        to_itself = cosine(one, other)
        parts.append(
            [to_classifier, to_itself, to_classifier / to_itself.clamp_min(1e-3).sqrt(), *lost]
        )
    found = [f"{float(torch.cat(column).median()):.2f}" for column in zip(*parts, strict=True)]
    return found + [""] * (4 - len(found))


def slope(model: nn.Module, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The gradient (B,C,H,W) of the mean margin over `count` draws at images (B,C,H,W)."""
    seen = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = predict_draws(model, seen, count)
        (grad,) = torch.autograd.grad(
            margin(logits, y[:, None].expand(-1, count)).mean(1).sum(), seen
        )
    return grad


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one.flatten(1).double(), other.flatten(1).double(), dim=1)


def cancelling(model: CARSO, x: Tensor, y: Tensor, count: int) -> Tensor:
    """By how much (B,) the gradients through the single layers that the purifier reads undo each other: 1 - |sum| / sum of |.|."""
    ways = torch.stack(by_layer(model, x, y, count)).flatten(2)
    lost: Tensor = 1 - ways.sum(0).norm(dim=1) / ways.norm(dim=2).sum(0).clamp_min(1e-30)
    return lost


def by_layer(model: CARSO, x: Tensor, y: Tensor, count: int) -> list[Tensor]:
    """The gradient (B,C,H,W) of the mean margin over `count` draws through each layer that the purifier reads alone; their sum is the whole."""
    seen = x.clone().requires_grad_()
    with torch.enable_grad():
        read = taps(model.base, seen, model.purifier.layers)
        cut = tuple(one.detach().requires_grad_() for one in read)
        c = model.purifier.condition(cut)
        samples = max(model.samples, 1)
        z = torch.randn(
            len(c) * count * samples, model.latent_dim, device=c.device, dtype=c.dtype
        ) * bool(model.samples)
        several = model.classify(model.decode(z, c.repeat_interleave(count * samples, 0)))
        logits = model.aggregate(several.unflatten(0, (-1, samples))).unflatten(0, (len(x), count))
        pulls = torch.autograd.grad(margin(logits, y[:, None].expand(-1, count)).mean(1).sum(), cut)
        return [
            torch.autograd.grad(one, seen, pull, retain_graph=True)[0]
            for one, pull in zip(read, pulls, strict=True)
        ]


if __name__ == "__main__":
    sys.exit(main())
