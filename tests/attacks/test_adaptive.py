"""The adaptive attack: each route defeats the defence that only it can defeat."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import losses
from bench.attacks.adaptive import Distance, FixedNoise, adaptive, route_names
from bench.attacks.gradient import PGDOptions, pgd_loop
from bench.errors import BadInput
from bench.judging.proposals import routes_of
from bench.judging.target import Target, is_correct, margin
from bench.questions import registry
from bench.questions.spec import ThreatModel
from tests.attacks.linear import Problem, two_classes

EPS = 1.1  # times the optimum


class Masked(nn.Module):
    """The linear model without a gradient, and the parts that a test gives it."""

    def __init__(self, model: nn.Module, **parts: object) -> None:
        super().__init__()
        self.model = model
        for name, value in parts.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.detach())
        return logits


def run_adaptive(
    problem: Problem,
    defence: nn.Module,
    *,
    stochastic: bool = False,
    norm: str = "linf",
    **knobs: int | str,
) -> dict[str, Tensor]:
    threat = ThreatModel(norm, problem_eps(problem, norm), "white-box")
    torch.manual_seed(0)
    target = Target(defence, stochastic=stochastic, classes=2)
    return adaptive(target, problem.x, problem.y, threat, **{"steps": 20, "eot": 4, **knobs})


def problem_eps(problem: Problem, norm: str) -> Fraction:
    return Fraction(EPS * float(problem.optimum[norm][0])).limit_denominator(10**6)


def is_broken(problem: Problem, images: Tensor) -> Tensor:
    return ~is_correct(problem.model(images), problem.y)


PARTS: dict[str, Callable[[nn.Module], dict[str, object]]] = {
    "soft": lambda model: {"surrogates": {"soft": model}},
    "base": lambda model: {"base": model},
    "presoftmax": lambda model: {"presoftmax": model},
    "identity": lambda model: {"purify": lambda x: x.detach(), "classify": model},
    "mean-logit": lambda model: {"per_draw": lambda x: torch.stack([model(x), model(x)], 1)},
}


@pytest.mark.parametrize("route", list(PARTS))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_declared_part_is_the_way_around_a_missing_gradient(route: str, norm: str) -> None:
    problem = two_classes()
    without = run_adaptive(problem, Masked(problem.model), norm=norm)
    assert not any(is_broken(problem, images).any() for images in without.values())
    masked = Masked(problem.model, **PARTS[route](problem.model))
    by_route = run_adaptive(problem, masked, norm=norm)
    assert is_broken(problem, by_route[route]).all()
    names = list(by_route)
    for name in names[names.index(route) + 1 :]:
        assert torch.equal(by_route[name], problem.x), "what has fallen is left alone"


class Torn(nn.Module):
    """The linear model, whose gradient is NaN while the margin is over half of the images'."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model = problem.model
        self.far = float(margin(problem.model(problem.x), problem.y).mean()) / 2
        self.surrogates = {"empty": lambda x: self.model(x) / 0.0, "near": self.near}
        self.queried = 0

    def logit_spread(self, logits: Tensor) -> Tensor:
        return -(logits[:, 0] - logits[:, 1]).abs()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        ill = 0 * ((x - x.detach()) ** 2).sum((1, 2, 3)).sqrt()[:, None]
        return logits + torch.where((self.logit_spread(logits) < self.far)[:, None], ill, 0)

    def near(self, x: Tensor) -> Tensor:
        """A surrogate that leads the right way while the defence does not, and from there back."""
        self.queried += len(x)
        logits: Tensor = self.model(x)
        return torch.where((self.logit_spread(logits) < self.far)[:, None], logits, -logits)


@pytest.mark.parametrize("loss", ["ce+margin", "targeted"])
def test_a_surrogate_lends_its_gradient_where_the_own_one_is_not_finite(loss: str) -> None:
    """Neither alone gets there: the one stands still, and the other turns back.

    The first surrogate has no finite gradient at all.
    """
    problem = two_classes()
    torn = Torn(problem)
    assert not is_broken(problem, run_adaptive(problem, torn, only="full", loss=loss)["full"]).any()
    assert torn.queried == 0, "a way that is tried alone gets no help"
    for alone in ("near", "empty"):
        assert not is_broken(
            problem, run_adaptive(problem, torn, only=alone, loss=loss)[alone]
        ).any()
    threat = ThreatModel("linf", problem_eps(problem, "linf"), "white-box")
    target = Target(torn, classes=2)
    by_route = adaptive(target, problem.x, problem.y, threat, loss=loss, steps=20, eot=4)
    assert list(by_route) == ["empty", "near", "warm", "full", "smoothed"]
    assert not any(is_broken(problem, by_route[name]).any() for name in ("empty", "near"))
    assert is_broken(problem, by_route["warm"]).all()
    assert target.nonfinite > 0, "the harness hears of it all the same"
    calls = registry.attacks.get("adaptive").facts.calls
    knobs = registry.attacks.get("adaptive").resolve({"loss": loss, "steps": 20, "eot": 4})
    assert target.forwards + 2 * target.backwards <= calls(knobs, False) * len(problem.x)


def test_a_finite_gradient_asks_no_surrogate_and_changes_no_draw() -> None:
    problem = two_classes()
    queries = []

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = problem.model(x)
            return logits

    def no_help() -> list[Target]:
        queries.append(True)
        return []

    options = PGDOptions(loss="ce", steps=4, restarts=1, step=2.0)
    threat = ThreatModel("linf", problem_eps(problem, "linf"), "white-box")
    for model, count in ((Whole(), 0), (Torn(problem), 4)):
        target = Target(model, classes=2)
        pgd_loop(target, problem.x, problem.y, threat, options, surrogate_models=no_help)
        assert len(queries) == count


def test_only_tries_the_named_routes_and_refuses_others() -> None:
    problem = two_classes()
    parts = {**PARTS["soft"](problem.model), **PARTS["base"](problem.model)}
    by_route = run_adaptive(problem, Masked(problem.model, **parts), only="full+base")
    assert list(by_route) == ["base", "full"]
    assert is_broken(problem, by_route["base"]).all()
    alone = run_adaptive(problem, Masked(problem.model, **parts), only="full")
    assert not is_broken(problem, alone["full"]).any(), "no other way has helped it"
    message = r"adaptive\[only=ful\]: this defence has no route 'ful'; did you mean 'full'\?"
    with pytest.raises(BadInput, match=message):
        run_adaptive(problem, Masked(problem.model, **parts), only="ful")


def test_the_latent_of_another_class_is_approached() -> None:
    problem = two_classes()
    normal = problem.model.weight[1] - problem.model.weight[0]
    masked = Masked(problem.model, latent=lambda x: (x.flatten(1) - 0.5) @ normal.unsqueeze(1))
    by_route = run_adaptive(problem, masked)
    assert is_broken(problem, by_route["latent"]).all()


@pytest.mark.parametrize(("route", "part"), [("latent", "latent"), ("purifier", "purify")])
def test_a_distance_in_parts_of_bounded_size_comes_to_the_same_end(
    route: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = two_classes()
    calls = {"latent": lambda x: x.flatten(1)[:, ::8], "purify": lambda x: 2 * x}
    sizes: list[int] = []

    def note_size(x: Tensor) -> Tensor:
        if x.requires_grad:
            sizes.append(len(x))
        return calls[part](x)

    results = []
    for images, seen in ((1000, {12}), (5, {5, 2})):
        monkeypatch.setattr(losses, "VALUES", images * 64 * 4)  # of four draws each
        sizes.clear()
        masked = Masked(problem.model, **{part: note_size})
        results.append(run_adaptive(problem, masked, only=route)[route])
        assert set(sizes) == seen
    assert torch.allclose(results[0], results[1], atol=1e-6)


def test_a_purifier_is_driven_away_from_the_image() -> None:
    problem = two_classes()
    by_route = run_adaptive(problem, Masked(problem.model, purify=lambda x: 2 * x))["purifier"]
    # what moves 2x farthest from the clean image is the whole ball's corner, away from zero
    eps = float(problem_eps(problem, "linf"))
    assert torch.allclose(by_route, (problem.x + eps).clamp(0, 1), atol=1e-6)


def test_the_order_does_not_depend_on_the_batch_and_names_are_not_doubled() -> None:
    model = two_classes().model
    everything = {
        **PARTS["base"](model),
        **PARTS["presoftmax"](model),
        **PARTS["identity"](model),
        "latent": model,
    }
    declared = Masked(model, **everything, surrogates={"classifier": model, "identity": model})
    target = Target(declared, classes=2, stochastic=True)
    assert route_names(target) == [
        "classifier",
        "identity",
        "presoftmax",
        "latent",
        "purifier",
        "fixed-noise",
        "warm",
        "full",
        "smoothed",
    ]
    assert route_names(Target(model, classes=2)) == ["warm", "full", "smoothed"]


def test_a_stochastic_example_is_left_alone_only_when_it_fell_ten_times() -> None:
    """A coin is right half of the time whatever the image.

    No route can end it, so every route is tried on every example.
    """
    problem = two_classes(batch=6)

    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = problem.model(x)
            return torch.where(torch.rand(len(x), 1) < 0.5, logits, logits.flip(1))

    by_route = run_adaptive(problem, Coin(), stochastic=True)
    assert list(by_route) == ["fixed-noise", "warm", "full", "smoothed"]
    assert all((by_route[name] != problem.x).flatten(1).any(1).all() for name in by_route)


def test_noise_is_frozen_for_one_route_and_the_generator_goes_on() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 2)

    frozen = FixedNoise(Target(Noisy(), classes=2, stochastic=True))
    before = torch.get_rng_state()
    assert torch.equal(frozen(torch.zeros(3, 1)), frozen(torch.zeros(3, 1)))
    assert torch.equal(before, torch.get_rng_state())


def test_smoothing_finds_the_slope_that_ripples_hide() -> None:
    """Ripples too fine to matter, whose slope is four times that of what they ride on.

    The gradient is of random sign, its mean over noise is not.
    """
    problem = two_classes()

    class Rippled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = problem.model(x + 2e-4 * torch.sin(20000 * x))
            return logits

    by_route = run_adaptive(problem, Rippled(), eot=64)
    assert (by_route["full"] != problem.x).flatten(1).any(1).all()
    assert not is_broken(problem, by_route["full"]).any()
    assert is_broken(problem, by_route["smoothed"]).all()


def test_distances_are_repeated_for_draws() -> None:
    goals = torch.tensor([[0.0], [1.0]])
    near = Distance(lambda x: x, goals, nearer=True, random=False)
    far = Distance(lambda x: x, goals, nearer=False, random=False)
    x = torch.tensor([[0.5], [0.5], [3.0], [3.0]])
    assert near(x)[:, 0].tolist() == [0.25, 0.25, 4.0, 4.0]
    assert far(x)[:, 0].tolist() == [-0.25, -0.25, -4.0, -4.0]


def test_which_route_was_chosen_is_told_by_name() -> None:
    routes = routes_of(["a", "a", "b"], [0, 2, 3, 1])
    assert routes is not None
    assert routes.names == ("a", "b")
    assert routes.chosen == (-1, 0, 1, 0)
    assert routes.counts == {"a": 2, "clean": 1, "b": 1}
    assert routes_of([], [0]) is None
