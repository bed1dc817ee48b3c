"""Decision attacks on stochastic defences: majorities of labels, and every draw counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.attacks.decision import bisect, find_start, is_misclassified
from bench.judging.target import Target, margin
from bench.questions import registry
from tests.attacks.linear import Problem, Wrapped, candidates, two_classes


class Votes(nn.Module):
    """The image's first pixel times ten is how many of five draws name class 1."""

    def forward(self, x: Tensor) -> Tensor:
        return self.draws(x, 1)[:, 0]

    def draws(self, x: Tensor, k: int) -> Tensor:
        ones = (x[:, 0, 0, 0] * 10).round().unsqueeze(1) > torch.arange(k)
        return torch.stack([~ones, ones], 2).float()


def test_the_majority_of_the_draws_decides() -> None:
    target = Target(Votes(), access="decision", stochastic=True, classes=2)
    images = (torch.arange(6) / 10).view(1, 6, 1, 1, 1).expand(2, 6, 1, 2, 2)
    wrong = is_misclassified(target, images, torch.tensor([0, 1]), 5)
    assert wrong.tolist() == [
        [False, False, False, True, True, True],
        [True, True, True, False, False, False],
    ]
    assert target.forwards == 2 * 6 * 5
    half = is_misclassified(target, images[:1, 1:2], torch.tensor([0]), 2)
    assert not half.any(), "half of the draws are no majority"


def test_a_start_is_misclassified_by_most_draws() -> None:
    x = torch.tensor([0.1, 0.2, 0.3, 0.5]).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    target = Target(Votes(), access="decision", stochastic=True, classes=2)
    points, wrong, used = find_start(target, x, torch.tensor([0, 0, 0, 1]), "l2", 5)
    assert wrong.all()
    assert used == 1
    assert target.forwards == 20
    # 0.1 and 0.2 take the nearest that most draws call 1, not the nearest that one draw calls so;
    # 0.3 is wrong itself
    assert points[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.3, 0.3, 0.2])


def test_bisection_ends_where_most_draws_change() -> None:
    x = torch.tensor([0.1, 0.2, 0.3, 0.5]).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    target = Target(Votes(), access="decision", stochastic=True, classes=2)
    points = bisect(
        target,
        x,
        torch.zeros(4, dtype=torch.long),
        torch.full_like(x, 0.5),
        norm="l2",
        active=torch.tensor([True, True, False, False]),
        halvings=6,
        draws=5,
    )
    assert target.forwards == 2 * 6 * 5
    assert points[:2, 0, 0, 0].tolist() == pytest.approx([0.25, 0.25], abs=0.01)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("boundary", {"steps": 12}), ("hopskipjump", {"queries": 400, "initial": 20})],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_draw_is_a_query_and_the_budget_is_spent_to_the_last(
    name: str, knobs: dict[str, int], norm: str
) -> None:
    problem = two_classes(gap=1.0)
    for stochastic in (False, True):
        target = problem.target("decision", stochastic)
        candidates(problem, name, norm, 1e-4, target, **knobs, eot=3)
        full = knobs.get("queries") or (2 * 12 + 11) * (3 if stochastic else 1)
        assert target.forwards == full * len(problem.x)
        entry = registry.attacks.get(name)
        assert entry.facts.calls(entry.resolve({**knobs, "eot": 3}), stochastic) >= full


@pytest.mark.parametrize(
    ("name", "knobs"), [("boundary", {"steps": 12}), ("hopskipjump", {"queries": 300})]
)
def test_eot_changes_nothing_on_a_deterministic_defence(name: str, knobs: dict[str, int]) -> None:
    problem = two_classes(batch=4)
    single = candidates(problem, name, "l2", 0.01, **knobs, eot=1)
    five = candidates(problem, name, "l2", 0.01, **knobs, eot=5)
    assert torch.equal(single, five)


@pytest.mark.parametrize(
    ("name", "knobs"), [("boundary", {"steps": 100}), ("hopskipjump", {"queries": 4000})]
)
def test_majorities_hold_the_walk_on_the_misclassified_side(
    name: str, knobs: dict[str, int]
) -> None:
    """A tenth of the labels is wrong by chance.

    Believed one by one, they lead the walk to images that are right.
    """
    problem = two_classes()

    def flip(logits: Tensor, x: Tensor) -> Tensor:
        return torch.where(torch.rand(len(x), 1) < 0.1, logits.flip(1), logits)

    noisy = Problem(Wrapped(problem.model, flip), problem.x, problem.y, {})
    margins = []
    for eot in (1, 9):
        target = noisy.target("decision", stochastic=True)
        points = candidates(noisy, name, "l2", 1e-3, target, **knobs, eot=eot)[0]
        margins.append(margin(problem.model(points), problem.y))
    assert (margins[0] < 0).float().mean() > 0.8
    assert (margins[1] > -0.02 * problem.optimum["l2"]).float().mean() > 0.8
