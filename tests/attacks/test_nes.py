"""Estimated gradients, draws of stochastic defences and Gaussian noise, each by a known truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import score
from bench.attacks.draws import draw_margins
from bench.attacks.losses import ROWS
from bench.attacks.noise import SCALES, draw_gaussian
from bench.attacks.score import EstimateOptions
from bench.judging.norms import NORMS, to_ball
from bench.judging.target import Target, margin
from tests.attacks.linear import TINY, Problem, Wrapped, candidates, two_classes


class Bowl(nn.Module):
    """A margin of class 1 that is quadratic in the image; keeps its queries.

    Antithetic differences are exact on it.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.centre = torch.rand(64, generator=generator)
        self.curve = torch.rand(64, generator=generator)
        self.seen: list[Tensor] = []

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


@pytest.mark.parametrize("directions", [score.random_signs, score.gaussians])
def test_the_estimate_is_the_gradient(directions: Callable[[Tensor, int], Tensor]) -> None:
    problem = two_classes(batch=3)
    normal = problem.model.weight[1] - problem.model.weight[0]
    truth = (normal * torch.where(problem.y == 0, 1.0, -1.0).unsqueeze(1)).view_as(problem.x)
    torch.manual_seed(0)
    options = EstimateOptions(
        steps=1, samples=4000, delta=0.01, eot=1, common=False, directions=directions
    )
    grad, nearby = score.estimate_gradient(problem.target("score"), problem.x, problem.y, options)
    assert torch.cosine_similarity(grad.flatten(1), truth.flatten(1)).min() > 0.98
    ratio = (grad * truth).flatten(1).sum(1) / (truth**2).flatten(1).sum(1)
    assert ratio.tolist() == pytest.approx([1, 1, 1], rel=0.1)
    at_image = margin(problem.model(problem.x), problem.y)
    assert torch.allclose(nearby, at_image, atol=1e-4), "pairs cancel"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nes_steps_along_the_running_mean_of_the_estimates(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an orthogonal basis for directions the estimate is exact, and each iterate is known."""
    basis = 8 * torch.eye(64).view(1, 64, 1, 8, 8)
    monkeypatch.setattr(score, "gaussians", lambda x, count: basis.expand(len(x), -1, -1, -1, -1))
    model = Bowl()
    eps = 0.05
    steps = 6
    x = 0.3 + 0.4 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([1, 1])
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
    x_adv = x
    momentum_buffer = torch.zeros_like(x)
    visited = []
    for i in range(steps):
        visited.append(x_adv)
        grad = (4 * (x_adv.flatten(1) - model.centre) * model.curve).view_as(x)
        momentum_buffer = 0.6 * momentum_buffer + 0.4 * grad
        size = 0.15 * eps * (1 + math.cos(math.pi * i / steps))
        x_adv = to_ball(x_adv + size * NORMS[norm].steepest(momentum_buffer), x, norm, eps)
    assert torch.allclose(last, x_adv, atol=1e-4)
    margins = torch.stack([margin(model(images), y) for images in visited])  # (steps,B)
    expected = torch.stack(visited)[margins.argmax(0), torch.arange(2)]
    assert torch.allclose(best, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_a_fooled_example_leaves_and_changes_nothing_for_the_others(name: str) -> None:
    problem = two_classes(batch=6)
    y = torch.where(torch.arange(6) < 3, problem.y, 1 - problem.y)
    halfway = Problem(problem.model, problem.x, y, {})
    target = problem.target("score")
    last, best = candidates(halfway, name, "linf", 1e-4, target, steps=5, samples=7)
    assert target.forwards == 3 * 5 * 15 + 3 * 15
    assert torch.equal(last[3:], problem.x[3:])
    assert torch.equal(best[3:], problem.x[3:])
    assert (last[:3] != problem.x[:3]).any()


@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_the_best_iterate_of_a_stochastic_defence_has_the_highest_estimate(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = two_classes(batch=2)
    margins = iter(torch.tensor([[1.0, 5], [3, 4], [2, 6], [2.5, 5.5]]))
    visited = []

    def estimate(model: Target, x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        visited.append(x)
        return torch.ones_like(x), next(margins)

    monkeypatch.setattr(score, "estimate_gradient", estimate)
    target = problem.target("score", stochastic=True)
    _, best = candidates(problem, name, "linf", 0.1, target, steps=4, step=0.1)
    assert torch.equal(best, torch.stack([visited[1][0], visited[2][1]]))


@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_eot_counts_on_stochastic_defences_alone(name: str) -> None:
    problem = two_classes(batch=4)

    def run(eot: int, stochastic: bool) -> tuple[Tensor, int]:
        target = problem.target("score", stochastic=stochastic)
        x_adv = candidates(problem, name, "l2", 0.05, target, **TINY[name], eot=eot)
        return x_adv, target.forwards

    single, single_calls = run(1, stochastic=False)
    averaged, averaged_calls = run(4, stochastic=False)
    assert torch.equal(single, averaged)
    assert single_calls == averaged_calls
    # declared stochastic, and yet every draw is the same
    single, single_calls = run(1, stochastic=True)
    averaged, averaged_calls = run(4, stochastic=True)
    assert torch.allclose(single, averaged, atol=1e-5)
    assert single_calls == 4 * 3 * 11
    assert averaged_calls == 4 * 4 * 3 * 11


def test_draw_margins_are_independent_draws_in_their_place() -> None:
    images = torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 4)
    model = Dice()
    target = Target(model, access="score", stochastic=True, classes=2)
    torch.manual_seed(0)
    margins = draw_margins(target, images, torch.tensor([0, 0]), 5000)
    assert margins.shape == (2, 3, 5000)
    assert torch.allclose(margins.mean(2), images.mean((2, 3, 4)), atol=0.07)
    assert margins.std(2).flatten().tolist() == pytest.approx([1] * 6, rel=0.05)
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
    at_image = margin(problem.model(problem.x), problem.y)
    lengths = []
    deviations = []
    for draws in (1, 16):
        options = EstimateOptions(
            steps=1, samples=4, delta=0.01, eot=draws, common=False, directions=score.gaussians
        )
        grad, nearby = score.estimate_gradient(target, problem.x, problem.y, options)
        lengths.append(float(grad.flatten(1).norm(dim=1).mean()))
        deviations.append(float((nearby - at_image).std()))
    assert lengths[0] == pytest.approx(4 * lengths[1], rel=0.1)
    assert deviations[0] == pytest.approx(4 * deviations[1], rel=0.3)


def test_gaussian_noise_is_as_large_as_it_says() -> None:
    torch.manual_seed(0)
    x = torch.full((400, 3, 8, 8), 0.5)
    assert float(draw_gaussian(x, "linf", 0.1).std()) == pytest.approx(0.1, rel=0.02)
    squares = (draw_gaussian(x, "l2", 0.1) ** 2).flatten(1).sum(1)
    assert float(squares.mean().sqrt()) == pytest.approx(0.1, rel=0.02)
    sizes = draw_gaussian(x, "l1", 0.1).abs().flatten(1).sum(1)
    assert float(sizes.mean()) == pytest.approx(0.1, rel=0.02)
    few = draw_gaussian(x, "l0", 5.9)
    assert (NORMS["l0"].distance(few) == 5).all()
    assert float(few[few != 0].std()) == pytest.approx(1, rel=0.05)
    assert ((few != 0).float().mean((0, 1)) > 0).all(), "every pixel has its turn"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_gaussian_noise_tries_its_scales_by_turns_within_the_ball(norm: str) -> None:
    model = Bowl()
    eps = 3.0 if norm == "l0" else 0.05
    problem = Problem(model, torch.full((250, 1, 8, 8), 0.5), torch.ones(250, dtype=torch.long), {})
    (best,) = candidates(problem, "gaussian-noise", norm, eps, tries=6, scale=0.1)
    tried = torch.cat(model.seen[1:]).split(250)  # the first was asked for the number of classes
    sizes = [float((images - problem.x).std()) for images in tried]
    scales = [scale / SCALES[0] for scale in SCALES] * 2
    assert [size / sizes[0] for size in sizes] == pytest.approx(scales, rel=0.06)
    margins = torch.stack([margin(model(images), problem.y) for images in tried])
    assert torch.equal(best, torch.stack(tried)[margins.argmax(0), torch.arange(250)])
    model.seen.clear()
    candidates(problem, "gaussian-noise", norm, eps, tries=3, scale=10.0)
    for images in model.seen[1:]:
        assert NORMS[norm].distance(images - problem.x).max() <= eps * (1 + 1e-5)
