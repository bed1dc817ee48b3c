"""`python -m carso.analysis.gradients --dataset digits`: do gradients of a defence go astray?

All gradients are of the margin, at the clean images that the classifier gets right. Each column is
a median over images.

- `to the classifier`: the cosine between the defence's mean gradient over `--draws` draws and the
  classifier's own.
- `to itself`: the cosine between two such means of different draws. Noise lets the first cosine,
  squared, be no larger.
- `corrected`: the first over the root of the second, the cosine without the noise.
- `cancelling`, of CARSO alone: an image enters it through several layers. The number is
  1 - |sum| / sum of |.| of the gradients through each layer: 0 where they pull together, 1 where
  they undo each other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cli.main import Parser, run_main
from bench.errors import BadInput
from bench.files import data_folder
from bench.judging.environment import commit
from bench.judging.execute import make_deterministic, pick_device
from bench.judging.preflight import preflight
from bench.judging.randomness import random_stream
from bench.judging.setup import Setup, prepare
from bench.judging.target import is_correct, margin, predict_draws
from bench.questions import plan as plans
from bench.questions.discover import discover
from bench.questions.plan import Plan
from bench.questions.request import Request
from bench.questions.spec import Cell, split_commas
from carso.model import CARSO
from carso.representation import taps

DEFENCES = "at,carso,vae,tta,noise[classifier=@robust]"
COLUMNS = ("to the classifier", "to itself", "corrected", "cancelling")
SAMPLES_AT_ONCE = 1024  # of the draws of images that are held at once


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m carso.analysis.gradients",
        description=(__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", default="digits", help="a registered dataset, or folder:PATH")
    parser.add_argument(
        "--defences",
        default=DEFENCES,
        help="names with knobs; the default is CARSO and controls around the same classifier",
    )
    parser.add_argument(
        "--n", type=int, default=200, help="images of the fixed class-stratified subset"
    )
    parser.add_argument(
        "--draws", type=int, default=32, help="in each mean gradient of a stochastic defence"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--data-dir", type=Path, help="where data sets lie; default: BENCH_DATA, or data/"
    )
    return parser.read(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 printed, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    return run_main(lambda: print(make_table(parse(words))), "gradients")


def make_table(args: argparse.Namespace) -> str:
    """The table, in Markdown, and below it what made it."""
    discover()
    if args.draws < 1:
        raise BadInput(f"--draws {args.draws} is too small; the least is 1")
    names = tuple(split_commas(args.defences))
    cells = plans.plan(
        [Request(dataset=args.dataset, n=args.n, seed=args.seed, defences=names, attacks=("none",))]
    ).cells
    device = pick_device(args.device)
    data_dir = data_folder(args.data_dir)
    make_deterministic()
    plans.fetch_missing(Plan("gradients", cells))
    preflight(cells, data_dir)
    # Nothing here depends on the threat model: of several cells of a defence one is enough.
    cell_of = {cell.defence: cell for cell in cells}
    rows = [("defence", *COLUMNS), ("---",) * (1 + len(COLUMNS))]
    for cell in cell_of.values():
        setup = prepare(cell, device, str(data_dir))
        rows.append((cell.defence.name, *measure_defence(cell, setup, args.draws)))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    facts = (
        f"{args.dataset}, n={args.n}, {args.draws} draws, seed {args.seed}, {device}, "
        f"torch {torch.__version__}, commit {commit()}"
    )
    return "\n".join([*lines, "", facts])


def measure_defence(cell: Cell, setup: Setup, draws: int) -> list[str]:
    """The four figures of one row, as text."""
    defence = setup.defence.defence
    classifier: nn.Module = getattr(defence, "base", defence)
    samples = int(getattr(defence, "samples", 1) or 1)
    batch = max(1, SAMPLES_AT_ONCE // (draws * samples))
    x = setup.data.x.to(setup.device)
    y = setup.data.y.to(setup.device)
    measures: list[list[Tensor]] = []  # per batch, of each figure (B,)
    for index, (x_batch, y_batch) in enumerate(zip(x.split(batch), y.split(batch), strict=True)):
        with torch.no_grad():
            right = is_correct(classifier(x_batch), y_batch)  # (B,)
        if right.any():
            with random_stream(setup.device, cell.key, index, "gradients"):
                count = draws if setup.stochastic else 1
                measures.append(
                    measure_batch(defence, x_batch[right], y_batch[right], count, draws)
                )
    figures = [f"{float(torch.cat(column).median()):.2f}" for column in zip(*measures, strict=True)]
    return figures + [""] * (len(COLUMNS) - len(figures))


def measure_batch(defence: nn.Module, x: Tensor, y: Tensor, count: int, draws: int) -> list[Tensor]:
    """Each figure (B,) at the images (B,C,H,W): three, and of CARSO a fourth."""
    classifier: nn.Module = getattr(defence, "base", defence)
    own = margin_gradient(classifier, x, y, 1)
    first = margin_gradient(defence, x, y, count)
    second = margin_gradient(defence, x, y, count)
    to_classifier = (cosine(first, own) + cosine(second, own)) / 2
    to_itself = cosine(first, second)
    corrected = to_classifier / to_itself.clamp_min(1e-3).sqrt()
    figures = [to_classifier, to_itself, corrected]
    if isinstance(defence, CARSO) and defence.purifier.layers:
        figures.append(cancelling(defence, x, y, draws))
    return figures


def margin_gradient(model: nn.Module, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The gradient (B,C,H,W) of the mean margin over `count` draws at images (B,C,H,W)."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        total = summed_margin(predict_draws(model, x, count), y)
        (gradient,) = torch.autograd.grad(total, x)
    return gradient


def summed_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The mean margin over the draws of logits (B,draws,K), summed over the images."""
    return margin(logits, y[:, None].expand(-1, logits.shape[1])).mean(1).sum()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine (B,) between two gradients (B,C,H,W)."""
    return F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1)


def cancelling(model: CARSO, x: Tensor, y: Tensor, count: int) -> Tensor:
    """By how much (B,) the gradients through single layers undo each other.

    1 - |sum| / sum of |.| over the layers that the purifier reads.
    """
    gradients = torch.stack(gradients_by_layer(model, x, y, count)).flatten(2)  # (L,B,CHW)
    lengths = gradients.norm(dim=2).sum(0).clamp_min(1e-30)
    lost: Tensor = 1 - gradients.sum(0).norm(dim=1) / lengths
    return lost


def gradients_by_layer(model: CARSO, x: Tensor, y: Tensor, count: int) -> list[Tensor]:
    """The gradient (B,C,H,W) of the mean margin through each layer that the purifier reads alone.

    The margin is a mean over `count` draws. The sum of the gradients is the whole gradient.
    """
    x = x.clone().requires_grad_()
    samples = max(model.samples, 1)
    with torch.enable_grad():
        outputs = taps(model.base, x, model.purifier.layers)
        cut = tuple(output.detach().requires_grad_() for output in outputs)
        c = model.purifier.condition(cut)  # (B,C)
        n = len(c) * count * samples
        noise = torch.randn(n, model.latent_dim, device=c.device, dtype=c.dtype)
        z = noise * bool(model.samples)
        x_hat = model.decode(z, c.repeat_interleave(count * samples, 0))
        sample_logits = model.classify(x_hat).unflatten(0, (-1, samples))
        logits = model.aggregate(sample_logits).unflatten(0, (len(x), count))  # (B,count,K)
        pulls = torch.autograd.grad(summed_margin(logits, y), cut)
        return [
            torch.autograd.grad(output, x, pull, retain_graph=True)[0]
            for output, pull in zip(outputs, pulls, strict=True)
        ]


if __name__ == "__main__":
    sys.exit(main())
