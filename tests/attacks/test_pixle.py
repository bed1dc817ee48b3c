"""The rearrangement attack: what it may change, what it must find, what it asks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.attacks.pixle import paste, propose
from bench.judging.target import margin
from tests.attacks.linear import Linear, Problem, Wrapped, candidates, two_classes


def colourful(lead: float) -> Problem:
    """Images whose pixels differ, all of class 0 by about `lead`."""
    linear = two_classes(channels=2, size=6, batch=6).model
    x = torch.rand(6, 2, 6, 6, generator=torch.Generator().manual_seed(4))
    assert isinstance(linear, Linear)
    return Problem(
        Linear(linear.weight, linear.bias + torch.tensor([lead, -lead]) / 2),
        x,
        torch.zeros(6, dtype=torch.long),
        {},
    )


def test_one_pixel_finds_the_best_of_all_copies() -> None:
    problem = colourful(5.0)
    pairs = torch.cartesian_prod(torch.arange(36), torch.arange(36)).T  # (2,36*36)
    images = paste(problem.x, pairs.reshape(2, 1, -1, 1).expand(-1, 6, -1, -1)).flatten(0, 1)
    margins = margin(problem.model(images), problem.y.repeat_interleave(36 * 36)).view(6, -1)
    points = candidates(problem, "pixle", "l0", 1.0, steps=50, samples=250)[0]
    assert torch.allclose(margin(problem.model(points), problem.y), margins.amax(1), atol=1e-5)


def test_more_pixels_reach_further_and_no_budget_is_passed() -> None:
    problem = colourful(5.0)
    margins = []
    for eps in (1.0, 3.9, 8.0):
        points = candidates(problem, "pixle", "l0", eps, steps=40, samples=40)[0]
        changed = (points != problem.x).any(1)
        assert changed.flatten(1).sum(1).max() <= int(eps)
        for image, before, mask in zip(points, problem.x, changed, strict=True):
            colours = {tuple(colour) for colour in before.flatten(1).T.tolist()}
            new = {tuple(colour) for colour in image[:, mask].T.tolist()}
            assert new <= colours, "every new value is that of some pixel"
        margins.append(margin(problem.model(points), problem.y))
    assert (margins[0] > margin(problem.model(problem.x), problem.y)).all()
    assert (margins[1] > margins[0] + 0.1).all()
    assert (margins[2] > margins[1] + 0.05).all()
    assert torch.equal(candidates(problem, "pixle", "l0", 0.9)[0], problem.x)


def test_rounds_build_on_the_rounds_before() -> None:
    problem = colourful(5.0)

    def margins(steps: int) -> Tensor:
        points = candidates(problem, "pixle", "l0", 5.0, steps=steps, samples=20)[0]
        return margin(problem.model(points), problem.y)

    assert (margins(60) > margins(1) + 0.05).all()


def test_copies_come_from_one_rectangle_row_by_row() -> None:
    torch.manual_seed(0)
    copies = torch.full((2, 3, 7), -1)
    goal, source = propose(copies, 4000, 5, 4)
    new = source >= 0
    assert torch.equal(new, goal >= 0)
    sizes = new.sum(2)
    assert sizes.min() == 1
    assert sizes.max() == 7
    assert (new.float().mean((0, 1)) > 0.3).all(), "every copy gives way in its turn"
    assert source.max() == 19
    assert goal[new].unique().tolist() == list(range(20))
    for index in range(200):
        taken = source[0, index][new[0, index]]
        rows = taken // 4
        columns = taken % 4
        height = int(rows.max() - rows.min()) + 1
        width = int(columns.max() - columns.min()) + 1
        size = int(sizes[0, index])
        assert len(taken.unique()) == size, "no pixel is taken twice"
        assert height * width - size < width, "the rectangle is full but for its last row"


def test_paste_takes_values_from_the_image_itself() -> None:
    x = torch.arange(8.0).view(1, 2, 2, 2)
    x_adv = paste(x, torch.tensor([[[[0, 1], [3, 3]]], [[[1, 0], [2, 2]]]]))
    assert x_adv[0].flatten(2).tolist() == [
        [[1, 0, 2, 3], [5, 4, 6, 7]],
        [[0, 1, 2, 2], [4, 5, 6, 6]],
    ]


@pytest.mark.parametrize("stochastic", [False, True])
def test_queries_are_counted_and_who_is_fooled_leaves(stochastic: bool) -> None:
    problem = colourful(5.0)
    target = problem.target("score", stochastic)
    x_adv = candidates(problem, "pixle", "l0", 2.0, target, steps=6, samples=7, eot=3)
    assert target.forwards == 6 * (1 + 6 * 7) * (3 if stochastic else 1)
    assert len(x_adv) == (4 if stochastic else 1)
    half = Problem(problem.model, problem.x, torch.tensor([0, 0, 0, 1, 1, 1]), {})
    target = half.target("score", stochastic)
    candidates(half, "pixle", "l0", 2.0, target, steps=6, samples=7, eot=3)
    assert target.forwards == (6 * (1 + 6 * 7) * 3 if stochastic else 3 * (1 + 6 * 7) + 3)


def test_noise_does_not_keep_a_round_from_being_judged() -> None:
    """On a stochastic defence one lucky draw early on holds its place.

    The winners of later rounds are candidates all the same.
    """
    problem = colourful(5.0)
    calls = []

    def luck(logits: Tensor, x: Tensor) -> Tensor:
        calls.append(len(x))
        return logits + (100 * torch.tensor([-1.0, 1.0]) if len(calls) == 1 else 0)

    lucky = Problem(Wrapped(problem.model, luck), problem.x, problem.y, {})
    target = lucky.target("score", stochastic=True)
    calls.clear()
    x_adv = candidates(lucky, "pixle", "l0", 3.0, target, steps=6, samples=30, eot=1)
    with torch.no_grad():
        margins = torch.stack([margin(problem.model(images), problem.y) for images in x_adv])
    assert (margins > margin(problem.model(problem.x), problem.y) + 0.03).all()
