"""The parts that attacks are made of, each against what it should be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import losses
from bench.attacks.decision import start
from bench.attacks.gradient import climb, unit
from bench.attacks.losses import LOSSES, ROWS, finite, margins
from bench.attacks.onepixel import paint
from bench.judging.norms import NORMS, to_ball
from bench.judging.target import Target, margin
from bench.questions.spec import ThreatModel, parse_eps
from tests.attacks.linear import candidates, many_classes


class Waves(nn.Module):
    """A loss with many hills, so that the last iterate is seldom the best; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = (
            torch.randn(64, 40, generator=generator) * 4,
            torch.randn(40, 5, generator=generator),
        )
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return (x.flatten(1) @ self.first).sin() @ self.second


def test_losses_on_logits_known_by_hand() -> None:
    logits, y = (
        torch.tensor([[[3.0, 1.0, 0.0, -1.0], [1.0, 2.0, 5.0, 4.0]]]),
        torch.tensor([[0, 1]]),
    )
    assert LOSSES["margin"](logits, y).tolist() == [[-2, 3]]
    assert LOSSES["dlr"](logits, y).tolist() == [[pytest.approx(-2 / 3), pytest.approx(3 / 3)]]
    assert LOSSES["ce"](logits, y).tolist() == [
        [
            pytest.approx(-math.log(math.exp(3) / sum(map(math.exp, (3, 1, 0, -1)))), abs=1e-5),
            pytest.approx(3.36, abs=0.1),
        ]
    ]
    assert LOSSES["dlr"](logits[..., :2], y[:, :1].expand(1, 2)).tolist() == [[-2, 1]], (
        "two classes have no third: the margin"
    )


def test_finite_zeroes_the_whole_example() -> None:
    grad = torch.ones(4, 1, 2, 2)
    grad[1, 0, 0, 0], grad[3, 0, 1, 1] = torch.nan, -torch.inf
    assert finite(grad).flatten(1).sum(1).tolist() == [4, 0, 4, 0]


def test_margins_in_parts_are_those_of_the_whole() -> None:
    model = Waves()
    images, y = torch.rand(7, 2 * ROWS["cpu"] // 7 + 3, 1, 8, 8), torch.arange(7) % 5
    whole = margin(model(images.flatten(0, 1)), y.repeat_interleave(images.shape[1])).view(7, -1)
    assert torch.allclose(
        margins(Target(model, access="score", classes=5), images, y), whole, atol=1e-5
    )
    assert max(map(len, model.seen[1:])) <= ROWS["cpu"]


def test_each_run_of_the_targeted_loss_goes_as_far_towards_its_class_as_a_plane_lets_it() -> None:
    """Of three classes the loss has no denominator: it ends at the margin to the target plus eps times the length of the normal in the dual norm."""
    problem = many_classes(3, batch=6)
    eps = 0.9 * float(problem.optimum["linf"].min())  # so that nothing falls and leaves
    target = problem.target()
    made = candidates(
        problem, "pgd", "linf", eps, target, loss="ce+targeted", targets=2, restarts=2, steps=20
    )
    assert len(made) == 3 * 2 * (1 + 2)
    logits, weight = problem.model(problem.x), problem.model.weight
    goals = losses.likely(logits, problem.y, 2)
    for run in range(4):
        goal = goals[run // 2]
        gap = (logits.gather(1, goal[:, None]) - logits.gather(1, problem.y[:, None])).squeeze(1)
        reach = gap + eps * (weight[goal] - weight[problem.y]).abs().sum(1)
        steepest = problem.model(made[3 * (2 + run) + 1])
        found = (
            steepest.gather(1, goal[:, None]) - steepest.gather(1, problem.y[:, None])
        ).squeeze(1)
        assert torch.allclose(found, reach, rtol=1e-3, atol=1e-4)
    assert target.forwards == 6 * (20 * 2 * 3 + 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_candidates_are_the_last_the_highest_loss_and_the_highest_margin(norm: str) -> None:
    model, x, y = (
        Waves(),
        torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)),
        torch.arange(6) % 5,
    )
    eps = {"linf": "0.1", "l2": "1"}[norm]
    torch.manual_seed(0)
    made = climb(
        Target(model, classes=5),
        x,
        y,
        ThreatModel(norm, parse_eps(eps)),
        loss="ce",
        steps=12,
        restarts=1,
        step=2.0,
        wide=1.0,
        momentum=0.0,
    )
    visited = torch.stack(model.seen)
    losses = torch.stack([LOSSES["ce"](model(one), y) for one in visited])
    gaps = torch.stack([margin(model(one), y) for one in visited])
    for i in range(6):
        assert torch.equal(made[1, i], visited[losses[:, i].argmax(), i])
        assert torch.equal(made[2, i], visited[gaps[:, i].argmax(), i])
    assert not any(torch.equal(made[0], one) for one in visited), "the last step is not looked at"


def test_a_broken_example_leaves_the_batch_for_good_and_changes_nothing_for_the_others() -> None:
    model, x = Waves(), torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = model(x).argmax(1)
    model.seen.clear()

    def run(spare: bool) -> tuple[Tensor, int]:
        target = Target(model, classes=5)
        torch.manual_seed(0)
        threat = ThreatModel("linf", parse_eps("0.01"))
        made = climb(
            target,
            x,
            y,
            threat,
            loss="ce+margin",
            steps=8,
            restarts=2,
            step=2.0,
            wide=1.0,
            momentum=0.5,
            spare=spare,
        )
        return made, target.forwards

    (whole, all_calls), (less, calls) = run(False), run(True)
    broken = [(margin(model(one), y) > 0) for one in whole]
    first = [
        int(torch.stack([gone[i] for gone in broken]).int().argmax()) // 3
        if any(gone[i] for gone in broken)
        else None
        for i in range(24)
    ]
    assert None in first
    assert 0 in first
    for i, run_of in enumerate(first):
        if run_of is None:
            assert torch.equal(less[:, i], whole[:, i])
        else:
            assert torch.equal(less[: 3 * run_of, i], whole[: 3 * run_of, i])
            assert (margin(model(less[3 * run_of + 2, i : i + 1]), y[i : i + 1]) > 0).all(), (
                "the iterate that broke it is a candidate"
            )
    assert all_calls == 24 * 8 * 4
    assert first.count(None) * 8 * 4 < calls < 0.8 * all_calls


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gradients_are_taken_in_parts_of_bounded_size_which_changes_no_result(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Waves(), torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    y = model(x).argmax(1)
    made = []
    for rows in (1000, 5, 1):
        monkeypatch.setattr(losses, "VALUES", rows * 64 + 63)
        model.seen.clear()
        torch.manual_seed(0)
        target = Target(model, classes=5)
        threat = ThreatModel(norm, parse_eps("0.02"))
        knobs = {"steps": 6, "restarts": 2, "step": 2.0, "wide": 2.0, "momentum": 0.0}
        made.append(climb(target, x, y, threat, loss="ce+margin", spare=True, **knobs))
        assert max(map(len, model.seen)) == min(rows, 24)
    assert torch.allclose(made[0], made[1], atol=1e-5)
    assert torch.allclose(made[0], made[2], atol=1e-5)


def test_draws_count_towards_the_size_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = Waves(), torch.rand(7, 1, 8, 8), torch.zeros(7, dtype=torch.long)
    whole = losses.answers(Target(model, classes=5), x, y, LOSSES["ce"], 4)
    monkeypatch.setattr(losses, "VALUES", 64 * 9)
    for eot, sizes in ((4, [8, 8, 8, 4]), (20, [20] * 7)):
        model.seen.clear()
        parts = losses.answers(Target(model, classes=5), x, y, LOSSES["ce"], eot)
        assert list(map(len, model.seen)) == sizes, "an example's draws stay together"
        assert all(
            torch.allclose(one, other[:, :4] if other.dim() == 3 else other, atol=1e-5)
            for one, other in zip(whole, parts, strict=True)
        )


@pytest.mark.parametrize(("eot", "steps"), [(1, 10), (4, 3), (5, 2), (20, 2)])
def test_a_stochastic_defences_example_leaves_after_ten_misclassified_draws_of_two_steps_in_a_row(
    eot: int, steps: int
) -> None:
    x, threat = torch.rand(6, 1, 8, 8), ThreatModel("linf", parse_eps("0.01"))

    class Turns(nn.Module):
        """Wrong at every call, or at all but every `right`-th."""

        def __init__(self, right: int) -> None:
            super().__init__()
            self.right, self.calls = right, 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            sign = 1.0 if self.right and self.calls % self.right == 0 else -1.0
            return torch.stack([images.mean((1, 2, 3)) * 0 + sign, images.mean((1, 2, 3))], 1)

    def calls(right: int) -> float:
        target = Target(Turns(right), classes=2, stochastic=True)
        y = torch.zeros(6, dtype=torch.long)
        climb(
            target,
            x,
            y,
            threat,
            loss="ce",
            steps=30,
            restarts=1,
            step=2.0,
            wide=1.0,
            momentum=0.0,
            eot=eot,
            spare=True,
        )
        return target.forwards / (6 * eot)

    assert calls(0) == steps
    assert calls(steps) == 30, "one right answer, and the count begins again"
    assert calls(steps + 1) == steps


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_ball_that_starts_wide_ends_at_eps(norm: str, steps: int) -> None:
    x, y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 5
    made = climb(
        Target(Waves(), classes=5),
        x,
        y,
        ThreatModel(norm, parse_eps("1/4")),
        loss="margin",
        steps=steps,
        restarts=2,
        step=2.0,
        wide=3.0,
        momentum=0.0,
    )
    assert all(
        (NORMS[norm].distance(one.double() - x.double()) <= 0.25 + 1e-12).all() for one in made
    )


def test_momentum_adds_gradients_of_equal_size() -> None:
    model, x, y = (
        Waves(),
        0.3 + 0.4 * torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3)),
        torch.arange(3),
    )
    threat = ThreatModel("l2", parse_eps("1/2"))
    made = climb(
        Target(model, classes=5),
        x,
        y,
        threat,
        loss="ce",
        steps=3,
        restarts=1,
        step=1.0,
        wide=1.0,
        momentum=0.5,
        from_x=True,
    )[0]
    x_adv, heading = x, torch.zeros_like(x)
    for i in range(3):
        leaf = x_adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(
            nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf
        )
        heading = 0.5 * heading + grad / grad.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
        length = heading.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        x_adv = to_ball(
            x_adv + 0.25 * (1 + math.cos(math.pi * i / 3)) * heading / length, x, "l2", 0.5
        )
    assert torch.allclose(made, x_adv, atol=1e-5)
    assert unit(torch.zeros(1, 1, 2, 2)).abs().sum() == 0


def test_paint_puts_values_at_rows_and_columns() -> None:
    x = torch.zeros(1, 2, 2, 4)
    one = paint(x, torch.tensor([[[[0.6, 0.3, 0.7, 0.9], [0.1, 0.99, 0.2, 0.4]]]]))[0, 0]
    expected = torch.zeros(2, 2, 4)
    expected[:, 1, 1], expected[:, 0, 3] = torch.tensor([0.7, 0.9]), torch.tensor([0.2, 0.4])
    assert torch.equal(one, expected)


def test_starts_are_the_image_itself_its_nearest_neighbour_or_noise() -> None:
    level = torch.tensor([0.1, 0.3, 0.35, 0.9, 0.95]).view(5, 1, 1, 1)
    x = level.expand(5, 1, 4, 4).contiguous()

    class Steps(nn.Module):
        """Class 1 from 0.5 on; no answer at 0.3."""

        def forward(self, images: Tensor) -> Tensor:
            mean = images.mean((1, 2, 3))
            logits = torch.stack([0.5 - mean, mean - 0.5], 1)
            return torch.where(((mean - 0.3).abs() < 1e-4).unsqueeze(1), torch.nan, logits)

    y = torch.tensor([0, 0, 0, 1, 0])
    z, found, used = start(Target(Steps(), access="decision", classes=2), x, y, "l2")
    assert found.all()
    assert used == 1
    # 0.1 and 0.35: the nearest image with another answer is the one without an answer; 0.3 and 0.95 are wrong themselves; 0.9 takes 0.35
    assert z.mean((1, 2, 3)).tolist() == pytest.approx([0.3, 0.3, 0.3, 0.35, 0.95])
    torch.manual_seed(0)
    alone, found, used = start(Target(Steps(), access="decision", classes=2), x[:1], y[:1], "l2")
    assert found.all()
    assert used > 1
    assert alone.mean() >= 0.5
