"""The adaptive attack: each route defeats the defence that only it can defeat, and what was found is told apart."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import losses
from bench.attacks.adaptive import Distance, Frozen, adaptive, routes
from bench.attacks.gradient import climb
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


def attacked(
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


def broken(problem: Problem, images: Tensor) -> Tensor:
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
def test_a_declared_part_is_the_way_around_a_gradient_that_is_not_there(
    route: str, norm: str
) -> None:
    problem = two_classes()
    assert not any(
        broken(problem, made).any()
        for made in attacked(problem, Masked(problem.model), norm=norm).values()
    )
    made = attacked(problem, Masked(problem.model, **PARTS[route](problem.model)), norm=norm)
    assert broken(problem, made[route]).all()
    others = [
        name for name in made if name != route and list(made).index(name) > list(made).index(route)
    ]
    assert all(torch.equal(made[name], problem.x) for name in others), (
        "what has fallen is left alone"
    )


class Torn(nn.Module):
    """The linear model, whose gradient is NaN where the margin is still more than half of that of the images."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model = problem.model
        self.far = float(margin(problem.model(problem.x), problem.y).mean()) / 2
        self.surrogates = {"empty": lambda x: self.model(x) / 0.0, "near": self.near}
        self.asked = 0

    def gap(self, logits: Tensor) -> Tensor:
        return -(logits[:, 0] - logits[:, 1]).abs()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        ill = 0 * ((x - x.detach()) ** 2).sum((1, 2, 3)).sqrt()[:, None]
        return logits + torch.where((self.gap(logits) < self.far)[:, None], ill, 0)

    def near(self, x: Tensor) -> Tensor:
        """A surrogate that leads the right way for as long as the defence does not, and from there back."""
        self.asked += len(x)
        logits: Tensor = self.model(x)
        return torch.where((self.gap(logits) < self.far)[:, None], logits, -logits)


@pytest.mark.parametrize("loss", ["ce+margin", "targeted"])
def test_where_the_own_gradient_is_not_finite_that_of_the_next_surrogate_takes_its_place(
    loss: str,
) -> None:
    """Neither alone gets there: the one stands still, and the other turns back; the first surrogate has no finite gradient at all."""
    problem = two_classes()
    torn = Torn(problem)
    assert not broken(problem, attacked(problem, torn, only="full", loss=loss)["full"]).any()
    assert torn.asked == 0, "a way that is tried alone gets no help"
    for alone in ("near", "empty"):
        assert not broken(problem, attacked(problem, torn, only=alone, loss=loss)[alone]).any()
    threat = ThreatModel("linf", problem_eps(problem, "linf"), "white-box")
    target = Target(torn, classes=2)
    made = adaptive(target, problem.x, problem.y, threat, loss=loss, steps=20, eot=4)
    assert list(made) == ["empty", "near", "warm", "full", "smoothed"]
    assert not any(broken(problem, made[name]).any() for name in ("empty", "near"))
    assert broken(problem, made["warm"]).all()
    assert target.nonfinite > 0, "the harness hears of it all the same"
    calls = registry.attacks.get("adaptive").facts.calls
    knobs = registry.attacks.get("adaptive").resolve({"loss": loss, "steps": 20, "eot": 4})
    assert target.forwards + 2 * target.backwards <= calls(knobs, False) * len(problem.x)


def test_a_finite_gradient_asks_no_surrogate_and_changes_no_draw() -> None:
    problem, asked = two_classes(), []

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = problem.model(x)
            return logits

    def no_help() -> list[Target]:
        asked.append(True)
        return []

    knobs = {"loss": "ce", "steps": 4, "restarts": 1, "step": 2.0, "wide": 1.0, "momentum": 0.0}
    threat = ThreatModel("linf", problem_eps(problem, "linf"), "white-box")
    climb(Target(Whole(), classes=2), problem.x, problem.y, threat, stand_ins=no_help, **knobs)
    assert asked == []
    climb(
        Target(Torn(problem), classes=2), problem.x, problem.y, threat, stand_ins=no_help, **knobs
    )
    assert len(asked) == 4


def test_one_way_alone_is_tried_where_it_is_named_and_one_that_is_not_there_is_refused() -> None:
    problem = two_classes()
    parts = {**PARTS["soft"](problem.model), **PARTS["base"](problem.model)}
    made = attacked(problem, Masked(problem.model, **parts), only="full+base")
    assert list(made) == ["base", "full"]
    assert broken(problem, made["base"]).all()
    alone = attacked(problem, Masked(problem.model, **parts), only="full")
    assert not broken(problem, alone["full"]).any(), "no other way has helped it"
    with pytest.raises(
        BadInput,
        match=r"adaptive\[only=ful\]: this defence has no route 'ful'; did you mean 'full'\?",
    ):
        attacked(problem, Masked(problem.model, **parts), only="ful")


def test_the_latent_of_another_class_is_approached() -> None:
    problem = two_classes()
    normal = problem.model.weight[1] - problem.model.weight[0]
    made = attacked(
        problem, Masked(problem.model, latent=lambda x: (x.flatten(1) - 0.5) @ normal.unsqueeze(1))
    )
    assert broken(problem, made["latent"]).all()


@pytest.mark.parametrize(("route", "part"), [("latent", "latent"), ("purifier", "purify")])
def test_a_distance_is_climbed_in_parts_of_bounded_size_to_the_same_end(
    route: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = two_classes()
    calls = {"latent": lambda x: x.flatten(1)[:, ::8], "purify": lambda x: 2 * x}
    sizes: list[int] = []

    def noted(x: Tensor) -> Tensor:
        if x.requires_grad:
            sizes.append(len(x))
        return calls[part](x)

    made = []
    for images, seen in ((1000, {12}), (5, {5, 2})):
        monkeypatch.setattr(losses, "VALUES", images * 64 * 4)  # of four draws each
        sizes.clear()
        made.append(attacked(problem, Masked(problem.model, **{part: noted}), only=route)[route])
        assert set(sizes) == seen
    assert torch.allclose(made[0], made[1], atol=1e-6)


def test_a_purifier_is_driven_away_from_the_image() -> None:
    problem = two_classes()
    made = attacked(problem, Masked(problem.model, purify=lambda x: 2 * x))["purifier"]
    # what moves 2x farthest from the clean image is the whole ball's corner, away from zero
    eps = float(problem_eps(problem, "linf"))
    assert torch.allclose(made, (problem.x + eps).clamp(0, 1), atol=1e-6)


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
    assert routes(target) == [
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
    assert routes(Target(model, classes=2)) == ["warm", "full", "smoothed"]


def test_a_stochastic_example_is_left_alone_only_when_it_fell_ten_times() -> None:
    """A coin that is right half of the time whatever the image: no route can end it, so every route is tried on every example."""
    problem = two_classes(batch=6)

    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = problem.model(x)
            return torch.where(torch.rand(len(x), 1) < 0.5, logits, logits.flip(1))

    made = attacked(problem, Coin(), stochastic=True)
    assert list(made) == ["fixed-noise", "warm", "full", "smoothed"]
    assert all((made[name] != problem.x).flatten(1).any(1).all() for name in made)


def test_noise_is_frozen_for_one_route_and_the_generator_goes_on() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 2)

    frozen = Frozen(Target(Noisy(), classes=2, stochastic=True))
    before = torch.get_rng_state()
    one, two = frozen(torch.zeros(3, 1)), frozen(torch.zeros(3, 1))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state())


def test_smoothing_finds_the_slope_that_ripples_hide() -> None:
    """Ripples too fine to matter, whose slope is four times that of what they ride on: the gradient is of random sign, its mean over noise is not."""
    problem = two_classes()

    class Rippled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = problem.model(x + 2e-4 * torch.sin(20000 * x))
            return logits

    made = attacked(problem, Rippled(), eot=64)
    assert (made["full"] != problem.x).flatten(1).any(1).all()
    assert not broken(problem, made["full"]).any()
    assert broken(problem, made["smoothed"]).all()


def test_distances_are_repeated_for_draws() -> None:
    goals = torch.tensor([[0.0], [1.0]])
    near, far = (
        Distance(lambda x: x, goals, nearer=nearer, random=False) for nearer in (True, False)
    )
    x = torch.tensor([[0.5], [0.5], [3.0], [3.0]])
    assert near(x)[:, 0].tolist() == [0.25, 0.25, 4.0, 4.0]
    assert far(x)[:, 0].tolist() == [-0.25, -0.25, -4.0, -4.0]


def test_which_route_was_chosen_is_told_by_name() -> None:
    found = routes_of(["a", "a", "b"], [0, 2, 3, 1])
    assert found is not None
    assert found.names == ("a", "b")
    assert found.chosen == (-1, 0, 1, 0)
    assert found.counts == {"a": 2, "clean": 1, "b": 1}
    assert routes_of([], [0]) is None
