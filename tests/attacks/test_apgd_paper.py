"""Auto-PGD step by step against literal transcriptions of the two papers, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.attacks.apgd import radii
from bench.attacks.losses import LOSSES
from bench.attacks.stepsizes import Halving, Sparsity, checkpoints, meet
from bench.judging.norms import NORMS, to_ball
from tests.attacks.test_apgd import hills, run


def ascent(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    norm: str,
    eps: float,
    steps: int,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of Croce & Hein 2020 for one image, with its whole history: the last and the best iterate."""
    start = x if start is None else start

    def both(z: Tensor) -> tuple[float, Tensor]:
        leaf = z.clone().requires_grad_()
        value = f(leaf)
        return value.item(), torch.autograd.grad(value, leaf)[0]

    def step(z: Tensor, grad: Tensor, eta: float) -> Tensor:
        return to_ball(
            z + eta * (grad.sign() if norm == "linf" else grad / grad.norm()), x, norm, eps
        )

    p = [0.0, 0.22]
    while p[-1] + max(p[-1] - p[-2] - 0.03, 0.06) <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(share * steps, 9)) for share in p]
    eta, at, before = 2 * eps, start, start
    value, grad = both(start)
    best = (value, start, grad)
    best_by, etas, rose = [value], [eta], []
    for k in range(1, steps + 1):
        z = step(at, grad, eta)
        ahead = z if k == 1 else to_ball(at + 0.75 * (z - at) + 0.25 * (at - before), x, norm, eps)
        new, slope = both(ahead)
        rose.append(new > value)
        before, at, value, grad = at, ahead, new, slope
        best = max(best, (value, at, grad), key=lambda found: found[0])
        best_by.append(best[0])
        etas.append(eta)
        if k in w and k < steps:
            last = w[w.index(k) - 1]
            few, stands = (
                sum(rose[last:k]) < 0.75 * (k - last),
                etas[last] == etas[k] and best_by[last] == best_by[k],
            )
            if few or stands:
                eta /= 2
                before, (value, at, grad) = at, best
    return at, best[1]


def sparse_ascent(
    f: Callable[[Tensor], Tensor], x: Tensor, eps: float, steps: int
) -> tuple[Tensor, Tensor]:
    """APGD for l1 of Croce & Hein 2021 for one image: the last and the best iterate of the last of the three radii."""
    x_adv, d = x, x.numel()
    for stage, (radius, count) in enumerate(
        ((3 * eps, round(0.3 * steps)), (2 * eps, round(0.3 * steps)), (eps, round(0.4 * steps)))
    ):
        at = to_ball(x_adv, x, "l1", radius)
        moved = d / 5 if stage == 0 else float((at != x).sum()) / 1.5
        eta, every = radius, math.ceil(0.04 * count)
        grad, best, best_grad, best_value = at, at, at, -math.inf
        for k in range(count + 1):
            if k:
                size = sorted(grad.abs().flatten().tolist(), reverse=True)[
                    min(max(round(moved), 1), d) - 1
                ]
                step = grad.sign() * (grad.abs() >= size)
                at = nearest(at + eta * step / step.abs().sum(), x, radius)
            leaf = at.clone().requires_grad_()
            value = f(leaf)
            (grad,) = torch.autograd.grad(value, leaf)
            if value.item() > best_value:
                best, best_grad, best_value = at, grad, value.item()
            if 0 < k < count and k % every == 0:
                fewer = float((best != x).sum()) / 1.5
                if fewer < 0.95 * moved - 1e-6:
                    eta, at, grad = radius, best, best_grad
                else:
                    eta = max(eta / 1.5, radius / 10)
                moved = fewer
        x_adv = best
    return at, best


def nearest(z: Tensor, x: Tensor, eps: float) -> Tensor:
    """The projection onto ball and box of l1, by bisection for the common amount by which the changes shrink."""
    delta = z - x
    low, high = 0.0, float(delta.abs().max())

    def shrunk(amount: float) -> Tensor:
        return ((x + delta.sign() * (delta.abs() - amount).clamp_min(0)).clamp(0, 1) - x) * (
            delta.abs() > amount
        )

    if shrunk(0.0).abs().sum() <= eps:
        return x + shrunk(0.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if shrunk(middle).abs().sum() > eps else (low, middle)
    return x + shrunk(high)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_trajectory_is_that_of_the_papers(norm: str, loss: str) -> None:
    """Every image of a batch against a literal transcription for one image; declared stochastic, so that none leaves within so few draws."""
    steps = 40
    model, x, y, eps = hills(eps={"linf": "1/10", "l2": "1/2", "l1": "3/4"}[norm])
    made = run(model, x, y, norm, eps, loss=loss, steps=steps, from_x=True, stochastic=True)
    for i in range(len(x)):

        def f(z: Tensor, i: int = i) -> Tensor:
            return LOSSES[loss](model(z), y[i : i + 1]).sum()

        one, size = x[i : i + 1], float(eps)
        last, best = (
            sparse_ascent(f, one, size, steps)
            if norm == "l1"
            else ascent(f, one, norm, size, steps)
        )
        assert torch.allclose(made[0, i], last[0], atol=1e-6)
        assert torch.allclose(made[1, i], best[0], atol=1e-6)
        assert (NORMS[norm].distance(made[:, i] - x[i]) <= size + 1e-12).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_with_a_shrinking_ball_one_ascent_begins_where_the_best_of_the_last_is_put_into_its_ball(
    norm: str,
) -> None:
    model, x, y, eps = hills(eps={"linf": "1/10", "l2": "1/2"}[norm])
    made = run(
        model, x, y, norm, eps, loss="margin", steps=40, from_x=True, stochastic=True, wide=3.0
    )
    for i in range(len(x)):

        def f(z: Tensor, i: int = i) -> Tensor:
            return LOSSES["margin"](model(z), y[i : i + 1]).sum()

        last = best = x[i : i + 1]
        for times, count in ((3, 12), (2, 12), (1, 16)):
            size = times * float(eps)
            last, best = ascent(
                f, x[i : i + 1], norm, size, count, to_ball(best, x[i : i + 1], norm, size)
            )
        assert torch.allclose(made[0, i], last[0], atol=1e-6)
        assert torch.allclose(made[1, i], best[0], atol=1e-6)
        assert (NORMS[norm].distance(made[:, i] - x[i]) <= float(eps) + 1e-12).all()


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == {0, 22, 41, 57, 70, 80, 87, 93, 99}
    assert checkpoints(1000) == {0, 220, 410, 570, 700, 800, 870, 930, 990}
    assert checkpoints(10) == {0, 3, 5, 6, 7, 8, 9, 10}
    assert checkpoints(1) == {0, 1}


def test_the_step_is_halved_by_either_condition_and_by_no_other() -> None:
    """Five examples of 100 steps, at the checkpoints 22 and 41: too few rises are fewer than 16.5 of 22, and than 14.25 of 19."""
    plan = Halving(torch.zeros(5, 1, 2, 2), "linf", 0.5, 100, 0.75)
    left, best = torch.arange(5), torch.zeros(5, 1, 2, 2)

    def check(i: int, rises: list[int], best_loss: list[float]) -> list[int]:
        counted = torch.tensor(rises)
        back = plan.check(i, left, counted, torch.tensor(best_loss), best)
        assert i not in checkpoints(100) or not counted.any(), "counted anew from here"
        return [int(row) for row in back]

    assert check(0, [0] * 5, [1.0] * 5) == []
    assert check(21, [0] * 5, [1.0] * 5) == []
    assert plan.size.tolist() == [1.0] * 5, "twice the radius"
    #                     too few, enough, none better, none better and too few, enough
    assert check(22, [16, 17, 20, 3, 22], [2.0, 2.0, 1.0, 1.0, 2.0]) == [0, 2, 3]
    #                     halved just now and none better: no; not halved and none better: yes
    assert check(41, [15, 14, 15, 14, 19], [2.0, 3.0, 1.0, 1.0, 2.0]) == [1, 3, 4]
    assert plan.size.tolist() == [0.5, 0.5, 0.5, 0.25, 0.5]
    short = Halving(torch.zeros(2, 1, 2, 2), "linf", 0.5, 18, 0.75)
    short.check(0, left[:2], torch.zeros(2), torch.zeros(2), best)
    assert short.check(4, left[:2], torch.tensor([3, 2]), torch.ones(2), best).tolist() == [1], (
        "three of four are not fewer than 75%"
    )


def test_the_sparsity_of_l1_follows_the_best_iterate() -> None:
    x = torch.full((3, 1, 5, 10), 0.5)
    plan = Sparsity(x, x, 2.0, 100, fresh=True)
    assert plan.changed.tolist() == pytest.approx([15] * 3), "a fifth of the coordinates times 1.5"
    best, left = x.clone(), torch.arange(3)
    for i, count in enumerate((14, 15, 40)):
        best[i].view(-1)[:count] = 0.6
    assert plan.check(3, left, left, left, best).tolist() == []
    assert plan.check(4, left, left, left, best).tolist() == [0]
    assert plan.changed.tolist() == [14, 15, 40]
    assert plan.size.tolist() == pytest.approx([2, 2 / 1.5, 2 / 1.5])
    for i in range(8, 80, 4):
        assert plan.check(i, left, left, left, best).tolist() == []
    assert plan.size.tolist() == pytest.approx([0.2] * 3), "a tenth of the radius at least"
    best[1].view(-1)[:7], best[2].view(-1)[:2] = 0.5, 0.5
    assert plan.check(80, left, left, left, best).tolist() == [1], "38 of 40 are 95%"
    assert plan.size.tolist() == pytest.approx([0.2, 2, 0.2])
    grad = torch.arange(50.0).view(1, 1, 5, 10).repeat(3, 1, 1, 1) - 20.3
    step = plan.move(81, left, x, x, grad) - x
    assert (step != 0).flatten(1).sum(1).tolist() == [9, 5, 25]
    assert step.flatten(1).abs().sum(1).tolist() == pytest.approx([0.2, 2, 0.2], rel=1e-4)
    assert Sparsity(x, best, 2.0, 100, fresh=False).changed.tolist() == [14, 8, 38]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 99, 100])
def test_the_radii_of_a_shrinking_ball_share_the_steps(steps: int) -> None:
    stages = radii("l1", 2.0, steps)
    assert sum(count for _, count in stages) == steps
    assert all(count > 0 for _, count in stages)
    assert stages[-1][0] == 2.0
    assert steps < 100 or stages == [(6.0, 30), (4.0, 30), (2.0, 40)]
    assert radii("l2", 2.0, steps) == radii("l1", 2.0, steps, 1.0) == [(2.0, steps)]
    assert radii("l2", 2.0, steps, 3.0) == stages
    assert steps < 3 or [radius for radius, _ in radii("linf", 2.0, steps, 2.0)] == [4.0, 3.0, 2.0]


def test_the_projection_onto_ball_and_box_is_the_nearest_point() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, 4, 5, generator=generator, dtype=torch.float64)
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0
    z = x + torch.randn(x.shape, generator=generator, dtype=torch.float64) * torch.logspace(
        -2, 1, 40, dtype=torch.float64
    ).view(40, 1, 1, 1)
    for eps in (0.01, 0.5, 3.0, 30.0):
        found = meet(z, x, eps)
        assert torch.allclose(
            found, torch.stack([nearest(z[i], x[i], eps) for i in range(40)]), atol=1e-9
        )
        assert found.min() >= -1e-12
        assert found.max() <= 1 + 1e-12
        assert (NORMS["l1"].distance(found - x) <= eps + 1e-9).all()
    assert torch.equal(meet(x, x, 0.5), x)
    one = torch.tensor([[[[0.9, 0.5]]]], dtype=torch.float64)
    # a change past the edge keeps the edge: 0.1 of 0.4 there, and what is left of the ball goes to the other
    assert meet(one + torch.tensor([2.0, 1.0]), one, 0.4).flatten().tolist() == pytest.approx(
        [1.0, 0.8]
    )
