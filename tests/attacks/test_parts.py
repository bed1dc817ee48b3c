"""The parts that attacks are made of, each against what it should be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import losses
from bench.attacks.decision import find_start
from bench.attacks.gradient import PGDOptions, pgd_loop, unit_gradient
from bench.attacks.losses import LOSSES, ROWS, margins, zero_nonfinite
from bench.attacks.onepixel import paint
from bench.judging.norms import NORMS, to_ball
from bench.judging.target import Target, margin
from bench.questions.eps import parse_eps
from bench.questions.spec import ThreatModel
from tests.attacks.linear import candidates, many_classes


class Waves(nn.Module):
    """A loss with many hills, so that the last iterate is seldom the best; keeps its queries."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(64, 40, generator=generator) * 4
        self.second = torch.randn(40, 5, generator=generator)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return (x.flatten(1) @ self.first).sin() @ self.second


def draw_images(count: int, seed: int = 2) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def run_pgd(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    early_stop: bool = False,
    **knobs: Any,
) -> Tensor:
    """The candidates of `pgd_loop`, with one restart and steps from 2*eps unless `knobs` differ."""
    options = PGDOptions(**{"restarts": 1, "step": 2.0, **knobs})
    return pgd_loop(model, x, y, threat, options, early_stop=early_stop)


def test_losses_on_logits_known_by_hand() -> None:
    logits = torch.tensor([[[3.0, 1.0, 0.0, -1.0], [1.0, 2.0, 5.0, 4.0]]])
    y = torch.tensor([[0, 1]])
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


def test_a_nonfinite_gradient_is_zeroed_for_the_whole_example() -> None:
    grad = torch.ones(4, 1, 2, 2)
    grad[1, 0, 0, 0] = torch.nan
    grad[3, 0, 1, 1] = -torch.inf
    assert zero_nonfinite(grad).flatten(1).sum(1).tolist() == [4, 0, 4, 0]


def test_margins_in_parts_are_those_of_the_whole() -> None:
    model = Waves()
    images = torch.rand(7, 2 * ROWS["cpu"] // 7 + 3, 1, 8, 8)
    y = torch.arange(7) % 5
    whole = margin(model(images.flatten(0, 1)), y.repeat_interleave(images.shape[1])).view(7, -1)
    assert torch.allclose(
        margins(Target(model, access="score", classes=5), images, y), whole, atol=1e-5
    )
    assert max(map(len, model.seen[1:])) <= ROWS["cpu"]


def test_the_targeted_loss_reaches_its_maximum_on_planes() -> None:
    """Of three classes the loss has no denominator.

    Its maximum is the margin to the target plus eps times the dual norm of the normal.
    """
    problem = many_classes(3, batch=6)
    eps = 0.9 * float(problem.optimum["linf"].min())  # so that nothing falls and leaves
    target = problem.target()
    x_adv = candidates(
        problem, "pgd", "linf", eps, target, loss="ce+targeted", targets=2, restarts=2, steps=20
    )
    assert len(x_adv) == 3 * 2 * (1 + 2)
    logits = problem.model(problem.x)
    weight = problem.model.weight
    goals = losses.likeliest_wrong(logits, problem.y, 2)
    for run in range(4):
        goal = goals[run // 2]
        gap = (logits.gather(1, goal[:, None]) - logits.gather(1, problem.y[:, None])).squeeze(1)
        maximum = gap + eps * (weight[goal] - weight[problem.y]).abs().sum(1)
        answers = problem.model(x_adv[3 * (2 + run) + 1])  # of the iterate with the highest loss
        reached = answers.gather(1, goal[:, None]) - answers.gather(1, problem.y[:, None])
        assert torch.allclose(reached.squeeze(1), maximum, rtol=1e-3, atol=1e-4)
    assert target.forwards == 6 * (20 * 2 * 3 + 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_candidates_are_the_last_the_highest_loss_the_highest_margin(norm: str) -> None:
    model = Waves()
    x = draw_images(6)
    y = torch.arange(6) % 5
    threat = ThreatModel(norm, parse_eps({"linf": "0.1", "l2": "1"}[norm]))
    torch.manual_seed(0)
    x_adv = run_pgd(Target(model, classes=5), x, y, threat, loss="ce", steps=12)
    visited = torch.stack(model.seen)
    losses = torch.stack([LOSSES["ce"](model(images), y) for images in visited])
    gaps = torch.stack([margin(model(images), y) for images in visited])
    for i in range(6):
        assert torch.equal(x_adv[1, i], visited[losses[:, i].argmax(), i])
        assert torch.equal(x_adv[2, i], visited[gaps[:, i].argmax(), i])
    seen = [torch.equal(x_adv[0], images) for images in visited]
    assert not any(seen), "the last step is not looked at"


def test_a_broken_example_leaves_and_changes_nothing_for_the_others() -> None:
    model = Waves()
    x = draw_images(24)
    threat = ThreatModel("linf", parse_eps("0.01"))
    with torch.no_grad():
        y = model(x).argmax(1)
    model.seen.clear()

    def run(early_stop: bool) -> tuple[Tensor, int]:
        target = Target(model, classes=5)
        torch.manual_seed(0)
        knobs = {"loss": "ce+margin", "steps": 8, "restarts": 2, "momentum": 0.5}
        x_adv = run_pgd(target, x, y, threat, early_stop=early_stop, **knobs)
        return x_adv, target.forwards

    whole, all_calls = run(False)
    stopped, calls = run(True)
    broken = torch.stack([margin(model(images), y) > 0 for images in whole])  # (3*runs,B)
    first_run = broken.int().argmax(0) // 3  # (B,)
    survives = ~broken.any(0)
    assert survives.any()
    assert (~survives & (first_run == 0)).any()
    assert torch.equal(stopped[:, survives], whole[:, survives])
    for i in (~survives).nonzero().flatten().tolist():
        start = 3 * int(first_run[i])
        assert torch.equal(stopped[:start, i], whole[:start, i])
        breaking = margin(model(stopped[start + 2, i : i + 1]), y[i : i + 1]) > 0
        assert breaking.all(), "the iterate that broke it is a candidate"
    assert all_calls == 24 * 8 * 4
    assert int(survives.sum()) * 8 * 4 < calls < 0.8 * all_calls


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gradients_taken_in_parts_of_bounded_size_give_the_same_result(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Waves()
    x = draw_images(24)
    y = model(x).argmax(1)
    threat = ThreatModel(norm, parse_eps("0.02"))
    results = []
    for rows in (1000, 5, 1):
        monkeypatch.setattr(losses, "VALUES", rows * 64 + 63)
        model.seen.clear()
        torch.manual_seed(0)
        target = Target(model, classes=5)
        knobs = {"loss": "ce+margin", "steps": 6, "restarts": 2, "wide": 2.0}
        results.append(run_pgd(target, x, y, threat, early_stop=True, **knobs))
        assert max(map(len, model.seen)) == min(rows, 24)
    assert torch.allclose(results[0], results[1], atol=1e-5)
    assert torch.allclose(results[0], results[2], atol=1e-5)


def test_draws_count_towards_the_size_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Waves()
    x = torch.rand(7, 1, 8, 8)
    y = torch.zeros(7, dtype=torch.long)
    whole = losses.query_gradient(Target(model, classes=5), x, y, LOSSES["ce"], 4)
    monkeypatch.setattr(losses, "VALUES", 64 * 9)
    for eot, sizes in ((4, [8, 8, 8, 4]), (20, [20] * 7)):
        model.seen.clear()
        parts = losses.query_gradient(Target(model, classes=5), x, y, LOSSES["ce"], eot)
        assert list(map(len, model.seen)) == sizes, "an example's draws stay together"
        grad, value, logits = parts
        assert torch.allclose(grad, whole[0], atol=1e-5)
        assert torch.allclose(value, whole[1], atol=1e-5)
        assert torch.allclose(logits[:, :4], whole[2], atol=1e-5)


@pytest.mark.parametrize(("eot", "steps"), [(1, 10), (4, 3), (5, 2), (20, 2)])
def test_a_stochastic_example_leaves_after_ten_wrong_draws_of_two_steps(
    eot: int, steps: int
) -> None:
    x = torch.rand(6, 1, 8, 8)
    threat = ThreatModel("linf", parse_eps("0.01"))

    class Turns(nn.Module):
        """Wrong at every call, or at all but every `right`-th."""

        def __init__(self, right: int) -> None:
            super().__init__()
            self.right = right
            self.calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            sign = 1.0 if self.right and self.calls % self.right == 0 else -1.0
            return torch.stack([images.mean((1, 2, 3)) * 0 + sign, images.mean((1, 2, 3))], 1)

    def calls(right: int) -> float:
        target = Target(Turns(right), classes=2, stochastic=True)
        y = torch.zeros(6, dtype=torch.long)
        run_pgd(target, x, y, threat, early_stop=True, loss="ce", steps=30, eot=eot)
        return target.forwards / (6 * eot)

    assert calls(0) == steps
    assert calls(steps) == 30, "one right answer, and the count begins again"
    assert calls(steps + 1) == steps


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_ball_that_starts_wide_ends_at_eps(norm: str, steps: int) -> None:
    x = draw_images(6)
    threat = ThreatModel(norm, parse_eps("1/4"))
    knobs = {"loss": "margin", "steps": steps, "restarts": 2, "wide": 3.0}
    x_adv = run_pgd(Target(Waves(), classes=5), x, torch.arange(6) % 5, threat, **knobs)
    for images in x_adv.double():
        assert (NORMS[norm].distance(images - x.double()) <= 0.25 + 1e-12).all()


def test_momentum_adds_gradients_of_equal_size() -> None:
    model = Waves()
    x = 0.3 + 0.4 * draw_images(3, seed=3)
    y = torch.arange(3)
    threat = ThreatModel("l2", parse_eps("1/2"))
    knobs = {"loss": "ce", "steps": 3, "step": 1.0, "momentum": 0.5, "from_x": True}
    last = run_pgd(Target(model, classes=5), x, y, threat, **knobs)[0]
    x_adv = x
    momentum_buffer = torch.zeros_like(x)
    for i in range(3):
        leaf = x_adv.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        unit = grad / grad.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
        momentum_buffer = 0.5 * momentum_buffer + unit
        direction = momentum_buffer / momentum_buffer.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        size = 0.25 * (1 + math.cos(math.pi * i / 3))
        x_adv = to_ball(x_adv + size * direction, x, "l2", 0.5)
    assert torch.allclose(last, x_adv, atol=1e-5)
    assert unit_gradient(torch.zeros(1, 1, 2, 2)).abs().sum() == 0


def test_paint_puts_values_at_rows_and_columns() -> None:
    x = torch.zeros(1, 2, 2, 4)
    painted = paint(x, torch.tensor([[[[0.6, 0.3, 0.7, 0.9], [0.1, 0.99, 0.2, 0.4]]]]))[0, 0]
    expected = torch.zeros(2, 2, 4)
    expected[:, 1, 1] = torch.tensor([0.7, 0.9])
    expected[:, 0, 3] = torch.tensor([0.2, 0.4])
    assert torch.equal(painted, expected)


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
    target = Target(Steps(), access="decision", classes=2)
    points, wrong, used = find_start(target, x, y, "l2")
    assert wrong.all()
    assert used == 1
    # 0.1 and 0.35: the nearest image with another answer is the one without an answer.
    # 0.3 and 0.95 are wrong themselves; 0.9 takes 0.35.
    assert points.mean((1, 2, 3)).tolist() == pytest.approx([0.3, 0.3, 0.3, 0.35, 0.95])
    torch.manual_seed(0)
    alone, wrong, used = find_start(target, x[:1], y[:1], "l2")
    assert wrong.all()
    assert used > 1
    assert alone.mean() >= 0.5
