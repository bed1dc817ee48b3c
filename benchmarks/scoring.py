"""AutoAttack's rand version on stochastic defences, scored by the library and by this bench.

    python -m benchmarks.scoring [--defences carso,tta] [--n 200] [--dataset digits] [--norm linf]
                                 [--eps 1/5] [--seed 0] [--steps 100] [--eot 20] [--select 32]
                                 [--draws 64] [--repeats 100] [--device auto|cpu|cuda]

The library attacks an example by APGD on two losses for as long as single draws call it right. It
takes one draw on the clean image, and one after each attack. The columns:

- `clean`: the expected accuracy on clean images.
- `counted`: the library's own count. An example counts if one draw of every candidate is right, so
  each candidate is one more chance to be unlucky.
- `again`: one fresh draw of the images that the library returns. Such an image is the clean one
  wherever no single draw was wrong, or the first one was.
- `split`: this bench's number for the same adversaries, with its 95% interval. Some draws choose
  the adversary, other draws score it.
- `chosen on`: what the choosing draws themselves would say.

`counted` and `again` are means over `--repeats` of single draws, with the standard deviation
between the repeats. Croce & Hein 2020, arXiv:2003.01690.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.attacks.via_autoattack import NAMES, LibraryModel, draw_seed
from bench.cli.main import run_main
from bench.errors import BadInput
from bench.files import data_folder
from bench.judging.execute import pick_device
from bench.judging.randomness import random_stream
from bench.judging.scoring import choose_strongest, count_correct, score
from bench.judging.setup import batch_count, prepare
from bench.judging.target import Target, is_correct
from bench.questions import registry
from bench.questions.discover import discover
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Cell, ThreatModel
from bench.results.statistics import Estimate, estimate
from benchmarks.common import flag_parser

LOSSES = ("ce", "dlr")
DEFAULTS: dict[str, str | int] = {
    "n": 200,
    "seed": 0,
    "steps": 100,
    "eot": 20,
    "select": 32,
    "draws": 64,
    "repeats": 100,
    "defences": "carso,tta",
    "dataset": "digits",
    "device": "auto",
}


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one defence: the library's shares, one for each repeat, and the bench's numbers."""

    clean: Estimate
    counted: tuple[float, ...]
    again: tuple[float, ...]
    split: Estimate
    chosen: float


@dataclass(frozen=True, slots=True)
class Strength:
    """Steps and draws of each of the library's attacks."""

    steps: int
    eot: int


def make_adversaries(
    target: Target, x: Tensor, y: Tensor, threat: ThreatModel, strength: Strength
) -> tuple[Tensor, Tensor]:
    """What the library's two attacks return (2,B,C,H,W), and all candidates (5,B,C,H,W).

    An attack of the library returns its last iterate that a single draw called wrong, and the image
    itself where there was none. The candidates are the image itself, and of each attack the iterate
    of the highest loss and what it returns.
    """
    from pyautoattack.autopgd_base import APGDAttack

    returned = []
    candidates = [x]
    for loss in LOSSES:
        attack = APGDAttack(
            LibraryModel(target),
            loss=loss,
            norm=NAMES[threat.norm],
            eps=float(threat.eps),
            n_iter=strength.steps,
            eot_iter=strength.eot,
            seed=draw_seed(),
            device=x.device,
            logger=logging.getLogger("auto-attack"),
        )
        attack.init_hyperparam(x)
        highest, right, _, last = attack.attack_single_run(x, y)
        fooled = right.view(-1, 1, 1, 1) == 0  # (B,1,1,1)
        returned.append(torch.where(fooled, last.detach(), x))
        candidates += [highest.detach(), returned[-1]]
    return torch.stack(returned), torch.stack(candidates)


def count_as_library(
    model: nn.Module, x: Tensor, y: Tensor, returned: Tensor
) -> tuple[Tensor, Tensor]:
    """Which examples the library calls robust (B,), and the images that it returns (B,C,H,W).

    `returned` (M,B,C,H,W) is what its attacks return. Each decision is one draw: whether an example
    is attacked at all, whether an attack, which looks once more, begins, and whether it has won.
    """
    robust = is_correct(model(x), y)
    x_adv = x
    for images in returned:
        begins = is_correct(model(x), y)
        images = torch.where(begins.view(-1, 1, 1, 1), images, x)
        wins = robust & ~is_correct(model(images), y)
        x_adv = torch.where(wins.view(-1, 1, 1, 1), images, x_adv)
        robust = robust & ~wins
    return robust, x_adv


def score_all_ways(
    cell: Cell, strength: Strength, repeats: int, device: str, data_dir: Path
) -> Scores:
    """Attack the defence of `cell`, and score the adversaries in all of the ways."""
    at = torch.device(device)
    setup = prepare(cell, device, str(data_dir))
    defence = setup.defence
    n = len(setup.data)
    target = Target(defence, stochastic=setup.stochastic, classes=setup.data.classes, device=at)
    counted = torch.zeros(repeats)
    again = torch.zeros(repeats)
    clean: list[int] = []
    correct: list[int] = []
    selected = 0.0
    for index in range(batch_count(cell, n)):
        rows = slice(index * cell.batch, (index + 1) * cell.batch)
        x = setup.data.x[rows].to(at)  # (B,C,H,W)
        y = setup.data.y[rows].to(at)
        with random_stream(at, cell.key, index, "attack"):
            returned, candidates = make_adversaries(target, x, y, cell.threat, strength)
        with torch.no_grad():
            chosen = choose_strongest(cell, defence, candidates, y, index)
            correct += score(cell, defence, chosen.images, y, index).tolist()
            with random_stream(at, cell.key, index, "clean"):
                clean += count_correct(defence, x, y, cell.draws)[0].tolist()
            with random_stream(at, cell.key, index, "library"):
                for repeat in range(repeats):
                    robust, x_adv = count_as_library(defence, x, y, returned)
                    counted[repeat] += robust.sum().item() / n
                    again[repeat] += is_correct(defence(x_adv), y).sum().item() / n
        selected += chosen.selected.sum().item() / (n * cell.select)
    return Scores(
        clean=estimate(clean, cell.draws),
        counted=tuple(counted.tolist()),
        again=tuple(again.tolist()),
        split=estimate(correct, cell.draws),
        chosen=selected,
    )


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """A cell for each defence; BadInput for a deterministic one."""
    request = Request(
        defences=tuple(args.defences.split(",")),
        attacks=("autoattack",),
        dataset=args.dataset,
        norm=args.norm,
        eps=args.eps,
        n=args.n,
        seed=args.seed,
        draws=args.draws,
        select=args.select,
    )
    cells = [cell for cell in plan([request]).cells if cell.attack.name != "none"]
    for cell in cells:
        if not registry.is_stochastic(cell.defence):
            raise BadInput(
                f"defence '{cell.defence.name}' answers the same at every call: "
                "there is nothing to compare"
            )
    return cells


def compare(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    logging.getLogger("auto-attack").addHandler(logging.NullHandler())
    discover()
    cells = cells_of(args)
    least = min(args.steps, args.eot, args.repeats)
    if least < 1:
        raise BadInput(f"steps, eot and repeats must be 1 or more; got {least}")
    device = pick_device(args.device)
    print_head(args, cells[0].threat, device)
    for cell in cells:
        strength = Strength(args.steps, args.eot)
        scores = score_all_ways(cell, strength, args.repeats, device, data_folder(args.data_dir))
        print_row(cell.defence.name, scores)


def print_head(args: argparse.Namespace, threat: ThreatModel, device: str) -> None:
    print(
        f"{args.dataset} n={args.n}, {threat.norm} {threat.eps}, seed {args.seed}; "
        f"{args.steps} steps of {args.eot} draws on {'+'.join(LOSSES)};"
    )
    print(
        f"{args.select} selection and {args.draws} evaluation draws, {args.repeats} repeats of "
        f"single draws; torch {torch.__version__}, {device}"
    )
    print(
        f"{'defence':<24}{'clean':>7}{'counted (sd)':>16}{'again (sd)':>16}"
        f"{'split [95%]':>24}{'chosen on':>11}"
    )


def print_row(name: str, scores: Scores) -> None:
    split = f"{scores.split.mean:.3f} [{scores.split.lo:.3f}, {scores.split.hi:.3f}]"
    print(
        f"{name:<24}{scores.clean.mean:>7.3f}{mean_and_spread(scores.counted):>16}"
        f"{mean_and_spread(scores.again):>16}{split:>24}{scores.chosen:>11.3f}",
        flush=True,
    )


def mean_and_spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation; the latter is 0 for a single value."""
    values = torch.tensor(shares, dtype=torch.float64)
    spread = float(values.std()) if len(values) > 1 else 0.0
    return f"{float(values.mean()):.3f} ({spread:.3f})"


def main(words: Sequence[str] | None = None) -> int:
    parser = flag_parser(__doc__, DEFAULTS)
    parser.add_argument("--norm")
    parser.add_argument("--eps")
    parser.add_argument("--data-dir", type=Path)
    return run_main(lambda: compare(parser.read(words)), "benchmarks.scoring")


if __name__ == "__main__":
    sys.exit(main())
