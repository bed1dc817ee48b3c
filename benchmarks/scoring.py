"""The adversaries of AutoAttack's rand version on stochastic defences, scored as the library scores them, and by this bench.

    python -m benchmarks.scoring [--defences carso,tta] [--n 200] [--dataset digits] [--norm linf] [--eps 1/5] [--seed 0] [--steps 100] [--eot 20]
                                 [--select 32] [--draws 64] [--repeats 100] [--device auto|cpu|cuda]

The library attacks an example by APGD on two losses for as long as single draws call it right: one on the clean image, and one after each attack.
What it counts, `counted`, is right in one draw of every candidate, so that each candidate is one more chance to be unlucky. What it returns, and
what is then scored `again` on one fresh draw, is the clean image wherever no single draw was wrong, or the first one was. `split` is this bench's
number for the same adversaries, with its 95% interval: chosen on some draws, scored on others. `chosen on` is what the choosing draws themselves
would say. The first two are means over `--repeats` of the library's single draws, with the standard deviation between these; `clean` is the
expected accuracy on clean images. Croce & Hein 2020, arXiv:2003.01690.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.attacks.via_autoattack import NAMES, Seen, seed
from bench.data.sample import folder
from bench.errors import BadInput
from bench.judging.evaluate import batch_count, count_correct, prepare, select_and_judge
from bench.judging.execute import pick_device
from bench.judging.randomness import random_stream
from bench.judging.target import Target, is_correct
from bench.questions import registry
from bench.questions.plan import Request, plan
from bench.questions.spec import Cell, ThreatModel
from bench.results.statistics import Estimate, estimate

LOSSES = ("ce", "dlr")


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one defence: the shares that each repeat of the library's draws gives, and what the bench makes of the same adversaries."""

    clean: Estimate
    counted: tuple[float, ...]
    again: tuple[float, ...]
    split: Estimate
    same: float


def adversaries(
    target: Target, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, eot: int
) -> tuple[Tensor, Tensor]:
    """What the library's two attacks would return for every example (2,B,C,H,W), and all candidates that this bench takes from them (5,B,C,H,W).

    An attack of the library returns its last iterate that a single draw called wrong, and the image itself where there was none. The candidates
    are the image itself, and of each attack the iterate of the highest loss and what it returns.
    """
    from pyautoattack.autopgd_base import APGDAttack

    returned, candidates = [], [x]
    for loss in LOSSES:
        run = APGDAttack(
            Seen(target),
            loss=loss,
            norm=NAMES[threat.norm],
            eps=float(threat.eps),
            n_iter=steps,
            eot_iter=eot,
            seed=seed(),
            device=x.device,
            logger=logging.getLogger("auto-attack"),
        )
        run.init_hyperparam(x)
        highest, held, _, last = run.attack_single_run(x, y)
        returned.append(torch.where(held.view(-1, 1, 1, 1) == 0, last.detach(), x))
        candidates += [highest.detach(), returned[-1]]
    return torch.stack(returned), torch.stack(candidates)


def bookkeeping(model: nn.Module, x: Tensor, y: Tensor, tried: Tensor) -> tuple[Tensor, Tensor]:
    """Which examples the library calls robust (B,), and the images that it returns (B,C,H,W), if its attacks return `tried` (m,B,C,H,W).

    Each decision is one draw: whether an example is attacked at all, whether an attack, which looks once more, begins, and whether it has won.
    """
    stands, kept = is_correct(model(x), y), x
    for images in tried:
        begins = is_correct(model(x), y)
        images = torch.where(begins.view(-1, 1, 1, 1), images, x)
        wins = stands & ~is_correct(model(images), y)
        kept = torch.where(wins.view(-1, 1, 1, 1), images, kept)
        stands = stands & ~wins
    return stands, kept


def score(cell: Cell, steps: int, eot: int, repeats: int, device: str, data_dir: Path) -> Scores:
    """Attack the defence of `cell`, and score the adversaries in all of the ways."""
    at = torch.device(device)
    bench = prepare(
        cell.dataset, cell.defence, float(cell.threat.eps), cell.threat.norm, device, str(data_dir)
    )
    target = Target(
        bench.defence, stochastic=bench.stochastic, classes=bench.data.classes, device=at
    )
    counted, again = (torch.zeros(repeats) for _ in range(2))
    clean: list[int] = []
    correct: list[int] = []
    selected = 0.0
    n = len(bench.data)
    for index in range(batch_count(cell, n)):
        rows = slice(index * cell.batch, (index + 1) * cell.batch)
        x, y = bench.data.x[rows].to(at), bench.data.y[rows].to(at)
        with random_stream(at, cell.key, index, "attack"):
            tried, candidates = adversaries(target, x, y, cell.threat, steps, eot)
        with torch.no_grad():
            found = select_and_judge(cell, bench.defence, candidates, y, index, at)
            with random_stream(at, cell.key, index, "clean"):
                clean += count_correct(bench.defence, x, y, cell.draws)[0].tolist()
            with random_stream(at, cell.key, index, "library"):
                for repeat in range(repeats):
                    stands, kept = bookkeeping(bench.defence, x, y, tried)
                    counted[repeat] += stands.sum().item() / n
                    again[repeat] += is_correct(bench.defence(kept), y).sum().item() / n
        correct += found["correct"].tolist()
        selected += found["selected"].sum().item() / (n * cell.select)
    return Scores(
        estimate(clean, cell.draws),
        tuple(counted.tolist()),
        tuple(again.tolist()),
        estimate(correct, cell.draws),
        selected,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    numbers = (
        ("n", 200),
        ("seed", 0),
        ("steps", 100),
        ("eot", 20),
        ("select", 32),
        ("draws", 64),
        ("repeats", 100),
    )
    for name, default in numbers:
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, text in (
        ("defences", "carso,tta"),
        ("dataset", "digits"),
        ("norm", None),
        ("eps", None),
        ("device", "auto"),
    ):
        parser.add_argument(f"--{name}", default=text)
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args(argv)
    try:
        compare(args)
    except BadInput as error:
        parser.exit(2, f"benchmarks.scoring: {error}\n")


def compare(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    logging.getLogger("auto-attack").addHandler(logging.NullHandler())
    registry.discover()
    names = tuple(args.defences.split(","))
    asked = {
        "dataset": args.dataset,
        "norm": args.norm,
        "eps": args.eps,
        "n": args.n,
        "seed": args.seed,
        "draws": args.draws,
        "select": args.select,
    }
    cells = [
        cell
        for cell in plan([Request(defences=names, attacks=("autoattack",), **asked)]).cells
        if cell.attack.name != "none"
    ]
    for cell in cells:
        if not registry.is_stochastic(cell.defence):
            raise BadInput(
                f"defence '{cell.defence.name}' answers the same at every call: there is nothing to compare"
            )
    least = min(args.steps, args.eot, args.repeats)
    if least < 1:
        raise BadInput(f"steps, eot and repeats must be 1 or more; got {least}")
    threat, device = cells[0].threat, pick_device(args.device)
    print(
        f"{args.dataset} n={args.n}, {threat.norm} {threat.eps}, seed {args.seed}; {args.steps} steps of {args.eot} draws on {'+'.join(LOSSES)};"
    )
    print(
        f"{args.select} selection and {args.draws} evaluation draws, {args.repeats} repeats of single draws; torch {torch.__version__}, {device}"
    )
    print(
        f"{'defence':<24}{'clean':>7}{'counted (sd)':>16}{'again (sd)':>16}{'split [95%]':>24}{'chosen on':>11}"
    )
    for cell in cells:
        got = score(cell, args.steps, args.eot, args.repeats, device, folder(args.data_dir))
        singles = (
            f"{mean:.3f} ({spread:.3f})"
            for mean, spread in map(spread_of, (got.counted, got.again))
        )
        split = f"{got.split.mean:.3f} [{got.split.lo:.3f}, {got.split.hi:.3f}]"
        print(
            f"{cell.defence.name:<24}{got.clean.mean:>7.3f}{next(singles):>16}{next(singles):>16}{split:>24}{got.same:>11.3f}",
            flush=True,
        )


def spread_of(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; 0 for the latter of a single value."""
    held = torch.tensor(values, dtype=torch.float64)
    return float(held.mean()), float(held.std()) if len(held) > 1 else 0.0


if __name__ == "__main__":
    main()
