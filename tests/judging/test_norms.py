"""Norms against brute force and closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bench.judging.norms import NORMS, to_ball

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 5.0}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distances() -> None:
    delta = torch.zeros(2, 3, 4, 4)
    delta[0, 0, 1, 1] = 0.3
    delta[0, 2, 1, 1] = -0.4
    delta[0, 1, 0, 3] = 1e-9
    assert NORMS["linf"].distance(delta).tolist() == pytest.approx([0.4, 0])
    assert NORMS["l2"].distance(delta).tolist() == pytest.approx([0.5, 0])
    assert NORMS["l1"].distance(delta).tolist() == pytest.approx([0.7, 0])
    assert NORMS["l0"].distance(delta).tolist() == [2, 0], (
        "pixels, not values; a change of any size in any channel counts"
    )


def test_l1_projection_is_the_nearest_point_of_the_ball() -> None:
    delta = noise(0, 6, 3, 5, 5).double() * torch.tensor([0.01, 0.1, 0.5, 1, 3, 100]).view(
        -1, 1, 1, 1
    )
    for eps in (0.0, 0.3, 4.0):
        projected = NORMS["l1"].project(delta, eps)
        for before, after in zip(delta.flatten(1), projected.flatten(1), strict=True):
            # Bisection for the threshold, an algorithm of its own.
            low = 0.0
            high = float(before.abs().max())
            for _ in range(200):
                middle = (low + high) / 2
                left = float((before.abs() - middle).clamp_min(0).sum())
                low = middle if left > eps else low
                high = high if left > eps else middle
            threshold = high if float(before.abs().sum()) > eps else 0.0
            expected = before.sign() * (before.abs() - threshold).clamp_min(0)
            assert torch.allclose(after, expected, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_point_of_the_ball_is_nearer_than_the_projection(norm: str) -> None:
    delta = noise(1, 4, 1, 2, 2).double()
    eps = 0.7
    torch.manual_seed(0)
    projected = NORMS[norm].project(delta, eps)
    others = torch.cat(
        [NORMS[norm].random_start(delta, eps).unsqueeze(0) for _ in range(2000)]
        + [projected.unsqueeze(0) * 0.999]
    )
    assert (
        (others - delta).flatten(2).norm(dim=2) >= (projected - delta).flatten(1).norm(dim=1) - 1e-9
    ).all()


def test_l0_projection_keeps_the_largest_pixels() -> None:
    # Two pixels of two channels: lengths 0.5 and 0.61.
    delta = torch.tensor([[[[0.5, 0.1]], [[0.0, 0.6]]]])
    assert NORMS["l0"].project(delta, 1.0).tolist() == [
        [[[0, pytest.approx(0.1)]], [[0, pytest.approx(0.6)]]]
    ]
    assert NORMS["l0"].project(delta, 1.9).equal(NORMS["l0"].project(delta, 1.0)), (
        "a part of a pixel is no pixel"
    )
    assert NORMS["l0"].project(delta, 0.5).abs().sum() == 0
    assert NORMS["l0"].project(delta, 7.0).equal(delta)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("norm", list(NORMS))
def test_to_ball_meets_the_tolerances(norm: str, shape: tuple[int, int, int]) -> None:
    x = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0)).round(decimals=2)
    for scale in (0.001, 0.05, 1.0, 1e6):
        x_adv = to_ball(x + scale * noise(3, 20, *shape), x, norm, EPS[norm])
        distance = NORMS[norm].distance(x_adv.double() - x.double())
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert (distance <= EPS[norm] * (1 + 1e-12)).all()
        assert torch.equal(to_ball(x_adv, x, norm, EPS[norm] * (1 + 1e-12)), x_adv), (
            "an image in the ball stays as it is"
        )
        if scale >= 1 and norm != "l0":
            assert (distance > 0.2 * EPS[norm]).all(), (
                "the projection shrinks no more than box and ball ask for"
            )
    assert torch.equal(to_ball(x + 1, x, norm, 0.0), x)


@pytest.mark.parametrize(("norm", "eps"), [("l1", 0.05), ("l1", 1.0), ("l2", 0.002), ("l2", 0.5)])
def test_rounding_to_float32_does_not_add_up(norm: str, eps: float) -> None:
    x = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    x_adv = to_ball(x + noise(2, 20, 3, 64, 64) / 10, x, norm, eps)
    distance = NORMS[norm].distance(x_adv.double() - x.double())
    assert (distance <= eps * (1 + 1e-12)).all()
    assert (distance >= eps * 0.99).all()


@pytest.mark.parametrize("norm", list(NORMS))
def test_random_starts_are_uniform_in_the_ball(norm: str) -> None:
    x = torch.full((4000, 1, 2, 2), 0.5)
    torch.manual_seed(0)
    start = NORMS[norm].random_start(x, 2.0 if norm == "l0" else 0.1)
    distance = NORMS[norm].distance(start)
    if norm == "l0":
        assert (distance == 2).all()
        assert torch.allclose(
            (start != 0).float().mean(0), torch.full((1, 2, 2), 0.5), atol=0.04
        ), "every pixel as often"
        return
    # The volume within the distance is uniform in [0,1] if the point is uniform in the ball.
    share = (distance / 0.1) ** 4
    assert share.max() <= 1 + 1e-5
    assert share.sort().values.sub(torch.linspace(0, 1, 4000)).abs().max() < 0.04, (
        "Kolmogorov-Smirnov"
    )
    assert start.mean(0).abs().max() < 0.01


@pytest.mark.parametrize("norm", list(NORMS))
def test_steepest_beats_every_direction_of_unit_norm(norm: str) -> None:
    grad = noise(4, 5, 2, 3, 3)
    step = NORMS[norm].steepest(grad)
    assert NORMS[norm].distance(step).tolist() == pytest.approx([1.0] * 5)
    torch.manual_seed(0)
    for _ in range(300):
        other = NORMS[norm].random_start(torch.zeros_like(grad), 1.0)
        assert ((other * grad).flatten(1).sum(1) <= (step * grad).flatten(1).sum(1) + 1e-5).all()
    assert torch.equal(NORMS[norm].steepest(torch.zeros_like(grad)), torch.zeros_like(grad))
    assert torch.allclose(NORMS[norm].steepest(grad * 1e-30), step, atol=1e-5), (
        "squares that underflow are no zero gradient"
    )
    assert NORMS[norm].steepest(grad * 1e30).isfinite().all()


def test_a_step_in_l1_is_the_best_one_that_the_box_allows() -> None:
    linprog = pytest.importorskip("scipy.optimize").linprog
    x = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(5)).round(decimals=1)
    grad = noise(6, 6, 1, 3, 3)
    eps = 1.3
    reached = ((NORMS["l1"].ascend(x, grad, x, eps, eps) - x) * grad).flatten(1).sum(1)
    for image, slope, value in zip(
        x.flatten(1).double(), grad.flatten(1).double(), reached, strict=True
    ):
        # delta = up - down, both at least zero: up at most 1 - x, down at most x, sum at most eps
        bounds = [(0, 1 - float(v)) for v in image] + [(0, float(v)) for v in image]
        best = linprog(
            torch.cat([-slope, slope]).tolist(), A_ub=[[1.0] * 18], b_ub=[eps], bounds=bounds
        )
        assert float(value) == pytest.approx(-best.fun, abs=1e-5)


def test_a_step_in_l0_is_the_best_choice_of_pixels() -> None:
    x = torch.rand(5, 2, 2, 3, generator=torch.Generator().manual_seed(7))
    grad = noise(8, 5, 2, 2, 3)
    x_adv = NORMS["l0"].ascend(x, grad, x, 2.0, 2.0)
    assert (NORMS["l0"].distance(x_adv - x) <= 2).all()
    worth = (grad * ((grad > 0).float() - x)).sum(1).flatten(1)
    best = torch.stack(
        [worth[:, list(pair)].sum(1) for pair in itertools.combinations(range(6), 2)]
    ).amax(0)
    assert torch.allclose(((x_adv - x) * grad).flatten(1).sum(1), best, atol=1e-5)
    other = NORMS["l0"].ascend(x_adv, -grad, x, 2.0, 1.0)
    assert ((other != x).any(1) & (x_adv != x).any(1)).flatten(1).sum(1).ge(1).all(), (
        "a step of one pixel leaves the other"
    )


@pytest.mark.parametrize("norm", list(NORMS))
def test_a_zero_gradient_is_a_zero_step(norm: str) -> None:
    x = torch.rand(3, 1, 4, 4)
    start = to_ball(x + NORMS[norm].random_start(x, 1.0), x, norm, 1.0)
    assert torch.equal(NORMS[norm].ascend(start, torch.zeros_like(x), x, 1.0, 1.0), start)


def test_the_box_takes_no_part_in_an_l2_step() -> None:
    x = torch.zeros(1, 1, 1, 2)
    moved = NORMS["l2"].ascend(x, torch.tensor([[[[-100.0, 1.0]]]]), x, 0.5, 0.5)
    assert moved.flatten().tolist() == pytest.approx([0, 0.5])
