"""Our attacks against those of torchattacks, foolbox and pyautoattack, in one run.

    python -m benchmarks.attacks [--n 50] [--dataset digits] [--only spsa,boundary]

The attacks are SPSA, One-Pixel, Pixle, Boundary, HopSkipJump, DeepFool, C&W, PGD and AutoAttack.
Each row: robust accuracy after projection to the ball, queries per example and seconds. The
classifiers are the standard and the adversarially trained one. All run on one thread with equal
seeds. A library's starting points, where it needs them, are ours.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.attacks.decision import BISECTIONS, bisect, find_start
from bench.cli.main import run_main
from bench.data.sample import Dataset, load
from bench.errors import BadInput
from bench.judging.target import Target, is_correct
from bench.questions import registry
from bench.questions.discover import discover
from bench.questions.spec import Spec, ThreatModel
from benchmarks.common import flag_parser, is_robust, run_autoattack

EXTRA = (
    "it needs the extra 'libraries': .venv/bin/uv pip install "
    "torchattacks==3.5.1 foolbox==3.3.4, then robustbench again"
)
Run = Callable[[Target, Dataset, ThreatModel], Tensor]


def ours(name: str, **knobs: Any) -> Run:
    make = registry.attacks.get(name).make

    def run(model: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        proposals: Tensor = make(model, data.x.clone(), data.y.clone(), threat, **knobs)
        return proposals

    return run


def torchattacks_spsa(steps: int, samples: int) -> Run:
    from torchattacks.attacks.spsa import SPSA

    def run(model: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        eps = float(threat.eps)
        attack = SPSA(model, eps=eps, delta=0.01, lr=0.32 * eps, nb_iter=steps, nb_sample=samples)
        x_adv: Tensor = attack(data.x, data.y)
        return x_adv

    return run


def torchattacks_onepixel(steps: int, popsize: int) -> Run:
    from torchattacks.attacks.onepixel import OnePixel

    def run(model: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        pixels = int(threat.eps)
        attack = OnePixel(model, pixels=pixels, steps=steps, popsize=popsize, inf_batch=4096)
        x_adv: Tensor = attack(data.x, data.y)
        return x_adv

    return run


def torchattacks_pixle(steps: int, samples: int) -> Run:
    from torchattacks.attacks.pixle import Pixle

    def run(model: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        size = max(1, int(threat.eps))
        attack = Pixle(
            model, x_dimensions=(1, size), y_dimensions=1, restarts=steps, max_iterations=samples
        )
        x_adv: Tensor = attack(data.x, data.y)
        return x_adv

    return run


def import_foolbox() -> Any:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    return foolbox


def foolbox_decision(name: str, **knobs: int) -> Run:
    """foolbox's attack from our starting points, on the examples that are right."""
    foolbox = import_foolbox()

    def run(model: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        norm = threat.norm
        z, fooled, _ = find_start(model, data.x, data.y, norm)
        z = bisect(model, data.x, data.y, z, norm=norm, active=fooled, halvings=BISECTIONS)
        rows = (fooled & is_correct(model(data.x), data.y)).nonzero().squeeze(1)
        if len(rows) == 0:
            return z
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
        if name == "boundary":
            attack = foolbox.attacks.BoundaryAttack(**knobs)
        else:
            attack = foolbox.attacks.HopSkipJumpAttack(constraint=norm, **knobs)
        goal = foolbox.criteria.Misclassification(data.y[rows])
        z[rows] = attack.run(wrapped, data.x[rows], goal, starting_points=z[rows])
        return z

    return run


def foolbox_minimum_norm(names: dict[str, str], **knobs: float) -> Run:
    """foolbox's attack; `names` are those of its classes by norm."""
    foolbox = import_foolbox()

    def run(model: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        attack = getattr(foolbox.attacks, names[threat.norm])(**knobs)
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
        goal = foolbox.criteria.Misclassification(data.y)
        x_adv: Tensor = attack.run(wrapped, data.x, goal)
        return x_adv

    return run


def pyautoattack_standard(queries: int) -> Run:
    def run(model: Target, data: Dataset, threat: ThreatModel) -> Tensor:
        return run_autoattack(model, data, threat, queries)

    return run


@dataclass(frozen=True, slots=True)
class Contender:
    """One attack by one library; `make` imports the library."""

    name: str
    access: str
    norms: tuple[str, ...]
    make: Callable[[], Run]


TWO = ("l2", "linf")
THREE = ("linf", "l2", "l1")
DEEPFOOL = {"l2": "L2DeepFoolAttack", "linf": "LinfDeepFoolAttack"}
CW = {"l2": "L2CarliniWagnerAttack"}

CONTENDERS = (
    Contender("spsa ours", "score", ("linf",), partial(ours, "spsa", steps=20, samples=64)),
    Contender(
        "spsa torchattacks", "score", ("linf",), partial(torchattacks_spsa, steps=20, samples=64)
    ),
    Contender("onepixel ours", "score", ("l0",), partial(ours, "onepixel", steps=20, popsize=100)),
    Contender(
        "onepixel torchattacks",
        "score",
        ("l0",),
        partial(torchattacks_onepixel, steps=20, popsize=100),
    ),
    Contender("pixle ours", "score", ("l0",), partial(ours, "pixle", steps=20, samples=10)),
    Contender(
        "pixle torchattacks", "score", ("l0",), partial(torchattacks_pixle, steps=20, samples=10)
    ),
    Contender("deepfool ours", "white-box", TWO, partial(ours, "deepfool")),
    Contender(
        "deepfool foolbox",
        "white-box",
        TWO,
        partial(foolbox_minimum_norm, DEEPFOOL, steps=50, overshoot=0.02),
    ),
    Contender("cw ours", "white-box", ("l2",), partial(ours, "cw", steps=200, searches=6)),
    Contender(
        "cw foolbox",
        "white-box",
        ("l2",),
        partial(foolbox_minimum_norm, CW, steps=200, binary_search_steps=6, stepsize=0.1),
    ),
    Contender("boundary ours", "decision", TWO, partial(ours, "boundary", steps=500)),
    Contender(
        "boundary foolbox", "decision", TWO, partial(foolbox_decision, "boundary", steps=1000)
    ),
    Contender("hopskipjump ours", "decision", TWO, partial(ours, "hopskipjump", queries=1000)),
    Contender(
        "hopskipjump foolbox", "decision", TWO, partial(foolbox_decision, "hopskipjump", steps=6)
    ),
    Contender(
        "pgd 40x5 margin ours",
        "white-box",
        THREE,
        partial(ours, "pgd", steps=40, restarts=5, loss="margin"),
    ),
    Contender("autoattack ours", "white-box", THREE, partial(ours, "autoattack", queries=500)),
    Contender("autoattack pyautoattack", "white-box", THREE, partial(pyautoattack_standard, 500)),
)


def compare(contender: Contender, run: Run, norm: str, data: Dataset) -> None:
    """Print the row of one contender in one norm for each of two classifiers."""
    facts = registry.datasets.get(data.name).facts
    label = contender.name if len(contender.norms) == 1 else f"{contender.name} {norm}"
    threat = ThreatModel(norm, Fraction(facts.eps[norm]), contender.access)
    for role in ("standard", "robust"):
        model = registry.build_classifier(facts.roles[role])
        target = Target(model, access=contender.access, classes=data.classes).eval()
        torch.manual_seed(0)
        begin = time.perf_counter()
        proposals = run(target, data, threat).detach()
        seconds = time.perf_counter() - begin
        robust = is_robust(model, proposals, data, threat).float().mean()
        queries = target.forwards / len(data)
        print(f"{label:<30}{role:<12}{robust:>8.3f}{queries:>10.0f}{seconds:>9.2f}", flush=True)


def main(words: Sequence[str] | None = None) -> int:
    parser = flag_parser(__doc__, {"n": 50, "dataset": "digits", "only": ""})
    parser.add_argument("--data-dir", type=Path)
    return run_main(lambda: compare_libraries(parser.read(words)), "benchmarks.attacks")


def compare_libraries(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    discover()
    only = set(filter(None, args.only.split(",")))
    chosen = [entry for entry in CONTENDERS if not only or entry.name.split()[0] in only]
    try:
        runs = [(contender, contender.make()) for contender in chosen]
    except ModuleNotFoundError as error:
        raise BadInput(f"{error}; {EXTRA}") from None
    data = load(Spec.of(args.dataset, {"n": args.n}), data_dir=args.data_dir)
    print(f"{args.dataset} n={args.n}, torch {torch.__version__}, one thread")
    print(f"{'attack':<30}{'classifier':<12}{'robust':>8}{'queries':>10}{'seconds':>9}")
    for contender, run in runs:
        for norm in contender.norms:
            compare(contender, run, norm, data)


if __name__ == "__main__":
    sys.exit(main())
