"""Half precision in the attack: nearly the same verdicts, and loss and steps in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks.losses import ce, query_gradient
from bench.attacks.precision import lower_precision
from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.target import is_correct, margin
from bench.questions import registry
from bench.questions.spec import Spec
from tests.attacks.linear import (
    Problem,
    Wrapped,
    candidates,
    fooled,
    misclassified,
    nan_gradients,
    two_classes,
)

NAMES = ("pgd", "pgd-eot", "apgd", "apgd-eot")


@pytest.fixture(scope="module")
def digits() -> Problem:
    data = load(Spec.of("digits", {"n": 60}))
    return Problem(registry.build_classifier("own:digits-at"), data.x, data.y, {})


@pytest.mark.parametrize("name", ["pgd", "apgd"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_verdicts_are_nearly_those_of_full_precision(
    digits: Problem, name: str, precision: str
) -> None:
    knobs: dict[str, Any] = {"steps": 30, "loss": "ce+margin"}
    if name == "apgd":
        knobs |= {"loss": "ce+targeted", "targets": 3}
    full = fooled(digits, name, "linf", 0.25, precision="float32", **knobs)
    half = fooled(digits, name, "linf", 0.25, precision=precision, **knobs)
    assert 0.3 < full.float().mean() < 0.95
    assert full.sum() - half.sum() <= 3
    assert (full == half).float().mean() >= 0.95, "some of those on the edge fall to one of the two"


@pytest.mark.parametrize("name", ["pgd-eot", "apgd-eot"])
def test_verdicts_on_a_noisy_defence_are_nearly_those_of_full_precision(
    digits: Problem, name: str
) -> None:
    noisy = Problem(Shaken(digits.model), digits.x, digits.y, {})
    verdicts = []
    for precision in ("float32", "bfloat16"):
        target = noisy.target(stochastic=True)
        knobs = {"steps": 8, "eot": 4, "precision": precision}
        x_adv = candidates(noisy, name, "linf", 0.25, target, **knobs)
        verdicts.append(misclassified(digits, x_adv).any(0))
    assert (verdicts[0] == verdicts[1]).float().mean() >= 0.9


class Shaken(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x + 0.05 * torch.randn_like(x))
        return logits


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_model_runs_in_half_and_all_else_in_full_precision(precision: str) -> None:
    seen: list[torch.dtype] = []

    def note(logits: Tensor, x: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return logits

    problem = two_classes(batch=4)
    layer = nn.Linear(64, 2).requires_grad_(False)
    layer.weight.copy_(problem.model.weight)
    watched = Problem(Wrapped(nn.Sequential(nn.Flatten(), layer), note), problem.x, problem.y, {})
    target = watched.target()
    seen.clear()
    grad, value, logits = query_gradient(
        lower_precision(target, precision), problem.x, problem.y, ce, 1
    )
    assert seen == [getattr(torch, precision)]
    assert {grad.dtype, value.dtype, logits.dtype} == {torch.float32}
    assert target.forwards == target.backwards == 4
    # of the rounded logits, but itself in float32
    assert torch.equal(value, ce(logits[:, 0], problem.y))
    exact, _, _ = query_gradient(target, problem.x, problem.y, ce, 1)
    assert torch.cosine_similarity(grad.flatten(1), exact.flatten(1)).min() > 0.999
    assert torch.equal(lower_precision(target, precision).draws(problem.x, 2)[:, 1], logits[:, 0])
    seen.clear()
    for name in NAMES:
        x_adv = candidates(watched, name, "l2", 0.1, steps=2, precision=precision)
        assert x_adv.dtype == torch.float32
    assert getattr(torch, precision) in seen


def biased(problem: Problem) -> Problem:
    """Wrong under autocast whatever the image, by far more than rounding; else the model itself."""
    wrong = nn.functional.one_hot(1 - problem.y, 2).float()

    def tilt(logits: Tensor, x: Tensor) -> Tensor:
        rows = torch.cdist(x.detach().float().flatten(1), problem.x.flatten(1)).argmin(1)
        return logits + 3 * wrong[rows] if torch.is_autocast_enabled("cpu") else logits

    return Problem(Wrapped(problem.model, tilt), problem.x, problem.y, problem.optimum)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_half_precision_alone_calls_fallen_has_not(name: str, norm: str) -> None:
    problem = biased(two_classes(batch=6))
    knobs: dict[str, Any] = {"steps": 20, "precision": "bfloat16", "loss": "margin"}
    best = float(problem.optimum[norm][0])
    target = problem.target()
    candidates(problem, name, norm, 0.5 * best, target, **knobs)
    assert target.backwards == (20 + (name == "apgd")) * 6, "nobody leaves"
    entry = registry.attacks.get(name)
    assert target.forwards + 2 * target.backwards <= 6 * entry.facts.calls(
        entry.resolve(knobs), False
    )
    target = problem.target()
    x_adv = candidates(problem, name, norm, 1.05 * best, target, **knobs)
    last = ~is_correct(problem.model(x_adv[0]), problem.y)
    assert last.all(), "the last is the one that it fell to"
    assert (~is_correct(problem.model(x_adv[2]), problem.y)).all() or name == "pgd"
    assert target.backwards < 20 * 6, "and leaves there"


def test_bad_gradients_are_counted_and_no_step_is_taken_on_them() -> None:
    problem = two_classes(batch=4)
    sick = nan_gradients(problem, torch.ones(4, dtype=torch.bool))
    target = sick.target()
    x_adv = candidates(
        sick, "pgd", "linf", 1e-3, target, steps=3, precision="bfloat16", from_x=True
    )
    assert target.nonfinite == 3 * 4
    assert torch.equal(x_adv[0], problem.x)


def test_a_stochastic_defence_is_asked_no_more_than_it_is_drawn() -> None:
    problem = biased(two_classes(batch=6))
    target = problem.target(stochastic=True)
    candidates(problem, "pgd-eot", "linf", 1e-3, target, steps=5, eot=2, precision="bfloat16")
    assert target.forwards == target.backwards == 5 * 2 * 6
    assert (margin(problem.model(problem.x), problem.y) < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_full_precision_is_the_default_and_no_part_of_older_questions(name: str) -> None:
    entry = registry.attacks.get(name)
    assert entry.resolve({})["precision"] == "float32"
    assert "precision" in entry.facts.added_later
    with pytest.raises(BadInput, match="precision='half' is unknown"):
        entry.resolve({"precision": "half"})
