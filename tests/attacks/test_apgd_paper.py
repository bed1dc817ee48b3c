"""Auto-PGD step by step against literal transcriptions of the two papers, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.attacks.apgd import plan_stages
from bench.attacks.losses import LOSSES
from bench.attacks.stepsizes import Halving, Sparsity, checkpoints, project_l1_in_box
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
    """Algorithm 1 of Croce & Hein 2020 for one image, with its whole history.

    Gives the last and the best iterate.
    """
    start = x if start is None else start

    def value_and_gradient(z: Tensor) -> tuple[float, Tensor]:
        leaf = z.clone().requires_grad_()
        value = f(leaf)
        return value.item(), torch.autograd.grad(value, leaf)[0]

    def step(z: Tensor, grad: Tensor, eta: float) -> Tensor:
        direction = grad.sign() if norm == "linf" else grad / grad.norm()
        return to_ball(z + eta * direction, x, norm, eps)

    p = [0.0, 0.22]
    while p[-1] + max(p[-1] - p[-2] - 0.03, 0.06) <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(share * steps, 9)) for share in p]
    eta = 2 * eps
    at = before = start
    value, grad = value_and_gradient(start)
    best = (value, start, grad)
    best_by = [value]
    etas = [eta]
    rose = []
    for k in range(1, steps + 1):
        z = step(at, grad, eta)
        ahead = z if k == 1 else to_ball(at + 0.75 * (z - at) + 0.25 * (at - before), x, norm, eps)
        before, at = at, ahead
        last_value = value
        value, grad = value_and_gradient(at)
        rose.append(value > last_value)
        best = max(best, (value, at, grad), key=lambda iterate: iterate[0])
        best_by.append(best[0])
        etas.append(eta)
        if k in w and k < steps:
            last = w[w.index(k) - 1]
            few = sum(rose[last:k]) < 0.75 * (k - last)
            unchanged = etas[last] == etas[k] and best_by[last] == best_by[k]
            if few or unchanged:
                eta /= 2
                before = at
                value, at, grad = best
    return at, best[1]


def sparse_ascent(
    f: Callable[[Tensor], Tensor], x: Tensor, eps: float, steps: int
) -> tuple[Tensor, Tensor]:
    """APGD for l1 of Croce & Hein 2021 for one image.

    Gives the last and the best iterate of the last of the three radii.
    """
    x_adv = x
    d = x.numel()
    shares = ((3, 0.3), (2, 0.3), (1, 0.4))
    for stage, (factor, share) in enumerate(shares):
        radius = factor * eps
        count = round(share * steps)
        at = to_ball(x_adv, x, "l1", radius)
        moved = d / 5 if stage == 0 else float((at != x).sum()) / 1.5
        eta = radius
        every = math.ceil(0.04 * count)
        grad = best = best_grad = at
        best_value = -math.inf
        for k in range(count + 1):
            if k:
                sizes = sorted(grad.abs().flatten().tolist(), reverse=True)
                size = sizes[min(max(round(moved), 1), d) - 1]
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
    """The projection onto ball and box of l1, by bisection.

    It looks for the common amount by which the changes shrink.
    """
    delta = z - x
    low = 0.0
    high = float(delta.abs().max())

    def shrink(amount: float) -> Tensor:
        shrunk = delta.sign() * (delta.abs() - amount).clamp_min(0)
        return ((x + shrunk).clamp(0, 1) - x) * (delta.abs() > amount)

    if shrink(0.0).abs().sum() <= eps:
        return x + shrink(0.0)
    for _ in range(60):
        middle = (low + high) / 2
        if shrink(middle).abs().sum() > eps:
            low = middle
        else:
            high = middle
    return x + shrink(high)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_trajectory_is_that_of_the_papers(norm: str, loss: str) -> None:
    """Every image of a batch against a literal transcription for one image.

    The model is declared stochastic, so that none leaves within so few draws.
    """
    steps = 40
    model, x, y, eps = hills(eps={"linf": "1/10", "l2": "1/2", "l1": "3/4"}[norm])
    x_adv = run(model, x, y, norm, eps, loss=loss, steps=steps, from_x=True, stochastic=True)
    for i in range(len(x)):

        def f(z: Tensor, i: int = i) -> Tensor:
            return LOSSES[loss](model(z), y[i : i + 1]).sum()

        image = x[i : i + 1]
        size = float(eps)
        if norm == "l1":
            last, best = sparse_ascent(f, image, size, steps)
        else:
            last, best = ascent(f, image, norm, size, steps)
        assert torch.allclose(x_adv[0, i], last[0], atol=1e-6)
        assert torch.allclose(x_adv[1, i], best[0], atol=1e-6)
        assert (NORMS[norm].distance(x_adv[:, i] - x[i]) <= size + 1e-12).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_stage_begins_at_the_best_of_the_last_put_into_its_ball(norm: str) -> None:
    model, x, y, eps = hills(eps={"linf": "1/10", "l2": "1/2"}[norm])
    knobs = {"loss": "margin", "steps": 40, "from_x": True, "wide": 3.0}
    x_adv = run(model, x, y, norm, eps, stochastic=True, **knobs)
    for i in range(len(x)):

        def f(z: Tensor, i: int = i) -> Tensor:
            return LOSSES["margin"](model(z), y[i : i + 1]).sum()

        image = x[i : i + 1]
        last = best = image
        for times, count in ((3, 12), (2, 12), (1, 16)):
            size = times * float(eps)
            start = to_ball(best, image, norm, size)
            last, best = ascent(f, image, norm, size, count, start)
        assert torch.allclose(x_adv[0, i], last[0], atol=1e-6)
        assert torch.allclose(x_adv[1, i], best[0], atol=1e-6)
        assert (NORMS[norm].distance(x_adv[:, i] - x[i]) <= float(eps) + 1e-12).all()


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == {0, 22, 41, 57, 70, 80, 87, 93, 99}
    assert checkpoints(1000) == {0, 220, 410, 570, 700, 800, 870, 930, 990}
    assert checkpoints(10) == {0, 3, 5, 6, 7, 8, 9, 10}
    assert checkpoints(1) == {0, 1}


def test_the_step_is_halved_by_either_condition_and_by_no_other() -> None:
    """Five examples of 100 steps, at the checkpoints 22 and 41.

    Too few rises are fewer than 16.5 of 22, and than 14.25 of 19.
    """
    step_sizes = Halving(torch.zeros(5, 1, 2, 2), "linf", 0.5, 100, 0.75)
    rows = torch.arange(5)
    best = torch.zeros(5, 1, 2, 2)

    def check(i: int, rises: list[int], best_loss: list[float]) -> list[int]:
        counted = torch.tensor(rises)
        back = step_sizes.check(i, rows, counted, torch.tensor(best_loss), best)
        assert i not in checkpoints(100) or not counted.any(), "counted anew from here"
        return [int(row) for row in back]

    assert check(0, [0] * 5, [1.0] * 5) == []
    assert check(21, [0] * 5, [1.0] * 5) == []
    assert step_sizes.size.tolist() == [1.0] * 5, "twice the radius"
    #                     too few, enough, none better, none better and too few, enough
    assert check(22, [16, 17, 20, 3, 22], [2.0, 2.0, 1.0, 1.0, 2.0]) == [0, 2, 3]
    #                     halved just now and none better: no; not halved and none better: yes
    assert check(41, [15, 14, 15, 14, 19], [2.0, 3.0, 1.0, 1.0, 2.0]) == [1, 3, 4]
    assert step_sizes.size.tolist() == [0.5, 0.5, 0.5, 0.25, 0.5]
    short = Halving(torch.zeros(2, 1, 2, 2), "linf", 0.5, 18, 0.75)
    short.check(0, rows[:2], torch.zeros(2), torch.zeros(2), best)
    back = short.check(4, rows[:2], torch.tensor([3, 2]), torch.ones(2), best)
    assert back.tolist() == [1], "three of four are not fewer than 75%"


def test_the_sparsity_of_l1_follows_the_best_iterate() -> None:
    x = torch.full((3, 1, 5, 10), 0.5)
    step_sizes = Sparsity(x, x, 2.0, 100, fresh=True)
    assert step_sizes.changed.tolist() == pytest.approx([15] * 3), (
        "a fifth of the coordinates times 1.5"
    )
    best = x.clone()
    rows = torch.arange(3)
    for i, count in enumerate((14, 15, 40)):
        best[i].view(-1)[:count] = 0.6
    assert step_sizes.check(3, rows, rows, rows, best).tolist() == []
    assert step_sizes.check(4, rows, rows, rows, best).tolist() == [0]
    assert step_sizes.changed.tolist() == [14, 15, 40]
    assert step_sizes.size.tolist() == pytest.approx([2, 2 / 1.5, 2 / 1.5])
    for i in range(8, 80, 4):
        assert step_sizes.check(i, rows, rows, rows, best).tolist() == []
    assert step_sizes.size.tolist() == pytest.approx([0.2] * 3), "a tenth of the radius at least"
    best[1].view(-1)[:7] = 0.5
    best[2].view(-1)[:2] = 0.5
    assert step_sizes.check(80, rows, rows, rows, best).tolist() == [1], "38 of 40 are 95%"
    assert step_sizes.size.tolist() == pytest.approx([0.2, 2, 0.2])
    grad = torch.arange(50.0).view(1, 1, 5, 10).repeat(3, 1, 1, 1) - 20.3
    step = step_sizes.move(81, rows, x, x, grad) - x
    assert (step != 0).flatten(1).sum(1).tolist() == [9, 5, 25]
    assert step.flatten(1).abs().sum(1).tolist() == pytest.approx([0.2, 2, 0.2], rel=1e-4)
    assert Sparsity(x, best, 2.0, 100, fresh=False).changed.tolist() == [14, 8, 38]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 99, 100])
def test_the_radii_of_a_shrinking_ball_share_the_steps(steps: int) -> None:
    stages = plan_stages("l1", 2.0, steps)
    assert sum(count for _, count in stages) == steps
    assert all(count > 0 for _, count in stages)
    assert stages[-1][0] == 2.0
    assert steps < 100 or stages == [(6.0, 30), (4.0, 30), (2.0, 40)]
    assert plan_stages("l2", 2.0, steps) == plan_stages("l1", 2.0, steps, 1.0) == [(2.0, steps)]
    assert plan_stages("l2", 2.0, steps, 3.0) == stages
    radii = [radius for radius, _ in plan_stages("linf", 2.0, steps, 2.0)]
    assert steps < 3 or radii == [4.0, 3.0, 2.0]


def test_the_projection_onto_ball_and_box_is_the_nearest_point() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, 4, 5, generator=generator, dtype=torch.float64)
    x[:, :, 0] = 0.0
    x[:, :, 1] = 1.0
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    z = x + noise * torch.logspace(-2, 1, 40, dtype=torch.float64).view(40, 1, 1, 1)
    for eps in (0.01, 0.5, 3.0, 30.0):
        projected = project_l1_in_box(z, x, eps)
        expected = torch.stack([nearest(z[i], x[i], eps) for i in range(40)])
        assert torch.allclose(projected, expected, atol=1e-9)
        assert projected.min() >= -1e-12
        assert projected.max() <= 1 + 1e-12
        assert (NORMS["l1"].distance(projected - x) <= eps + 1e-9).all()
    assert torch.equal(project_l1_in_box(x, x, 0.5), x)
    image = torch.tensor([[[[0.9, 0.5]]]], dtype=torch.float64)
    # a change past the edge keeps the edge, 0.1 of 0.4: the rest of the ball goes to the other
    projected = project_l1_in_box(image + torch.tensor([2.0, 1.0]), image, 0.4)
    assert projected.flatten().tolist() == pytest.approx([1.0, 0.8])
