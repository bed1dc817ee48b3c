"""GeoDA: planes whose optimum is known, its budget, its division of labels, its directions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.attacks.decision import estimate_normal
from bench.attacks.geoda import cosines, split_queries, waves
from bench.judging.norms import NORMS
from bench.judging.target import margin
from bench.questions import registry
from tests.attacks.linear import (
    Linear,
    Problem,
    Wrapped,
    candidates,
    fooled,
    many_classes,
    nan_here_and_there,
    two_classes,
)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("problem", "queries"),
    [(two_classes(), 2500), (two_classes(channels=3), 4500)],
    ids=["1x8x8", "3x8x8"],
)
def test_the_point_found_is_misclassified_and_near_the_optimum(
    problem: Problem, queries: int, norm: str
) -> None:
    points = candidates(problem, "geoda", norm, 1e-4, queries=queries)[0]
    assert (margin(problem.model(points), problem.y) > -1e-6).all()
    ratio = NORMS[norm].distance(points - problem.x) / problem.optimum[norm]
    assert (ratio > 0.999).all()
    assert (ratio < 1.25).all()
    eps = 1.25 * float(problem.optimum[norm][0])
    assert fooled(problem, "geoda", norm, eps, queries=queries).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_several_classes_it_comes_near_one(norm: str) -> None:
    """Twice the optimum: the walk ends at the plane of the class that it began with."""
    problem = many_classes(5)
    points = candidates(problem, "geoda", norm, 1e-4, queries=4000, rounds=3)[0]
    assert (margin(problem.model(points), problem.y) > -1e-6).all()
    assert (NORMS[norm].distance(points - problem.x) < 2 * problem.optimum[norm]).all()


def test_low_frequencies_are_enough_for_a_smooth_plane_and_better() -> None:
    problem = two_classes(channels=3, size=12, smooth=True, gap=0.2)

    def mean_distance(share: float) -> Tensor:
        points = candidates(problem, "geoda", "l2", 1e-4, queries=2000, frequencies=share)[0]
        return NORMS["l2"].distance(points - problem.x).mean()

    assert mean_distance(0.34) < 0.9 * mean_distance(1.0)


@pytest.mark.parametrize("queries", [45, 120, 301, 1000])
@pytest.mark.parametrize("eot", [1, 5])
def test_every_query_is_spent_whatever_the_defence(queries: int, eot: int) -> None:
    problem = two_classes(gap=1.0)
    for stochastic in (False, True):
        target = problem.target("decision", stochastic)
        candidates(problem, "geoda", "l2", 1e-4, target, queries=queries, eot=eot)
        assert target.forwards == queries * len(problem.x)
        assert (
            registry.attacks.get("geoda").facts.calls({"queries": queries}, stochastic) == queries
        )


def test_an_example_inside_the_ball_is_queried_no_more() -> None:
    problem = two_classes()
    target = problem.target("decision")
    x_adv = candidates(
        problem, "geoda", "l2", 2 * float(problem.optimum["l2"][0]), target, queries=4000
    )
    assert (NORMS["l2"].distance(x_adv[0] - problem.x) <= 2 * problem.optimum["l2"]).all()
    assert target.forwards < 3000 * len(problem.x)


def test_labels_grow_by_the_rate_and_make_up_the_budget() -> None:
    counts = split_queries(50000, 30, 4, 0.6)
    assert sum(counts) == 50000 - 4 * 30
    for before, after in itertools.pairwise(counts):
        assert after / before == pytest.approx(0.6 ** (-2 / 3), rel=1e-3)
    assert len(split_queries(2 * 8 * 30 + 5, 30, 10, 0.6)) == 2, "no more than an eighth for walks"
    assert split_queries(31, 30, 10, 0.6) == [1]
    assert split_queries(30, 30, 10, 0.6) == []


def test_directions_are_gaussians_of_low_frequencies() -> None:
    x = torch.zeros(2, 3, 8, 12)
    torch.manual_seed(0)
    for share, expected_shape in ((1.0, (8, 12)), (0.5, (4, 6)), (0.01, (1, 1))):
        drawn = waves(x, 400, share)
        assert drawn.shape == (2, 400, 3, 8, 12)
        assert float((drawn**2).flatten(2).sum(2).mean()) == pytest.approx(1, rel=0.1)
        spectrum = cosines(8, 8, x) @ drawn @ cosines(12, 12, x).T
        energy = (spectrum**2).mean((0, 1, 2))
        low = energy[: expected_shape[0], : expected_shape[1]]
        total = float((drawn**2).flatten(2).sum(2).mean())
        assert float(low.sum()) * 3 == pytest.approx(total, rel=1e-4)
        assert float(low.min()) > 0.5 * float(low.max()), "of equal variance"
    basis = cosines(9, 9, x)
    assert torch.allclose(basis @ basis.T, torch.eye(9), atol=1e-6)
    third = [math.sqrt(2 / 9) * math.cos(math.pi * (n + 0.5) * 2 / 9) for n in range(9)]
    assert basis[2].tolist() == pytest.approx(third, abs=1e-6)


def test_the_normal_of_a_plane_is_found_from_its_labels() -> None:
    problem = two_classes(batch=4)
    flat = problem.model.weight[1] - problem.model.weight[0]
    side = torch.where(problem.y == 1, -1.0, 1.0)
    step = (side * problem.optimum["l2"]).view(-1, 1, 1, 1) * (flat / flat.norm()).view(1, 8, 8)
    edge = problem.x + step
    torch.manual_seed(0)
    points = estimate_normal(
        problem.target("decision"),
        edge,
        problem.y,
        torch.full((4,), 0.01),
        4000,
        lambda x, count: waves(x, count, 1.0),
    )
    cosine = torch.cosine_similarity(points.flatten(1), side.unsqueeze(1) * flat)
    assert (cosine > 0.95).all()


def test_a_lucky_answer_on_the_image_itself_is_not_where_it_ends() -> None:
    """Noise as large as the image's margin: one of six answers on the image is wrong.

    The nearest point that was wrong is then worth nothing.
    """
    problem = two_classes(batch=24)
    size = -margin(problem.model(problem.x), problem.y).mean() / 2

    def shake(logits: Tensor, x: Tensor) -> Tensor:
        return logits + size * torch.randn(len(x), 1) * torch.tensor([-1.0, 1.0])

    noisy = Problem(Wrapped(problem.model, shake), problem.x, problem.y, {})
    eps = 4 * float(problem.optimum["l2"][0])
    target = noisy.target("decision", stochastic=True)
    x_adv = candidates(noisy, "geoda", "l2", eps, target, queries=3000, eot=1)
    assert (margin(problem.model(x_adv[2]), problem.y) > 0).float().mean() > 0.9
    assert NORMS["l2"].distance(x_adv[2] - problem.x).tolist() == pytest.approx(
        [eps] * 24, rel=1e-3
    )


def test_white_pixels_take_no_part_in_the_walk() -> None:
    """Half of the image is white and cannot grow: in l2 the step is for the other half."""
    weight = torch.cat([torch.full((8,), 3.0), torch.ones(8)])
    x = torch.cat([torch.ones(4, 8), torch.full((4, 8), 0.4)], 1)
    x[3] = 1  # of the other class: where the walks of the others begin
    x = x.view(4, 1, 4, 4)
    bias = -float(weight[:8].sum()) - 8 * 0.5
    problem = Problem(
        Linear(torch.stack([-weight, weight]), torch.tensor([-bias, bias])),
        x,
        torch.tensor([0, 0, 0, 1]),
        {},
    )
    points = candidates(problem, "geoda", "l2", 1e-4, queries=3000)[0]
    assert (margin(problem.model(points), problem.y) > -1e-6)[:3].all()
    assert NORMS["l2"].distance(points - x)[:3].max() < 1.15 * 0.1 * 8**0.5


def test_sick_answers_are_no_crash() -> None:
    problem = two_classes(batch=4)
    changes: list[Any] = [
        lambda logits, x: logits * torch.nan,
        lambda logits, x: 0 * logits + torch.tensor([1.0, 0.0]),
        nan_here_and_there,
    ]
    for change in changes:
        sick = Problem(Wrapped(problem.model, change), problem.x, problem.y, {})
        for stochastic in (False, True):
            target = sick.target("decision", stochastic)
            x_adv = candidates(sick, "geoda", "linf", 0.1, target, queries=300, eot=3)
            assert x_adv.isfinite().all()


def test_equal_seeds_give_equal_points() -> None:
    problem = two_classes(batch=4)
    first = candidates(problem, "geoda", "linf", 0.01, queries=300, seed=0)
    again = candidates(problem, "geoda", "linf", 0.01, queries=300, seed=0)
    other = candidates(problem, "geoda", "linf", 0.01, queries=300, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
