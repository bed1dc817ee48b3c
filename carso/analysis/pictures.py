"""`python -m carso.analysis.pictures --dataset digits`: attacked images, what CARSO makes of them, and what the classifier says to each."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cli.main import Parser
from bench.errors import BadInput
from bench.files import data_folder, write_bytes
from bench.judging.environment import environment
from bench.judging.execute import make_deterministic, pick_device, preflight
from bench.judging.norms import NORMS
from bench.judging.proposals import AttackFailed, project_candidates, run_attack
from bench.judging.randomness import random_stream
from bench.judging.scoring import choose_strongest, score
from bench.judging.setup import load_cached, make_target, prepare
from bench.judging.target import is_correct
from bench.questions import plan as plans
from bench.questions.discover import discover
from bench.questions.plan import Plan
from bench.questions.request import Request
from bench.questions.spec import Cell
from bench.results import names as labels
from carso.analysis.sheet import MARKS, Tile, png
from carso.model import CARSO

SHOWN = 8  # reconstructions of each image


@dataclass(frozen=True, slots=True)
class Shown:
    """What is drawn. x, x_adv (B,C,H,W); y, found (B,): `found` of all draws that judge x_adv, how many were right."""

    cell: Cell
    ids: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor
    strayed: Tensor
    distance: Tensor
    images: Tensor  # (B,samples,C,H,W)
    logits: Tensor  # (B,samples,K) of them
    answer: Tensor  # (B,K), their aggregation
    clean_answer: Tensor  # (B,K) of one draw on x
    bare: Tensor  # (B,K) of the classifier alone on x
    bare_adv: Tensor  # ... on x_adv
    found: Tensor


def parse(argv: Sequence[str]) -> Namespace:
    p = Parser(prog="python -m carso.analysis.pictures", description=__doc__, allow_abbrev=False)
    p.add_argument("--dataset", default="digits", help="a registered dataset, or folder:PATH")
    p.add_argument(
        "--defence", default="carso", help="carso or vae, with knobs, such as carso[samples=16]"
    )
    p.add_argument(
        "--attack", default="pgd-eot", help="any attack, with knobs, such as pgd-eot[steps=100]"
    )
    p.add_argument("--norm", help="default: the dataset's")
    p.add_argument(
        "--eps", help="a fraction such as 8/255, in pixel units of [0,1]; default: the dataset's"
    )
    p.add_argument(
        "--budget",
        help="quick, standard or full: the knobs that --attack leaves open; default: the dataset's",
    )
    p.add_argument(
        "--n",
        type=int,
        default=6,
        help="images: the first of the fixed class-stratified subset, each of another class",
    )
    p.add_argument("--seed", type=int, default=0, help="of the attack, and of the reconstructions")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument(
        "--data-dir", type=Path, help="where data sets lie; default: BENCH_DATA, or data/"
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("results/reference/figures"),
        help="the folder of the figure",
    )
    return p.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, 1 cannot be written, 2 bad input, 130 interrupted; where it is not 0, nothing is."""
    words = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for path in command(
            parse(words), shlex.join(["python", "-m", "carso.analysis.pictures", *words])
        ):
            print(f"wrote {path}")
        return 0
    except (BadInput, AttackFailed) as error:
        print(f"pictures: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pictures: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pictures: interrupted; nothing is written", file=sys.stderr)
        return 130


def command(args: Namespace, line: str) -> list[Path]:
    """Attack, reconstruct, draw; the figure and its facts are written at the very end."""
    discover()
    cell = cell_of(args)
    device = pick_device(args.device)
    data_dir = data_folder(args.data_dir)
    make_deterministic()
    plans.fetch_missing(Plan("pictures", (cell,)))
    preflight([cell], data_dir)
    shown = show(cell, device, str(data_dir))
    env = environment(cell, device, line, load_cached(cell.dataset, str(data_dir)).digest)
    facts = {
        **asdict(env),
        "versions": dict(env.versions),
        "weights": dict(env.weights),
        **facts_of(shown),
    }
    path = (
        args.out
        / f"{cell.dataset.name}-{cell.threat.norm}-{str(cell.threat.eps).replace('/', '_')}-{cell.defence.name}-{cell.attack.name}.png"
    )
    write_bytes(path, draw(shown))
    write_bytes(
        path.with_suffix(".json"), (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()
    )
    return [path, path.with_suffix(".json")]


def cell_of(args: Namespace) -> Cell:
    """The question that the pictures answer, as a sweep with these flags would ask it."""
    asked = {
        "dataset": args.dataset,
        "norm": args.norm,
        "eps": args.eps,
        "n": args.n,
        "seed": args.seed,
        "budget": args.budget,
    }
    found = plans.plan(
        [Request(**asked, batch=max(args.n, 1), defences=(args.defence,), attacks=(args.attack,))]
    )
    return next((cell for cell in found.cells if cell.attack.name != "none"), found.cells[0])


def show(cell: Cell, device: str, data_dir: str) -> Shown:
    """Attack through the harness, and reconstruct what it let pass with noise that the attack never saw."""
    at = torch.device(device)
    bench = prepare(cell, device, data_dir)
    defence = bench.defence
    if not isinstance(defence, CARSO):
        raise BadInput(f"defence '{cell.defence.name}' makes no reconstructions; take carso or vae")
    x, y = bench.data.x.to(at), bench.data.y.to(at)
    if len(kinds := set(y.tolist())) < len(y):
        raise BadInput(
            f"n {len(y)} is too large: the first {len(y)} images are of {len(kinds)} classes; the most is one image of each class"
        )
    with random_stream(at, cell.key, 0, "attack"):
        proposals = run_attack(cell, make_target(cell, bench), x, y)
        candidates = project_candidates(cell, proposals, x)
    with torch.no_grad():
        x_adv, judged = strongest(cell, defence, candidates.images, y)
        with random_stream(at, cell.key, 0, "pictures"):
            z = torch.randn(len(x), max(defence.samples, 1), defence.latent_dim, device=at) * (
                defence.samples > 0
            )
            c = defence.latent(x_adv)
            images = torch.stack([defence.decode(one, c) for one in z.unbind(1)], 1)
            clean_answer = defence(x)
        logits = defence.classify(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        bare, bare_adv = defence.base(x), defence.base(x_adv)
    distance = NORMS[cell.threat.norm].distance(x_adv - x)
    answer = defence.aggregate(logits)
    return Shown(
        cell,
        bench.data.ids,
        x,
        y,
        x_adv,
        candidates.strayed,
        distance,
        images,
        logits,
        answer,
        clean_answer,
        bare,
        bare_adv,
        judged,
    )


def strongest(cell: Cell, defence: CARSO, candidates: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of the attack's own proposals (m,B,...), less the clean image that comes first, each image's strongest on the selection draws (B,...).

    The harness judges each, and takes fewest right, then the largest margin; with its right answers (B,) among the evaluation draws.
    """
    chosen = choose_strongest(cell, defence, candidates[1:], y, 0)
    return chosen.images, score(cell, defence, chosen.images, y, 0)


def draw(shown: Shown) -> bytes:
    cell = shown.cell
    reach = cell.threat.eps if cell.threat.norm == "linf" else f"{scale(shown):.3g}"
    defence, attack = labels.without_pins(cell.defence), labels.without_pins(cell.attack)
    title = f"{cell.dataset.name}, {cell.threat.norm} eps {cell.threat.eps}: {cell.defence.name} under {cell.attack.name}, seed {cell.seed}"
    size, classes = len(shown.y), shown.answer.shape[1]
    notes = [
        str(defence),
        str(attack),
        f"Images: the first {size} of the fixed stratified subset, of {size} of the {classes} classes; none was picked.",
        f"Under an image: the label that the classifier alone gives it, {MARKS[True]} right, {MARKS[False]} wrong. "
        "Last column: the defence's own answer, from all of its samples.",
    ]
    many = min(shown.images.shape[1], SHOWN)
    of = "" if shown.images.shape[1] == many else f" (of {shown.images.shape[1]})"
    names = ["input", "attacked", f"difference\n\N{PLUS-MINUS SIGN}{reach}"]
    columns = [*names, *(f"reconstruction\n{e + 1}{of}" for e in range(many)), "aggregated"]
    rows = []
    for i, label in enumerate(shown.y.tolist()):
        delta = shown.x_adv[i] - shown.x[i]
        tiles = [
            labelled(shown.x[i], shown.bare[i], label, f"true label {label}"),
            labelled(shown.x_adv[i], shown.bare_adv[i], label),
            Tile(
                image_of(delta / (2 * scale(shown)) + 0.5),
                "",
                None,
                f"{cell.threat.norm} {shown.distance[i]:.3g}",
            ),
        ]
        tiles += [labelled(shown.images[i, e], shown.logits[i, e], label) for e in range(many)]
        verdict = f"{int(shown.found[i])} of {cell.draws}\ndraws right" if cell.draws > 1 else ""
        said = int(shown.answer[i].argmax())
        tiles.append(Tile(None, str(said), bool(is_correct(shown.answer[i], shown.y[i])), verdict))
        rows.append(tiles)
    return png(title, notes, columns, rows)


def labelled(image: Tensor, logits: Tensor, label: int, small: str = "") -> Tile:
    """An image over the label of its logits (K,), right or wrong."""
    return Tile(
        image_of(image),
        str(int(logits.argmax())),
        bool(is_correct(logits, torch.tensor(label, device=logits.device))),
        small,
    )


def image_of(x: Tensor) -> Any:
    return x.detach().float().cpu().numpy()


def scale(shown: Shown) -> float:
    """The change of a pixel that is shown as black or white; none is grey. eps for linf, else the largest of the sheet."""
    if shown.cell.threat.norm == "linf":
        return float(shown.cell.threat.eps)
    return float((shown.x_adv - shown.x).abs().max()) or 1.0


def facts_of(shown: Shown) -> dict[str, Any]:
    """The facts that the figure shows, and the question behind them, as JSON."""
    cell = shown.cell
    names = (
        "reconstructions",
        "aggregated",
        "aggregated_clean",
        "classifier_clean",
        "classifier_attacked",
    )
    given = dict(
        zip(
            names,
            (shown.logits, shown.answer, shown.clean_answer, shown.bare, shown.bare_adv),
            strict=True,
        )
    )
    columns: dict[str, list[Any]] = {
        "id": shown.ids.tolist(),
        "label": shown.y.tolist(),
        "right_draws": shown.found.tolist(),
    }
    columns |= {name: logits.argmax(-1).tolist() for name, logits in given.items()}
    columns |= {
        name: [float(f"{v:.6g}") for v in values.tolist()]
        for name, values in (("distance", shown.distance), ("strayed", shown.strayed))
    }
    return {
        "dataset": str(cell.dataset),
        "defence": str(cell.defence),
        "attack": str(cell.attack),
        "norm": cell.threat.norm,
        "eps": str(cell.threat.eps),
        "seed": cell.seed,
        "n": len(shown.y),
        "draws": cell.draws,
        "difference_scale": float(f"{scale(shown):.6g}"),
        "images": [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
