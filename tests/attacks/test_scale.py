"""The scale of the logits: seen by the loss alone, what it does to its gradient, and what it finds where the cross-entropy has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.attacks.losses import LOSSES, answers, ce, gap, scaled
from bench.attacks.precision import lowered
from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.target import margin
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Spec
from tests.attacks.linear import Problem, Wrapped, candidates, fooled, many_classes, two_classes

NAMES = ("fgsm", "pgd", "pgd-eot")
SHORT: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "pgd": {"steps": 6},
    "pgd-eot": {"steps": 6, "eot": 2},
}


def times(problem: Problem, factor: float) -> Problem:
    return Problem(
        Wrapped(problem.model, lambda logits, x: factor * logits),
        problem.x,
        problem.y,
        problem.optimum,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_at_1_it_is_the_loss_itself(name: str) -> None:
    assert scaled(LOSSES[name], "1") is LOSSES[name]
    assert scaled(LOSSES[name], "1.0") is LOSSES[name]


@pytest.mark.parametrize("scale", ["0.01", "100", "1e-3"])
def test_a_number_multiplies_the_logits(scale: str) -> None:
    problem = many_classes(5)
    target = problem.target()
    slope, value, logits = answers(target, problem.x, problem.y, scaled(ce, scale), 1)
    assert torch.equal(logits[:, 0], problem.model(problem.x)), (
        "what is judged by is as the defence gave it"
    )
    chance = (float(scale) * logits[:, 0]).softmax(1)
    right = torch.nn.functional.one_hot(problem.y, 5)
    assert torch.allclose(value, -(chance * right).sum(1).log(), atol=1e-5)
    weight = problem.model.weight
    assert torch.allclose(
        slope.flatten(1), float(scale) * (chance - right) @ weight, atol=1e-5 * float(scale)
    )


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_gap_divides_them_by_a_constant(classes: int) -> None:
    problem = two_classes() if classes == 2 else many_classes(classes)
    logits = problem.model(problem.x)
    ordered = logits.sort(dim=1, descending=True)[0]
    wide = ordered[:, 0] - ordered[:, min(2, classes - 1)]
    assert torch.equal(gap(logits), wide[:, None])
    slope, value, _ = answers(problem.target(), problem.x, problem.y, scaled(ce, "gap"), 1)
    chance = (logits / wide[:, None]).softmax(1)
    right = torch.nn.functional.one_hot(problem.y, classes)
    assert torch.allclose(value, -(chance * right).sum(1).log(), atol=1e-5)
    weight = problem.model.weight
    expected = (chance - right) @ weight / wide[:, None]
    assert torch.allclose(slope.flatten(1), expected, atol=1e-4 * float(expected.abs().max()))
    assert torch.allclose(
        scaled(margin, "gap")(logits, problem.y), margin(logits, problem.y) / wide
    )


def test_gap_leaves_logits_without_one_as_they_are() -> None:
    logits = torch.tensor(
        [[2.0, 2, 2, 2], [torch.inf, 0, 0, 0], [3, 1, -torch.inf, -torch.inf], [4, 3, 2, 1]]
    )
    assert gap(logits).flatten().tolist() == [1, 1, 1, 2]
    assert gap(torch.stack([logits, logits])).shape == (2, 4, 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("name", NAMES)
def test_with_gap_the_size_of_the_logits_does_not_matter(name: str, norm: str) -> None:
    """Powers of two, so that float32 says the same to the last bit; the cross-entropy of such logits has no gradient at all."""
    problem = many_classes(4)
    large = times(problem, 2.0**17)
    eps = 2.0 if norm == "l0" else 0.5 * float(problem.optimum[norm].min())
    plain, scaled_up = (
        candidates(one, name, norm, eps, scale="gap", **SHORT[name]) for one in (problem, large)
    )
    assert torch.equal(plain, scaled_up)
    unmoved = large.target()
    candidates(large, name, norm, eps, unmoved, **SHORT[name])
    assert unmoved.zero > 0.5 * unmoved.backwards
    alive = large.target()
    candidates(large, name, norm, eps, alive, scale="gap", **SHORT[name])
    assert alive.zero == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_factor_undoes_a_factor_and_the_margin_is_not_scaled(name: str) -> None:
    problem = many_classes(4)
    large = times(problem, 2.0**17)
    made = [
        candidates(one, name, "linf", 0.01, scale=scale, **SHORT[name])
        for one, scale in ((problem, "1"), (large, str(2.0**-17)))
    ]
    assert torch.equal(*made)
    assert torch.equal(candidates(problem, name, "linf", 0.01, **SHORT[name]), made[0]), (
        "1 is the default"
    )
    rows = [
        candidates(problem, name, "linf", 0.01, scale=scale, loss="margin", **SHORT[name])
        for scale in ("1", "0.125")
    ]
    assert torch.equal(*rows), "a scaled margin has the same steps, and the same best iterates"


def test_it_makes_no_more_nor_less_fall_early() -> None:
    """Who leaves is decided on the defence's own logits, and so at the same step under a loss that the scale does not turn."""
    problem = two_classes()
    spent = []
    for scale in ("1", "0.01", "gap"):
        target = problem.target()
        candidates(
            problem,
            "pgd",
            "linf",
            1.05 * float(problem.optimum["linf"][0]),
            target,
            scale=scale,
            loss="margin",
            steps=20,
        )
        spent.append((target.forwards, target.backwards))
    assert len(set(spent)) == 1
    assert spent[0][0] < 20 * len(problem.x)


def test_half_precision_and_a_scale_go_together() -> None:
    problem = two_classes(batch=4)
    seen: list[torch.dtype] = []

    def note(logits: Tensor, x: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return 2.0**17 * logits

    layer = torch.nn.Linear(64, 2).requires_grad_(False)
    layer.weight.copy_(problem.model.weight)
    layer.bias.copy_(problem.model.bias)
    half = Problem(
        Wrapped(torch.nn.Sequential(torch.nn.Flatten(), layer), note),
        problem.x,
        problem.y,
        problem.optimum,
    )
    target = half.target()
    for scale in ("gap", "0.00001"):
        slope, value, logits = answers(
            lowered(target, "bfloat16"), half.x, half.y, scaled(ce, scale), 1
        )
        assert {slope.dtype, value.dtype, logits.dtype} == {torch.float32}
        factor = 1 / gap(logits[:, 0]) if scale == "gap" else 1e-5
        assert torch.allclose(value, ce(factor * logits[:, 0], half.y)), (
            "of the rounded logits, scaled in float32"
        )
        assert (slope != 0).flatten(1).any(1).all()
    assert torch.bfloat16 in seen
    eps = 1.3 * float(problem.optimum["linf"][0])
    assert fooled(half, "pgd", "linf", eps, precision="bfloat16", scale="gap", steps=20).all()


def test_it_beats_the_defence_whose_logits_are_too_large() -> None:
    """`gallery-scaled` multiplies its logits by 1e4: at 0.01 they are still a hundred times too large."""
    data = load(Spec.parse("digits[n=24]"))
    (cell,) = plan([Request(defences=("gallery-scaled",), attacks=("none",))]).cells
    problem = Problem(registry.build_defence(cell.defence), data.x, data.y, {})
    left = {
        scale: 1 - float(fooled(problem, "pgd", "linf", 0.2, scale=scale, steps=20).float().mean())
        for scale in ("1", "0.0001", "gap")
    }
    assert left["1"] > 0.8
    assert left["0.0001"] == left["gap"] == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "x", "", "gap+1", "1,5"])
def test_what_is_no_scale_is_refused_in_one_line(name: str, value: str) -> None:
    says = f"scale='{value}' is neither a positive number nor gap"
    with pytest.raises(BadInput) as caught:
        registry.attacks.get(name).resolve({"scale": value})
    assert str(caught.value) == f"attack '{name}': {says}"
    with pytest.raises(BadInput, match=r"neither a positive number nor gap$"):
        candidates(two_classes(batch=2), name, "linf", 0.1, scale=value)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_is_no_part_of_older_questions_and_one_number_has_one_form(name: str) -> None:
    def asked(text: str) -> str:
        (cell,) = (
            one
            for one in plan([Request(defences=("noise",), attacks=(text,))]).cells
            if one.attack.name != "none"
        )
        return cell.key

    entry = registry.attacks.get(name)
    assert entry.resolve({})["scale"] == "1"
    assert (
        asked(name)
        == asked(f"{name}[scale=1]")
        == asked(f"{name}[scale=1.0]")
        == asked(f"{name}[scale=1e0]")
    )
    assert (
        len({asked(f"{name}[scale={scale}]") for scale in ("1", "0.01", "1e-2", "100", "gap")}) == 4
    )


def test_the_keys_of_questions_asked_before_the_knob_came_are_what_they_were() -> None:
    spec = {
        "from_x": False,
        "loss": "ce",
        "momentum": 0.0,
        "restarts": 1,
        "step": 2.0,
        "steps": 40,
        "wide": 3.0,
    }
    (cell,) = (
        one
        for one in plan(
            [Request(defences=("undefended",), attacks=("pgd[loss=ce,steps=40]",))]
        ).cells
        if one.attack.name != "none"
    )
    assert cell.attack == Spec.of("pgd", spec)
