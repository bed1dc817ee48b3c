"""Our SPSA, One-Pixel, Pixle, Boundary, HopSkipJump, DeepFool, C&W and PGD against those of torchattacks, foolbox and pyautoattack, in one run.

    python -m benchmarks.attacks [--n 50] [--dataset digits] [--only spsa,boundary]

Each row: robust accuracy after projection to the ball, queries per example and seconds, on the standard and the adversarially trained
classifier, one thread, equal seeds. A library's starting points, where it needs them, are ours.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from bench.attacks.decision import BISECTIONS, bisect, start
from bench.data.sample import Dataset, load
from bench.judging.norms import to_ball
from bench.judging.target import Target, is_correct
from bench.questions import registry
from bench.questions.spec import Spec, ThreatModel

Run = Callable[[Target, Dataset, str, float], Tensor]


def ours(name: str, access: str, **knobs: float) -> tuple[str, Run]:
    make = registry.attacks.get(name).make
    return access, lambda model, data, norm, eps: make(
        model,
        data.x.clone(),
        data.y.clone(),
        ThreatModel(norm, Fraction(eps).limit_denominator(10**6), access),
        **knobs,
    )


def spsa(steps: int, samples: int) -> tuple[str, Run]:
    from torchattacks.attacks.spsa import SPSA

    return "score", lambda model, data, norm, eps: SPSA(
        model, eps=eps, delta=0.01, lr=0.32 * eps, nb_iter=steps, nb_sample=samples
    )(data.x, data.y)


def onepixel(steps: int, popsize: int) -> tuple[str, Run]:
    from torchattacks.attacks.onepixel import OnePixel

    return "score", lambda model, data, norm, eps: OnePixel(
        model, pixels=int(eps), steps=steps, popsize=popsize, inf_batch=4096
    )(data.x, data.y)


def fool(kind: str, **knobs: int) -> tuple[str, Run]:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    def run(model: Target, data: Dataset, norm: str, eps: float) -> Tensor:
        z, found, _ = start(model, data.x, data.y, norm)
        z = bisect(model, data.x, data.y, z, norm, found, BISECTIONS)
        rows = (found & is_correct(model(data.x), data.y)).nonzero().squeeze(1)
        known = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
        attack = (
            foolbox.attacks.BoundaryAttack(**knobs)
            if kind == "boundary"
            else foolbox.attacks.HopSkipJumpAttack(constraint=norm, **knobs)
        )
        if len(rows):
            z[rows] = attack.run(
                known,
                data.x[rows],
                foolbox.criteria.Misclassification(data.y[rows]),
                starting_points=z[rows],
            )
        return z

    return "decision", run


def pixle(steps: int, samples: int) -> tuple[str, Run]:
    from torchattacks.attacks.pixle import Pixle

    def run(model: Target, data: Dataset, norm: str, eps: float) -> Tensor:
        size = max(1, int(eps))
        return Pixle(
            model, x_dimensions=(1, size), y_dimensions=1, restarts=steps, max_iterations=samples
        )(data.x, data.y)

    return "score", run


def nearest(kind: str, **knobs: float) -> tuple[str, Run]:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    def run(model: Target, data: Dataset, norm: str, eps: float) -> Tensor:
        name = (
            "L2CarliniWagnerAttack"
            if kind == "cw"
            else {"l2": "L2DeepFoolAttack", "linf": "LinfDeepFoolAttack"}[norm]
        )
        known = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
        return getattr(foolbox.attacks, name)(**knobs).run(
            known, data.x, foolbox.criteria.Misclassification(data.y)
        )

    return "white-box", run


def standard(queries: int) -> tuple[str, Run]:
    from pyautoattack import AutoAttack

    def run(model: Target, data: Dataset, norm: str, eps: float) -> Tensor:
        front = AutoAttack(
            model,
            norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[norm],
            eps=eps,
            seed=0,
            device="cpu",
            version="standard",
        )
        front.square.n_queries = queries
        return front.run_standard_evaluation(data.x, data.y)[0]

    return "white-box", run


def rows(only: set[str]) -> list[tuple[str, str, tuple[str, Run]]]:
    table: list[tuple[str, str, Callable[[], tuple[str, Run]]]] = [
        ("spsa ours", "linf", lambda: ours("spsa", "score", steps=20, samples=64)),
        ("spsa torchattacks", "linf", lambda: spsa(20, 64)),
        ("onepixel ours", "l0", lambda: ours("onepixel", "score", steps=20, popsize=100)),
        ("onepixel torchattacks", "l0", lambda: onepixel(20, 100)),
        ("pixle ours", "l0", lambda: ours("pixle", "score", steps=20, samples=10)),
        ("pixle torchattacks", "l0", lambda: pixle(20, 10)),
        *(
            (f"deepfool ours {norm}", norm, lambda: ours("deepfool", "white-box"))
            for norm in ("l2", "linf")
        ),
        *(
            (
                f"deepfool foolbox {norm}",
                norm,
                lambda: nearest("deepfool", steps=50, overshoot=0.02),
            )
            for norm in ("l2", "linf")
        ),
        ("cw ours", "l2", lambda: ours("cw", "white-box", steps=200, searches=6)),
        ("cw foolbox", "l2", lambda: nearest("cw", steps=200, binary_search_steps=6, stepsize=0.1)),
        *(
            (f"boundary ours {norm}", norm, lambda: ours("boundary", "decision", steps=500))
            for norm in ("l2", "linf")
        ),
        *(
            (f"boundary foolbox {norm}", norm, lambda: fool("boundary", steps=1000))
            for norm in ("l2", "linf")
        ),
        *(
            (
                f"hopskipjump ours {norm}",
                norm,
                lambda: ours("hopskipjump", "decision", queries=1000),
            )
            for norm in ("l2", "linf")
        ),
        *(
            (f"hopskipjump foolbox {norm}", norm, lambda norm=norm: fool("hopskipjump", steps=6))
            for norm in ("l2", "linf")
        ),
        *(
            (
                f"pgd 40x5 margin ours {norm}",
                norm,
                lambda: ours("pgd", "white-box", steps=40, restarts=5, loss="margin"),
            )
            for norm in ("linf", "l2", "l1")
        ),
        *(
            (f"autoattack ours {norm}", norm, lambda: ours("autoattack", "white-box", queries=500))
            for norm in ("linf", "l2", "l1")
        ),
        *(
            (f"autoattack pyautoattack {norm}", norm, lambda: standard(500))
            for norm in ("linf", "l2", "l1")
        ),
    ]
    return [
        (name, norm, make()) for name, norm, make in table if not only or name.split()[0] in only
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--only", default="")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    registry.discover()
    facts = registry.datasets.get(args.dataset).facts
    data = load(Spec.of(args.dataset, {"n": args.n}), data_dir=args.data_dir)
    print(f"{args.dataset} n={args.n}, torch {torch.__version__}, one thread")
    print(f"{'attack':<30}{'classifier':<12}{'robust':>8}{'queries':>10}{'seconds':>9}")
    for name, norm, (access, run) in rows(set(filter(None, args.only.split(",")))):
        for role in ("standard", "robust"):
            model = registry.build_classifier(facts["roles"][role])
            target = Target(model, access=access, classes=data.classes).eval()
            eps = float(Fraction(facts["eps"][norm]))
            torch.manual_seed(0)
            begun = time.perf_counter()
            made = run(target, data, norm, eps).detach()
            seconds = time.perf_counter() - begun
            made = made if made.dim() == 5 else made.unsqueeze(0)
            with torch.no_grad():
                alive = torch.stack(
                    [is_correct(model(to_ball(one, data.x, norm, eps)), data.y) for one in made]
                ).all(0)
            print(
                f"{name:<30}{role:<12}{alive.float().mean():>8.3f}{target.forwards / len(data.x):>10.0f}{seconds:>9.2f}"
            )


if __name__ == "__main__":
    main()
