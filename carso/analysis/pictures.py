"""`python -m carso.analysis.pictures --dataset digits`: attacked images and their reconstructions.

The sheet shows what CARSO makes of attacked images, and what the classifier says to each image.
"""

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

from bench.cli.main import Parser, run_main
from bench.errors import BadInput
from bench.files import data_folder, write_bytes, write_text
from bench.judging.environment import environment
from bench.judging.execute import make_deterministic, pick_device
from bench.judging.norms import NORMS
from bench.judging.preflight import preflight
from bench.judging.proposals import AttackFailed, project_candidates, run_attack
from bench.judging.randomness import random_stream
from bench.judging.scoring import choose_strongest, score
from bench.judging.setup import load_cached, make_target, prepare
from bench.judging.target import is_correct
from bench.questions import plan as plans
from bench.questions.discover import discover
from bench.questions.pins import without_pins
from bench.questions.plan import Plan
from bench.questions.request import Request
from bench.questions.spec import Cell
from carso.analysis.sheet import MARKS, Tile, png
from carso.model import CARSO

MOST_SHOWN = 8  # reconstructions of each image


@dataclass(frozen=True, slots=True)
class Shown:
    """What is drawn, of B images."""

    cell: Cell
    ids: Tensor  # (B,)
    x: Tensor  # (B,C,H,W)
    y: Tensor  # (B,)
    x_adv: Tensor  # (B,C,H,W)
    strayed: Tensor  # (B,)
    distance: Tensor  # (B,)
    images: Tensor  # (B,samples,C,H,W), the reconstructions
    logits: Tensor  # (B,samples,K) of the reconstructions
    answer: Tensor  # (B,K), their aggregation
    clean_answer: Tensor  # (B,K) of one draw on x
    classifier_clean: Tensor  # (B,K) of the classifier alone on x
    classifier_attacked: Tensor  # (B,K) of the classifier alone on x_adv
    right_draws: Tensor  # (B,) of the evaluation draws on x_adv


def parse(words: Sequence[str]) -> Namespace:
    parser = Parser(
        prog="python -m carso.analysis.pictures", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--dataset", default="digits", help="a registered dataset, or folder:PATH")
    parser.add_argument(
        "--defence", default="carso", help="carso or vae, with knobs, such as carso[samples=16]"
    )
    parser.add_argument(
        "--attack", default="pgd-eot", help="any attack, with knobs, such as pgd-eot[steps=100]"
    )
    parser.add_argument("--norm", help="default: the dataset's")
    parser.add_argument(
        "--eps", help="a fraction such as 8/255, in pixel units of [0,1]; default: the dataset's"
    )
    parser.add_argument(
        "--budget",
        help="quick, standard or full: the knobs that --attack leaves open; default: the dataset's",
    )
    parser.add_argument(
        "--n",
        type=int,
        default=6,
        help="images: the first of the fixed class-stratified subset, each of another class",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the attack, and of the reconstructions"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--data-dir", type=Path, help="where data sets lie; default: BENCH_DATA, or data/"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/reference/figures"),
        help="the folder of the figure",
    )
    return parser.read(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, 1 cannot be written, 2 bad input, 130 interrupted.

    Where it is not 0, nothing is written.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run_main(
        lambda: write_figure(words), "pictures", interrupted="interrupted; nothing is written"
    )


def write_figure(words: Sequence[str]) -> None:
    """Attack, reconstruct, draw; the figure and its facts are written at the very end."""
    args = parse(words)
    line = shlex.join(["python", "-m", "carso.analysis.pictures", *words])
    discover()
    cell = cell_of(args)
    device = pick_device(args.device)
    data_dir = data_folder(args.data_dir)
    make_deterministic()
    plans.fetch_missing(Plan("pictures", (cell,)))
    preflight([cell], data_dir)
    try:
        shown = show(cell, device, str(data_dir))
    except AttackFailed as error:
        raise BadInput(str(error)) from None
    env = environment(cell, device, line, load_cached(cell.dataset, str(data_dir)).digest)
    facts = {
        **asdict(env),
        "versions": dict(env.versions),
        "weights": dict(env.weights),
        **facts_of(shown),
    }
    eps = str(cell.threat.eps).replace("/", "_")
    stem = f"{cell.dataset.name}-{cell.threat.norm}-{eps}-{cell.defence.name}-{cell.attack.name}"
    figure = args.out / f"{stem}.png"
    card = args.out / f"{stem}.json"
    write_bytes(figure, draw(shown))
    write_text(card, json.dumps(facts, indent=1, sort_keys=True) + "\n")
    print(f"wrote {figure}")
    print(f"wrote {card}")


def cell_of(args: Namespace) -> Cell:
    """The question that the pictures answer, as a sweep with these flags would ask it."""
    request = Request(
        dataset=args.dataset,
        norm=args.norm,
        eps=args.eps,
        n=args.n,
        seed=args.seed,
        budget=args.budget,
        batch=max(args.n, 1),
        defences=(args.defence,),
        attacks=(args.attack,),
    )
    cells = plans.plan([request]).cells
    return next((cell for cell in cells if cell.attack.name != "none"), cells[0])


def show(cell: Cell, device: str, data_dir: str) -> Shown:
    """Attack through the harness, and reconstruct with noise that the attack never saw.

    Of the attack's own proposals, without the clean image that comes first, each image's strongest
    on the selection draws is shown.
    """
    setup = prepare(cell, device, data_dir)
    defence = setup.defence.defence
    if not isinstance(defence, CARSO):
        raise BadInput(f"defence '{cell.defence.name}' makes no reconstructions; take carso or vae")
    x = setup.data.x.to(setup.device)
    y = setup.data.y.to(setup.device)
    check_classes(y)
    with random_stream(setup.device, cell.key, 0, "attack"):
        proposals = run_attack(cell, make_target(cell, setup), x, y)
        candidates = project_candidates(cell, proposals, x)
    with torch.no_grad():
        x_adv = choose_strongest(cell, defence, candidates.images[1:], y, 0).images
        right_draws = score(cell, defence, x_adv, y, 0)
        with random_stream(setup.device, cell.key, 0, "pictures"):
            images = reconstruct(defence, x_adv)
            clean_answer = defence(x)
        logits = defence.classify(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        classifier_clean = defence.base(x)
        classifier_attacked = defence.base(x_adv)
    return Shown(
        cell,
        setup.data.ids,
        x,
        y,
        x_adv,
        candidates.strayed,
        NORMS[cell.threat.norm].distance(x_adv - x),
        images,
        logits,
        answer=defence.aggregate(logits),
        clean_answer=clean_answer,
        classifier_clean=classifier_clean,
        classifier_attacked=classifier_attacked,
        right_draws=right_draws,
    )


def check_classes(y: Tensor) -> None:
    """BadInput unless the labels (B,) are of B classes."""
    classes = len(set(y.tolist()))
    if classes < len(y):
        raise BadInput(
            f"n {len(y)} is too large: the first {len(y)} images are of {classes} classes; "
            "the most is one image of each class"
        )


def reconstruct(defence: CARSO, x: Tensor) -> Tensor:
    """As many reconstructions (B,samples,C,H,W) as a prediction has."""
    samples = max(defence.samples, 1)
    noise = torch.randn(len(x), samples, defence.latent_dim, device=x.device)
    z = noise * (defence.samples > 0)
    c = defence.latent(x)
    return torch.stack([defence.decode(z_sample, c) for z_sample in z.unbind(1)], 1)


def draw(shown: Shown) -> bytes:
    """The sheet, as a PNG."""
    cell = shown.cell
    title = (
        f"{cell.dataset.name}, {cell.threat.norm} eps {cell.threat.eps}: "
        f"{cell.defence.name} under {cell.attack.name}, seed {cell.seed}"
    )
    size = len(shown.y)
    classes = shown.answer.shape[1]
    notes = [
        str(without_pins(cell.defence)),
        str(without_pins(cell.attack)),
        f"Images: the first {size} of the fixed stratified subset, "
        f"of {size} of the {classes} classes; none was picked.",
        "Under an image: the label that the classifier alone gives it, "
        f"{MARKS[True]} right, {MARKS[False]} wrong. "
        "Last column: the defence's own answer, from all of its samples.",
    ]
    rows = [tiles_of(shown, i) for i in range(size)]
    return png(title, notes, headings_of(shown), rows)


def headings_of(shown: Shown) -> list[str]:
    reach = f"{pixel_scale(shown):.3g}"
    if shown.cell.threat.norm == "linf":
        reach = str(shown.cell.threat.eps)
    samples = shown.images.shape[1]
    of = f" (of {samples})" if samples > MOST_SHOWN else ""
    reconstructions = [f"reconstruction\n{e + 1}{of}" for e in range(min(samples, MOST_SHOWN))]
    difference = f"difference\n\N{PLUS-MINUS SIGN}{reach}"
    return ["input", "attacked", difference, *reconstructions, "aggregated"]


def tiles_of(shown: Shown, i: int) -> list[Tile]:
    """The row of an image."""
    cell = shown.cell
    label = int(shown.y[i])
    delta = shown.x_adv[i] - shown.x[i]
    difference = as_array(delta / (2 * pixel_scale(shown)) + 0.5)
    tiles = [
        labelled_tile(shown.x[i], shown.classifier_clean[i], label, f"true label {label}"),
        labelled_tile(shown.x_adv[i], shown.classifier_attacked[i], label),
        Tile(difference, "", None, f"{cell.threat.norm} {shown.distance[i]:.3g}"),
    ]
    tiles.extend(
        labelled_tile(shown.images[i, e], shown.logits[i, e], label)
        for e in range(min(shown.images.shape[1], MOST_SHOWN))
    )
    right_draws = ""
    if cell.draws > 1:
        right_draws = f"{int(shown.right_draws[i])} of {cell.draws}\ndraws right"
    right = bool(is_correct(shown.answer[i], shown.y[i]))
    tiles.append(Tile(None, str(int(shown.answer[i].argmax())), right, right_draws))
    return tiles


def labelled_tile(image: Tensor, logits: Tensor, label: int, small: str = "") -> Tile:
    """An image over the label of its logits (K,), right or wrong."""
    right = bool(is_correct(logits, torch.tensor(label, device=logits.device)))
    return Tile(as_array(image), str(int(logits.argmax())), right, small)


def as_array(x: Tensor) -> Any:
    return x.detach().float().cpu().numpy()


def pixel_scale(shown: Shown) -> float:
    """The change of a pixel that is shown as black or white; no change is grey.

    It is eps for linf, else the largest change of the sheet.
    """
    if shown.cell.threat.norm == "linf":
        return float(shown.cell.threat.eps)
    return float((shown.x_adv - shown.x).abs().max()) or 1.0


def facts_of(shown: Shown) -> dict[str, Any]:
    """The facts that the figure shows, and the question behind them, as JSON."""
    cell = shown.cell
    columns: dict[str, list[Any]] = {
        "id": shown.ids.tolist(),
        "label": shown.y.tolist(),
        "right_draws": shown.right_draws.tolist(),
        "reconstructions": shown.logits.argmax(-1).tolist(),
        "aggregated": shown.answer.argmax(-1).tolist(),
        "aggregated_clean": shown.clean_answer.argmax(-1).tolist(),
        "classifier_clean": shown.classifier_clean.argmax(-1).tolist(),
        "classifier_attacked": shown.classifier_attacked.argmax(-1).tolist(),
        "distance": [round_digits(value) for value in shown.distance.tolist()],
        "strayed": [round_digits(value) for value in shown.strayed.tolist()],
    }
    rows = zip(*columns.values(), strict=True)
    return {
        "dataset": str(cell.dataset),
        "defence": str(cell.defence),
        "attack": str(cell.attack),
        "norm": cell.threat.norm,
        "eps": str(cell.threat.eps),
        "seed": cell.seed,
        "n": len(shown.y),
        "draws": cell.draws,
        "difference_scale": round_digits(pixel_scale(shown)),
        "images": [dict(zip(columns, values, strict=True)) for values in rows],
    }


def round_digits(value: float) -> float:
    """The value to six significant digits."""
    return float(f"{value:.6g}")


if __name__ == "__main__":
    sys.exit(main())
