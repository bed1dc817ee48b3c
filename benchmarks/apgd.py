"""Our APGD against pyautoattack: the pair of losses of its standard version by both, and its whole standard version, in one run.

    python -m benchmarks.apgd [--n 200] [--dataset digits] [--norm linf] [--eps 1/510] [--roles robust,own:digits-standard]
                              [--steps 100] [--targets 9] [--queries 5000] [--device auto|cpu|cuda]

`--roles` are classifiers by role or by name. Each row: robust accuracy after projection to the ball, on how many examples the verdict is another
than ours, forward passes per example (a backward counts as two), seconds, and the last two as multiples of ours. The seconds are those of the CPU on
one thread, or of the wall clock until the GPU is done. The whole version has 100 steps and 9 targets, in l1 five targets and five restarts, and
Square with `--queries`; 0 leaves it out.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import registry
from bench.data.sample import Dataset, load
from bench.execute import device_of
from bench.norms import to_ball
from bench.spec import BadInput, Spec, ThreatModel, parse_eps
from bench.target import Target, right

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
Run = Callable[[Target, Dataset, ThreatModel], Tensor]


def ours(args: argparse.Namespace) -> Run:
    make = registry.attacks.get("apgd").make
    return lambda target, data, threat: make(
        target, data.x.clone(), data.y.clone(), threat, loss="ce+targeted", steps=args.steps, targets=min(args.targets, data.classes - 1)
    )


def pair(args: argparse.Namespace) -> Run:
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    def run(target: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        facts: dict[str, Any] = {"norm": NAMES[threat.norm], "eps": float(threat.eps), "n_iter": args.steps, "seed": 0, "device": target.device}
        facts |= {"use_largereps": threat.norm == "l1", "logger": logging.getLogger("auto-attack")}
        x_adv = data.x.clone()
        for attack in (
            APGDAttack(target, loss="ce", **facts),
            APGDAttack_targeted(target, n_target_classes=min(args.targets, data.classes - 1), **facts),
        ):
            rows = right(target(x_adv), data.y).nonzero().squeeze(1)
            if len(rows):
                x_adv[rows] = attack.perturb(data.x[rows], data.y[rows]).detach()
        return x_adv

    return run


def whole(args: argparse.Namespace) -> Run:
    from pyautoattack import AutoAttack

    def run(target: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        front = AutoAttack(target, norm=NAMES[threat.norm], eps=float(threat.eps), seed=0, device=target.device, version="standard")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("n", 200), ("steps", 100), ("targets", 9), ("queries", 5000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, text in (("dataset", "digits"), ("norm", ""), ("eps", ""), ("roles", "robust,standard"), ("device", "auto")):
        parser.add_argument(f"--{name}", default=text)
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    try:
        compare(args)
    except BadInput as error:
        parser.exit(2, f"benchmarks.apgd: {error}\n")


def compare(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    logging.getLogger("auto-attack").addHandler(logging.NullHandler())
    registry.discover()
    facts = registry.datasets.get(args.dataset).facts
    norm = args.norm or facts["norm"]
    threat = ThreatModel(norm, parse_eps(args.eps or facts["eps"][norm]))
    device = torch.device(device_of(args.device))
    data = load(Spec.of(args.dataset, {"n": args.n}), data_dir=args.data_dir)
    data = replace(data, x=data.x.to(device), y=data.y.to(device))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "one thread"
    print(f"{args.dataset} n={args.n}, {norm} {threat.eps}, {args.steps} steps, {args.targets} targets, torch {torch.__version__}, {where}")
    print(f"{'attack':<32}{'classifier':<24}{'robust':>8}{'differ':>8}{'calls':>9}{'seconds':>9}{'calls x':>9}{'seconds x':>11}")
    for role in args.roles.split(","):
        name = facts["roles"].get(role, role)
        model, first = registry.build_classifier(name).to(device), None
        leaf = data.x.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)  # whoever comes first would pay for the loading of the GPU's libraries
        table = [("apgd[loss=ce+targeted]", ours), ("pyautoattack APGD-CE + APGD-T", pair), ("pyautoattack standard", whole)]
        for title, make in table if args.queries else table[:2]:
            target, run = Target(model, classes=data.classes, device=device).eval(), make(args)
            torch.manual_seed(0)
            start = clock(device)
            made = run(target, data, threat).detach()
            seconds, calls = clock(device) - start, (target.forwards + 2 * target.backwards) / len(data)
            with torch.no_grad():
                stands = torch.stack(
                    [right(model(to_ball(one, data.x, norm, float(threat.eps))), data.y) for one in (made if made.dim() == 5 else [made])]
                ).all(0)
            first = first or (stands, calls, seconds)
            row = f"{title:<32}{name:<24}{stands.float().mean():>8.3f}{int((stands != first[0]).sum()):>8}{calls:>9.0f}{seconds:>9.2f}"
            print(f"{row}{calls / first[1]:>9.2f}{seconds / first[2]:>11.2f}", flush=True)


if __name__ == "__main__":
    main()
