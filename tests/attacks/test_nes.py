"""Estimated gradients, draws of stochastic defences, Gaussian noise: each against what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import score
from bench.attacks.draws import draw_margins
from bench.attacks.losses import ROWS
from bench.attacks.noise import SCALES, gaussian
from bench.judging.norms import NORMS, to_ball
from bench.judging.target import Target, margin
from tests.attacks.linear import TINY, Problem, Wrapped, candidates, two_classes


class Bowl(nn.Module):
    """A margin of class 1 that is quadratic in the image, so that antithetic differences are exact; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.centre, self.curve, self.seen = (
            torch.rand(64, generator=generator),
            torch.rand(64, generator=generator),
            [],
        )

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        half = ((x.flatten(1) - self.centre) ** 2 * self.curve).sum(1)
        return torch.stack([half - 50, 50 - half], 1)


class Dice(nn.Module):
    """Margins that are the image's mean plus noise of deviation 1."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        return torch.stack([torch.zeros(len(x)), x.mean((1, 2, 3)) + torch.randn(len(x))], 1)


@pytest.mark.parametrize("directions", [score.signs, score.gaussians])
def test_the_estimate_is_the_gradient(directions: Callable[[Tensor, int], Tensor]) -> None:
    problem = two_classes(batch=3)
    normal = problem.model.weight[1] - problem.model.weight[0]
    truth = (normal * torch.where(problem.y == 0, 1.0, -1.0).unsqueeze(1)).view_as(problem.x)
    torch.manual_seed(0)
    grad, around = score.estimate(
        problem.target("score"), problem.x, problem.y, 4000, 0.01, directions, 1
    )
    assert torch.cosine_similarity(grad.flatten(1), truth.flatten(1)).min() > 0.98
    assert (
        (grad * truth).flatten(1).sum(1) / (truth**2).flatten(1).sum(1)
    ).tolist() == pytest.approx([1, 1, 1], rel=0.1)
    assert torch.allclose(around, margin(problem.model(problem.x), problem.y), atol=1e-4), (
        "pairs cancel"
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nes_steps_along_the_running_mean_of_the_estimates(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an orthogonal basis for directions the estimate is exact, and each iterate is known."""
    basis = 8 * torch.eye(64).view(1, 64, 1, 8, 8)
    monkeypatch.setattr(score, "gaussians", lambda x, count: basis.expand(len(x), -1, -1, -1, -1))
    model, eps, steps = Bowl(), 0.05, 6
    x, y = (
        0.3 + 0.4 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([1, 1]),
    )
    problem = Problem(model, x, y, {})
    last, best = candidates(
        problem,
        "nes",
        norm,
        eps,
        problem.target("score"),
        steps=steps,
        samples=64,
        delta=0.004,
        step=0.3,
        momentum=0.6,
    )
    x_adv, heading, visited = x, torch.zeros_like(x), []
    for i in range(steps):
        visited.append(x_adv)
        grad = (4 * (x_adv.flatten(1) - model.centre) * model.curve).view_as(x)
        heading = 0.6 * heading + 0.4 * grad
        x_adv = to_ball(
            x_adv
            + 0.15 * eps * (1 + math.cos(math.pi * i / steps)) * NORMS[norm].steepest(heading),
            x,
            norm,
            eps,
        )
    assert torch.allclose(last, x_adv, atol=1e-4)
    gaps = torch.stack([margin(model(one), y) for one in visited])
    assert torch.allclose(
        best, torch.stack([visited[int(gaps[:, i].argmax())][i] for i in range(2)]), atol=1e-4
    )


@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_an_example_leaves_when_it_is_fooled_and_changes_nothing_for_the_others(name: str) -> None:
    problem = two_classes(batch=6)
    halfway = Problem(
        problem.model, problem.x, torch.where(torch.arange(6) < 3, problem.y, 1 - problem.y), {}
    )
    target = problem.target("score")
    last, best = candidates(halfway, name, "linf", 1e-4, target, steps=5, samples=7)
    assert target.forwards == 3 * 5 * 15 + 3 * 15
    assert torch.equal(last[3:], problem.x[3:])
    assert torch.equal(best[3:], problem.x[3:])
    assert (last[:3] != problem.x[:3]).any()


@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_the_best_iterate_of_a_stochastic_defence_is_that_with_the_highest_mean_of_the_estimate(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = two_classes(batch=2)
    said = iter(torch.tensor([[1.0, 5], [3, 4], [2, 6], [2.5, 5.5]]))
    visited = []

    def estimate(model: Target, x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        visited.append(x)
        return torch.ones_like(x), next(said)

    monkeypatch.setattr(score, "estimate", estimate)
    _, best = candidates(
        problem, name, "linf", 0.1, problem.target("score", stochastic=True), steps=4, step=0.1
    )
    assert torch.equal(best, torch.stack([visited[1][0], visited[2][1]]))


@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_eot_changes_nothing_on_a_deterministic_defence_and_is_counted_on_a_stochastic_one(
    name: str,
) -> None:
    problem = two_classes(batch=4)
    targets = [problem.target("score") for _ in range(2)]
    one, four = (
        candidates(problem, name, "l2", 0.05, target, **TINY[name], eot=eot)
        for target, eot in zip(targets, (1, 4), strict=True)
    )
    assert torch.equal(one, four)
    assert targets[0].forwards == targets[1].forwards
    targets = [problem.target("score", stochastic=True) for _ in range(2)]
    made = [
        candidates(problem, name, "l2", 0.05, target, **TINY[name], eot=eot)
        for target, eot in zip(targets, (1, 4), strict=True)
    ]
    assert torch.allclose(made[0], made[1], atol=1e-5), (
        "declared stochastic, and yet every draw is the same"
    )
    assert [target.forwards for target in targets] == [4 * 3 * 11, 4 * 4 * 3 * 11]


def test_draw_margins_are_independent_draws_in_their_place() -> None:
    images = torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 4)
    model = Dice()
    target = Target(model, access="score", stochastic=True, classes=2)
    torch.manual_seed(0)
    gaps = draw_margins(target, images, torch.tensor([0, 0]), 5000)
    assert gaps.shape == (2, 3, 5000)
    assert torch.allclose(gaps.mean(2), images.mean((2, 3, 4)), atol=0.07)
    assert gaps.std(2).flatten().tolist() == pytest.approx([1] * 6, rel=0.05)
    assert target.forwards == 30000
    model.largest = 0
    draw_margins(target, torch.rand(40, 7, 1, 4, 4), torch.zeros(40, dtype=torch.long), 3)
    assert model.largest <= ROWS["cpu"]
    plain = draw_margins(target, images, torch.tensor([1, 1]), 1)
    assert plain.shape == (2, 3, 1)


def test_eot_steadies_the_estimate() -> None:
    problem = two_classes(batch=40, gap=0.1)
    noisy = Wrapped(problem.model, lambda logits, x: logits + torch.randn_like(logits))
    target = Target(noisy, access="score", stochastic=True, classes=2)
    torch.manual_seed(0)
    spread = []
    for draws in (1, 16):
        grad, around = score.estimate(target, problem.x, problem.y, 4, 0.01, score.gaussians, draws)
        spread.append(
            (
                float(grad.flatten(1).norm(dim=1).mean()),
                float((around - margin(problem.model(problem.x), problem.y)).std()),
            )
        )
    assert spread[0][0] == pytest.approx(4 * spread[1][0], rel=0.1)
    assert spread[0][1] == pytest.approx(4 * spread[1][1], rel=0.3)


def test_gaussian_noise_is_as_large_as_it_says() -> None:
    torch.manual_seed(0)
    x = torch.full((400, 3, 8, 8), 0.5)
    assert float(gaussian(x, "linf", 0.1).std()) == pytest.approx(0.1, rel=0.02)
    assert float((gaussian(x, "l2", 0.1) ** 2).flatten(1).sum(1).mean().sqrt()) == pytest.approx(
        0.1, rel=0.02
    )
    assert float(gaussian(x, "l1", 0.1).abs().flatten(1).sum(1).mean()) == pytest.approx(
        0.1, rel=0.02
    )
    few = gaussian(x, "l0", 5.9)
    assert (NORMS["l0"].distance(few) == 5).all()
    assert float(few[few != 0].std()) == pytest.approx(1, rel=0.05)
    assert ((few != 0).float().mean((0, 1)) > 0).all(), "every pixel has its turn"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_gaussian_noise_tries_its_scales_by_turns_within_the_ball(norm: str) -> None:
    model, eps = Bowl(), 3.0 if norm == "l0" else 0.05
    problem = Problem(model, torch.full((250, 1, 8, 8), 0.5), torch.ones(250, dtype=torch.long), {})
    (best,) = candidates(problem, "gaussian-noise", norm, eps, tries=6, scale=0.1)
    tried = torch.cat(model.seen[1:]).split(250)  # the first was asked for the number of classes
    sizes = [float((one - problem.x).std()) for one in tried]
    assert [size / sizes[0] for size in sizes] == pytest.approx(
        [scale / SCALES[0] for scale in SCALES] * 2, rel=0.06
    )
    gaps = torch.stack([margin(model(one), problem.y) for one in tried])
    assert torch.equal(best, torch.stack(tried)[gaps.argmax(0), torch.arange(250)])
    model.seen.clear()
    candidates(problem, "gaussian-noise", norm, eps, tries=3, scale=10.0)
    assert max(
        float(NORMS[norm].distance(one - problem.x).max()) for one in model.seen[1:]
    ) <= eps * (1 + 1e-5)
