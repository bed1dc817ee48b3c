"""Our APGD against pyautoattack: two losses of its standard version, and the whole version.

    python -m benchmarks.apgd [--n 200] [--dataset digits] [--norm linf] [--eps 1/510]
                              [--roles robust,own:digits-standard] [--steps 100] [--targets 9]
                              [--queries 5000] [--device auto|cpu|cuda] [--processes 1]

`--roles` are classifiers by role or by name. Each row: robust accuracy after projection to the
ball; on how many examples the verdict differs from ours; forward passes per example (a backward
counts as two); seconds; and the last two as multiples of ours. The seconds are those of the CPU on
one thread. On a GPU they are those of the clock.

The whole version has 100 steps and 9 targets; in l1 it has five targets and five restarts. Its
Square has `--queries`; 0 leaves the whole version out. Each of the `--processes` has one CPU thread
and four parts of the examples; a row is the sum of the parts.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.cli.main import run_main
from bench.data.sample import Dataset, load
from bench.errors import BadInput
from bench.judging.execute import pick_device
from bench.judging.target import Target, is_correct
from bench.questions import registry
from bench.questions.discover import discover
from bench.questions.eps import parse_eps
from bench.questions.spec import Spec, ThreatModel
from benchmarks.common import NORM_NAMES, flag_parser, is_robust, run_autoattack

DEFAULTS: dict[str, str | int] = {
    "n": 200,
    "steps": 100,
    "targets": 9,
    "queries": 5000,
    "processes": 1,
    "dataset": "digits",
    "norm": "",
    "eps": "",
    "roles": "robust,standard",
    "device": "auto",
}
COLUMNS = ("robust", "differ", "calls", "seconds", "calls x", "seconds x")
Run = Callable[[argparse.Namespace, Target, Dataset, ThreatModel], Tensor]


def run_ours(
    args: argparse.Namespace, target: Target, data: Dataset, threat: ThreatModel
) -> Tensor:
    proposals: Tensor = registry.attacks.get("apgd").make(
        target,
        data.x.clone(),
        data.y.clone(),
        threat,
        loss="ce+targeted",
        steps=args.steps,
        targets=min(args.targets, data.classes - 1),
    )
    return proposals


def run_pair(
    args: argparse.Namespace, target: Target, data: Dataset, threat: ThreatModel
) -> Tensor:
    """APGD on the cross-entropy, then targeted APGD on what is still right."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    options: dict[str, Any] = {
        "norm": NORM_NAMES[threat.norm],
        "eps": float(threat.eps),
        "n_iter": args.steps,
        "seed": 0,
        "device": target.device,
        "use_largereps": threat.norm == "l1",
        "logger": logging.getLogger("auto-attack"),
    }
    targets = min(args.targets, data.classes - 1)
    untargeted = APGDAttack(target, loss="ce", **options)
    targeted = APGDAttack_targeted(target, n_target_classes=targets, **options)
    x_adv = data.x.clone()
    for attack in (untargeted, targeted):
        rows = is_correct(target(x_adv), data.y).nonzero().squeeze(1)
        if len(rows):
            x_adv[rows] = attack.perturb(data.x[rows], data.y[rows]).detach()
    return x_adv


def run_standard(
    args: argparse.Namespace, target: Target, data: Dataset, threat: ThreatModel
) -> Tensor:
    return run_autoattack(target, data, threat, args.queries)


ATTACKS: dict[str, Run] = {
    "apgd[loss=ce+targeted]": run_ours,
    "pyautoattack APGD-CE + APGD-T": run_pair,
    "pyautoattack standard": run_standard,
}


@dataclass(frozen=True, slots=True)
class Job:
    """One attack on one classifier and on some of the examples."""

    args: argparse.Namespace
    threat: ThreatModel
    device: str
    classifier: str
    attack: str
    rows: slice


@dataclass(frozen=True, slots=True)
class Outcome:
    """Which of the examples are robust (n,), the calls on all of them, and the seconds."""

    robust: Tensor
    calls: int
    seconds: float


def read_clock(device: torch.device) -> float:
    """Seconds of CPU time, which other programs do not change; on a GPU, of the clock."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def warm_up(model: nn.Module, x: Tensor) -> None:
    """One gradient: whoever comes first would pay for the loading of the GPU's libraries."""
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(model(leaf).sum(), leaf)


def measure(job: Job) -> Outcome:
    torch.set_num_threads(1)
    logging.getLogger("auto-attack").addHandler(logging.NullHandler())
    discover()
    device = torch.device(job.device)
    data = load(Spec.of(job.args.dataset, {"n": job.args.n}), data_dir=job.args.data_dir)
    data = data.take(range(len(data))[job.rows])
    data = replace(data, x=data.x.to(device), y=data.y.to(device))
    model = registry.build_classifier(job.classifier).to(device)
    warm_up(model, data.x)
    target = Target(model, classes=data.classes, device=device).eval()
    torch.manual_seed(0)
    start = read_clock(device)
    proposals = ATTACKS[job.attack](job.args, target, data, job.threat).detach()
    seconds = read_clock(device) - start
    calls = target.forwards + 2 * target.backwards
    return Outcome(is_robust(model, proposals, data, job.threat).cpu(), calls, seconds)


def add_up(parts: Sequence[Outcome]) -> Outcome:
    return Outcome(
        robust=torch.cat([part.robust for part in parts]),
        calls=sum(part.calls for part in parts),
        seconds=sum(part.seconds for part in parts),
    )


def part_slices(n: int, processes: int) -> list[slice]:
    """All examples for one process, four parts for each of more."""
    size = n if processes == 1 else -(-n // (4 * processes))
    return [slice(start, start + size) for start in range(0, n, size)]


def run_jobs(jobs: Sequence[Job], processes: int) -> Iterator[Outcome]:
    """The outcome of each job, in their order."""
    if processes == 1:
        yield from map(measure, jobs)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(measure, jobs)


def print_row(attack: str, classifier: str, row: Outcome, ours: Outcome) -> None:
    n = len(row.robust)
    differ = int((row.robust != ours.robust).sum())
    print(
        f"{attack:<32}{classifier:<24}{row.robust.float().mean():>8.3f}{differ:>8}"
        f"{row.calls / n:>9.0f}{row.seconds:>9.2f}"
        f"{row.calls / ours.calls:>9.2f}{row.seconds / ours.seconds:>11.2f}",
        flush=True,
    )


def print_head(args: argparse.Namespace, threat: ThreatModel, device: str) -> None:
    if device.startswith("cuda"):
        machine = torch.cuda.get_device_name()
    else:
        plural = "es" if args.processes > 1 else ""
        machine = f"{args.processes} process{plural} of one thread"
    print(
        f"{args.dataset} n={args.n}, {threat.norm} {threat.eps}, {args.steps} steps, "
        f"{args.targets} targets, torch {torch.__version__}, {machine}"
    )
    widths = (8, 8, 9, 9, 9, 11)
    heads = [f"{head:>{width}}" for head, width in zip(COLUMNS, widths, strict=True)]
    print(f"{'attack':<32}{'classifier':<24}{''.join(heads)}")


def compare(args: argparse.Namespace) -> None:
    discover()
    facts = registry.datasets.get(args.dataset).facts
    norm = args.norm or facts.norm
    threat = ThreatModel(norm, parse_eps(args.eps or facts.eps[norm]))
    device = pick_device(args.device)
    if args.n < 1:
        raise BadInput(f"n={args.n} must be 1 or more")
    if args.processes < 1 or (args.processes > 1 and device != "cpu"):
        raise BadInput(f"processes={args.processes} must be 1 or more, and 1 on a GPU")
    classifiers = [facts.roles.get(role, role) for role in args.roles.split(",")]
    attacks = list(ATTACKS) if args.queries else list(ATTACKS)[:2]
    parts = part_slices(args.n, args.processes)
    jobs = [
        Job(args, threat, device, classifier, attack, rows)
        for classifier, attack, rows in product(classifiers, attacks, parts)
    ]
    print_head(args, threat, device)
    outcomes = run_jobs(jobs, args.processes)
    for classifier in classifiers:
        ours = None
        for attack in attacks:
            row = add_up([next(outcomes) for _ in parts])
            ours = ours or row
            print_row(attack, classifier, row, ours)


def main(words: Sequence[str] | None = None) -> int:
    parser = flag_parser(__doc__, DEFAULTS)
    parser.add_argument("--data-dir", type=Path)
    return run_main(lambda: compare(parser.read(words)), "benchmarks.apgd")


if __name__ == "__main__":
    sys.exit(main())
