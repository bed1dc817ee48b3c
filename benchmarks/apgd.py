"""Our APGD against pyautoattack: the pair of losses of its standard version by both, and its whole standard version, in one run.

    python -m benchmarks.apgd [--n 200] [--dataset digits] [--norm linf] [--eps 1/510] [--roles robust,own:digits-standard]
                              [--steps 100] [--targets 9] [--queries 5000] [--device auto|cpu|cuda] [--processes 1]

`--roles` are classifiers by role or by name. Each row: robust accuracy after projection to the ball, on how many examples the verdict is another
than ours, forward passes per example (a backward counts as two), seconds, and the last two as multiples of ours. The seconds are those of the CPU on
one thread, or of the wall clock until the GPU is done. The whole version has 100 steps and 9 targets, in l1 five targets and five restarts, and
Square with `--queries`; 0 leaves it out. `--processes` of one CPU thread each share the examples in four parts per process; a row is their sum.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.data.sample import Dataset, load
from bench.errors import BadInput
from bench.judging.execute import pick_device
from bench.judging.norms import to_ball
from bench.judging.target import Target, is_correct
from bench.questions import registry
from bench.questions.spec import Spec, ThreatModel, parse_eps

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
Run = Callable[[Target, Dataset, ThreatModel], Tensor]


def ours(args: argparse.Namespace) -> Run:
    make = registry.attacks.get("apgd").make
    return lambda target, data, threat: make(
        target,
        data.x.clone(),
        data.y.clone(),
        threat,
        loss="ce+targeted",
        steps=args.steps,
        targets=min(args.targets, data.classes - 1),
    )


def pair(args: argparse.Namespace) -> Run:
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    def run(target: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        facts: dict[str, Any] = {
            "norm": NAMES[threat.norm],
            "eps": float(threat.eps),
            "n_iter": args.steps,
            "seed": 0,
            "device": target.device,
        }
        facts |= {"use_largereps": threat.norm == "l1", "logger": logging.getLogger("auto-attack")}
        x_adv = data.x.clone()
        for attack in (
            APGDAttack(target, loss="ce", **facts),
            APGDAttack_targeted(
                target, n_target_classes=min(args.targets, data.classes - 1), **facts
            ),
        ):
            rows = is_correct(target(x_adv), data.y).nonzero().squeeze(1)
            if len(rows):
                x_adv[rows] = attack.perturb(data.x[rows], data.y[rows]).detach()
        return x_adv

    return run


def whole(args: argparse.Namespace) -> Run:
    from pyautoattack import AutoAttack

    def run(target: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        front = AutoAttack(
            target,
            norm=NAMES[threat.norm],
            eps=float(threat.eps),
            seed=0,
            device=target.device,
            version="standard",
        )
        front.square.n_queries = args.queries
        x_adv: Tensor = front.run_standard_evaluation(data.x, data.y)[0]
        return x_adv.to(target.device)

    return run


def clock(device: torch.device) -> float:
    """Seconds: of the CPU's work, which other programs do not change, or of the wall clock once the GPU has nothing left to do."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (
        ("n", 200),
        ("steps", 100),
        ("targets", 9),
        ("queries", 5000),
        ("processes", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, text in (
        ("dataset", "digits"),
        ("norm", ""),
        ("eps", ""),
        ("roles", "robust,standard"),
        ("device", "auto"),
    ):
        parser.add_argument(f"--{name}", default=text)
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args(argv)
    try:
        compare(args)
    except BadInput as error:
        parser.exit(2, f"benchmarks.apgd: {error}\n")


ATTACKS: dict[str, Callable[[argparse.Namespace], Run]] = {
    "apgd[loss=ce+targeted]": ours,
    "pyautoattack APGD-CE + APGD-T": pair,
    "pyautoattack standard": whole,
}


@dataclass(frozen=True, slots=True)
class Part:
    """What one attack did to some of the examples."""

    stands: Tensor
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Job:
    args: argparse.Namespace
    threat: ThreatModel
    device: str
    classifier: str
    attack: str
    rows: slice


def measure(job: Job) -> Part:
    torch.set_num_threads(1)
    logging.getLogger("auto-attack").addHandler(logging.NullHandler())
    registry.discover()
    device, threat = torch.device(job.device), job.threat
    data = load(Spec.of(job.args.dataset, {"n": job.args.n}), data_dir=job.args.data_dir)
    data = replace(data, x=data.x[job.rows].to(device), y=data.y[job.rows].to(device))
    model = registry.build_classifier(job.classifier).to(device)
    leaf = data.x.clone().requires_grad_()
    torch.autograd.grad(
        model(leaf).sum(), leaf
    )  # whoever comes first would pay for the loading of the GPU's libraries
    target, run = (
        Target(model, classes=data.classes, device=device).eval(),
        ATTACKS[job.attack](job.args),
    )
    torch.manual_seed(0)
    start = clock(device)
    made = run(target, data, threat).detach()
    seconds, calls = clock(device) - start, target.forwards + 2 * target.backwards
    with torch.no_grad():
        each = [
            is_correct(model(to_ball(one, data.x, threat.norm, float(threat.eps))), data.y)
            for one in (made if made.dim() == 5 else [made])
        ]
    return Part(torch.stack(each).all(0).cpu(), calls, seconds)


def compare(args: argparse.Namespace) -> None:
    registry.discover()
    facts = registry.datasets.get(args.dataset).facts
    norm = args.norm or facts["norm"]
    threat, device = (
        ThreatModel(norm, parse_eps(args.eps or facts["eps"][norm])),
        pick_device(args.device),
    )
    if args.n < 1:
        raise BadInput(f"n={args.n} must be 1 or more")
    if args.processes < 1 or (args.processes > 1 and device != "cpu"):
        raise BadInput(f"processes={args.processes} must be 1 or more, and 1 on a GPU")
    names = [facts["roles"].get(role, role) for role in args.roles.split(",")]
    size = args.n if args.processes == 1 else -(-args.n // (4 * args.processes))
    parts = [slice(i, i + size) for i in range(0, args.n, size)]
    attacks = list(ATTACKS)[: None if args.queries else 2]
    jobs = [
        Job(args, threat, device, name, attack, rows)
        for name in names
        for attack in attacks
        for rows in parts
    ]
    where = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{args.processes} process{'es' * (args.processes > 1)} of one thread"
    )
    print(
        f"{args.dataset} n={args.n}, {norm} {threat.eps}, {args.steps} steps, {args.targets} targets, torch {torch.__version__}, {where}"
    )
    print(
        f"{'attack':<32}{'classifier':<24}{'robust':>8}{'differ':>8}{'calls':>9}{'seconds':>9}{'calls x':>9}{'seconds x':>11}"
    )
    with get_context("spawn").Pool(args.processes) if args.processes > 1 else nullcontext() as pool:
        found = pool.imap(measure, jobs) if pool else map(measure, jobs)
        for name in names:
            first = None
            for attack in attacks:
                got = [next(found) for _ in parts]
                row = Part(
                    torch.cat([part.stands for part in got]),
                    sum(part.calls for part in got),
                    sum(part.seconds for part in got),
                )
                first = first or row
                text = f"{attack:<32}{name:<24}{row.stands.float().mean():>8.3f}{int((row.stands != first.stands).sum()):>8}"
                text += f"{row.calls / args.n:>9.0f}{row.seconds:>9.2f}{row.calls / first.calls:>9.2f}{row.seconds / first.seconds:>11.2f}"
                print(text, flush=True)


if __name__ == "__main__":
    main()
