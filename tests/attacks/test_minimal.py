"""Minimal-norm attacks with gradients: the distances that they report, against the optimum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks.minimal import linearise
from bench.judging.norms import NORMS
from bench.judging.target import is_correct, margin
from tests.attacks.linear import (
    Linear,
    Problem,
    Wrapped,
    candidates,
    fooled,
    many_classes,
    misclassified,
    two_classes,
)

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("deepfool", "linf", {}),
    ("deepfool", "l2", {}),
    ("cw", "l2", {"steps": 120, "searches": 6, "rate": 0.01, "constant": 0.01}),
    ("fab", "linf", {"steps": 20, "targets": 4}),
    ("fab", "l2", {"steps": 20, "targets": 4}),
    ("fab", "l1", {"steps": 20, "targets": 4}),
]


@pytest.mark.parametrize(("name", "norm", "knobs"), CASES)
@pytest.mark.parametrize(
    "problem",
    [two_classes(), two_classes(channels=3, size=12), many_classes(5)],
    ids=["1x8x8", "3x12x12", "5 classes"],
)
def test_the_point_found_is_misclassified_and_lies_at_the_optimum(
    problem: Problem, name: str, norm: str, knobs: dict[str, Any]
) -> None:
    points = candidates(problem, name, norm, 1e-4, **knobs)[0]
    assert (margin(problem.model(points), problem.y) >= 0).all()
    beyond = NORMS[norm].distance(points - problem.x) - problem.optimum[norm]
    assert (beyond > -1e-6).all()
    assert (beyond < 0.02 * problem.optimum[norm] + 3e-5).all()


@pytest.mark.parametrize(("name", "norm", "knobs"), CASES)
def test_the_second_candidate_decides_at_a_fixed_eps(
    name: str, norm: str, knobs: dict[str, Any]
) -> None:
    problem = two_classes()
    best = float(problem.optimum[norm][0])
    assert fooled(problem, name, norm, 1.02 * best, **knobs).all()
    assert not fooled(problem, name, norm, 0.98 * best, **knobs).any()
    at_eps = candidates(problem, name, norm, 0.5 * best, **knobs)[1]
    distance = NORMS[norm].distance(at_eps - problem.x)
    assert distance.tolist() == pytest.approx([0.5 * best] * len(problem.x), rel=1e-4)


class Wall(nn.Module):
    """Class 1 beyond a plane; its steepest coordinates lie at the edge of the box in most cases."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.cat([torch.full((8,), 3.0), torch.ones(8)])

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1) @ self.weight - self.weight[:8].sum() - 8 * 0.5
        return torch.stack([-value, value], 1)


@pytest.mark.parametrize(("name", "norm", "knobs"), [case for case in CASES if case[1] != "l1"])
def test_coordinates_that_the_box_blocks_are_gone_around(
    name: str, norm: str, knobs: dict[str, Any]
) -> None:
    """The steep half of the image is white and can grow no further.

    The other half alone reaches the optimum.
    """
    x = torch.cat([torch.ones(4, 8), torch.full((4, 8), 0.4)], 1).view(4, 1, 4, 4)
    problem = Problem(Wall(), x, torch.zeros(4, dtype=torch.long), {})
    best = {"linf": 0.1, "l2": 0.1 * 8**0.5}[norm]
    points = candidates(problem, name, norm, 1e-4, **knobs)[0]
    assert (margin(problem.model(points), problem.y) >= 0).all()
    assert NORMS[norm].distance(points - x).max() < 1.03 * best
    assert points.max() <= 1


@pytest.mark.parametrize(("name", "norm", "knobs"), CASES)
def test_a_found_example_leaves_and_a_misclassified_one_stays_put(
    name: str, norm: str, knobs: dict[str, Any]
) -> None:
    problem = two_classes(batch=6)
    last = torch.arange(6) >= 3
    mixed = Problem(problem.model, problem.x, torch.where(last, 1 - problem.y, problem.y), {})
    alone = Problem(problem.model, problem.x[:3], problem.y[:3], {})
    mixed_target = problem.target()
    alone_target = problem.target()
    together = candidates(mixed, name, norm, 1e-4, mixed_target, **knobs)
    three = candidates(alone, name, norm, 1e-4, alone_target, **knobs)
    assert (together[0] - problem.x)[last].abs().max() < 2e-6
    assert torch.allclose(together[0, :3], three[0], atol=1e-6)
    # one look at each of the misclassified
    assert mixed_target.backwards <= alone_target.backwards + 3 * 2
    within = problem.target()
    candidates(alone, name, norm, 3 * float(problem.optimum[norm][0]), within, **knobs)
    if name == "cw":
        assert within.backwards < alone_target.backwards


def test_fab_looks_no_further_where_a_point_inside_the_ball_is_found() -> None:
    problem = many_classes(5)
    targets = []
    for eps in (1e-7, 1.0):
        targets.append(problem.target())
        candidates(problem, "fab", "l2", eps, targets[-1], steps=10, targets=4)
    assert targets[0].backwards == 10 * 4 * len(problem.x)
    assert targets[1].backwards == 10 * len(problem.x)


def test_deepfool_on_a_curve_takes_newtons_steps() -> None:
    """One coordinate, f(x) = x^2 - 1/4 from x = 0.8.

    Each step is Newton's, with the overshoot of the whole way.
    """

    def curve(logits: Tensor, x: Tensor) -> Tensor:
        value = 0.25 - x[:, 0, 0, 0] ** 2
        return torch.stack([torch.zeros_like(value), value], 1)

    problem = Problem(
        Wrapped(Linear(torch.zeros(2, 1), torch.zeros(2)), curve),
        torch.full((1, 1, 1, 1), 0.8),
        torch.tensor([0]),
        {},
    )
    for steps in (1, 2):
        z = 0.8
        share = 0.0
        for _ in range(steps):
            share = share + (0.25 - z**2) / (2 * z)
            z = 0.8 + 1.01 * share
        points = candidates(problem, "deepfool", "l2", 1e-4, steps=steps, overshoot=0.01)[0]
        assert float(points) == pytest.approx(z, rel=1e-5)
    far = candidates(problem, "deepfool", "l2", 1e-4, steps=20, overshoot=0.1)[0]
    assert float(far) == pytest.approx(0.5, abs=1e-3)


def test_planes_are_those_of_the_highest_wrong_classes() -> None:
    problem = many_classes(6, batch=4)
    planes = linearise(problem.target(), problem.x, problem.y, 3)
    logits = problem.model(problem.x)
    for i, label in enumerate(problem.y.tolist()):
        order = [k for k in logits[i].argsort(descending=True).tolist() if k != label][:3]
        gaps = [float(logits[i, k] - logits[i, label]) for k in order]
        assert planes.gaps[i].tolist() == pytest.approx(gaps, abs=1e-6)
        for grad, k in zip(planes.grads[i], order, strict=True):
            normal = problem.model.weight[k] - problem.model.weight[label]
            assert torch.allclose(grad.flatten(), normal, atol=1e-6)
    assert not planes.wrong.any()
    assert linearise(problem.target(), problem.x, (problem.y + 1) % 6, 3).wrong.all()


def test_cw_with_confidence_goes_as_far_as_that() -> None:
    problem = two_classes(gap=0.1)
    knobs = {"steps": 100, "searches": 6, "rate": 0.01, "constant": 0.01, "confidence": 0.05}
    points = candidates(problem, "cw", "l2", 1e-4, **knobs)[0]
    lead = margin(problem.model(points), problem.y)
    assert lead.min() >= 0.05
    assert lead.max() < 0.06


@pytest.mark.parametrize(("name", "norm", "knobs"), CASES)
def test_a_noisy_defence_is_walked_to_its_mean_boundary(
    name: str, norm: str, knobs: dict[str, Any]
) -> None:
    problem = two_classes()
    lead = -margin(problem.model(problem.x), problem.y).mean()
    size = (0.1 if name == "fab" else 0.3) * float(lead)

    def shake(logits: Tensor, x: Tensor) -> Tensor:
        return logits + size * torch.randn(len(x), 1) * torch.tensor([-1.0, 1.0])

    noisy = Problem(Wrapped(problem.model, shake), problem.x, problem.y, {})
    eps = 1.5 * float(problem.optimum[norm][0])
    target = noisy.target(stochastic=True)
    x_adv = candidates(noisy, name, norm, eps, target, **knobs)[1:]
    wrong = misclassified(problem, x_adv).any(0)
    assert wrong.all(), "the direction is right, whatever single draws say"
    assert target.backwards >= len(problem.x) * 20, "nobody leaves early"


def test_a_constant_and_a_cut_graph_are_no_crash() -> None:
    problem = two_classes(batch=3)
    for change in (
        lambda logits, x: logits.detach(),
        lambda logits, x: 0 * logits + torch.tensor([1.0, 0.0]),
        lambda logits, x: logits * torch.nan,
    ):
        sick = Problem(Wrapped(problem.model, change), problem.x, problem.y, {})
        for name, norm, _ in CASES:
            knobs = {"steps": 3, "searches": 2} if name == "cw" else {"steps": 3}
            assert candidates(sick, name, norm, 0.1, **knobs).isfinite().all()
    assert is_correct(problem.model(problem.x), problem.y).all()
