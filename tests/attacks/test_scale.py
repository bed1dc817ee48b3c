"""The scale of the logits: for the loss alone, and a gradient where the cross-entropy has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.attacks.losses import LOSSES, ce, logit_spread, query_gradient, scale_logits
from bench.attacks.precision import lower_precision
from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.target import margin
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Cell, Spec
from tests.attacks.linear import Problem, Wrapped, candidates, fooled, many_classes, two_classes

NAMES = ("fgsm", "pgd", "pgd-eot")
SHORT: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "pgd": {"steps": 6},
    "pgd-eot": {"steps": 6, "eot": 2},
}


def multiply_logits(problem: Problem, factor: float) -> Problem:
    model = Wrapped(problem.model, lambda logits, x: factor * logits)
    return Problem(model, problem.x, problem.y, problem.optimum)


@pytest.mark.parametrize("name", LOSSES)
def test_at_1_it_is_the_loss_itself(name: str) -> None:
    assert scale_logits(LOSSES[name], "1") is LOSSES[name]
    assert scale_logits(LOSSES[name], "1.0") is LOSSES[name]


@pytest.mark.parametrize("scale", ["0.01", "100", "1e-3"])
def test_a_number_multiplies_the_logits(scale: str) -> None:
    problem = many_classes(5)
    target = problem.target()
    loss = scale_logits(ce, scale)
    grad, value, logits = query_gradient(target, problem.x, problem.y, loss, 1)
    # what is judged by is as the defence gave it
    assert torch.equal(logits[:, 0], problem.model(problem.x))
    chance = (float(scale) * logits[:, 0]).softmax(1)
    right = torch.nn.functional.one_hot(problem.y, 5)
    assert torch.allclose(value, -(chance * right).sum(1).log(), atol=1e-5)
    weight = problem.model.weight
    expected = float(scale) * (chance - right) @ weight
    assert torch.allclose(grad.flatten(1), expected, atol=1e-5 * float(scale))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_gap_divides_them_by_a_constant(classes: int) -> None:
    problem = two_classes() if classes == 2 else many_classes(classes)
    logits = problem.model(problem.x)
    ordered = logits.sort(dim=1, descending=True)[0]
    spread = ordered[:, 0] - ordered[:, min(2, classes - 1)]
    assert torch.equal(logit_spread(logits), spread[:, None])
    loss = scale_logits(ce, "gap")
    grad, value, _ = query_gradient(problem.target(), problem.x, problem.y, loss, 1)
    chance = (logits / spread[:, None]).softmax(1)
    right = torch.nn.functional.one_hot(problem.y, classes)
    assert torch.allclose(value, -(chance * right).sum(1).log(), atol=1e-5)
    weight = problem.model.weight
    expected = (chance - right) @ weight / spread[:, None]
    assert torch.allclose(grad.flatten(1), expected, atol=1e-4 * float(expected.abs().max()))
    scaled_margin = scale_logits(margin, "gap")(logits, problem.y)
    assert torch.allclose(scaled_margin, margin(logits, problem.y) / spread)


def test_gap_leaves_logits_without_one_as_they_are() -> None:
    logits = torch.tensor(
        [[2.0, 2, 2, 2], [torch.inf, 0, 0, 0], [3, 1, -torch.inf, -torch.inf], [4, 3, 2, 1]]
    )
    assert logit_spread(logits).flatten().tolist() == [1, 1, 1, 2]
    assert logit_spread(torch.stack([logits, logits])).shape == (2, 4, 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("name", NAMES)
def test_with_gap_the_size_of_the_logits_does_not_matter(name: str, norm: str) -> None:
    """Powers of two, so that float32 says the same to the last bit.

    The cross-entropy of such logits has no gradient at all.
    """
    problem = many_classes(4)
    large = multiply_logits(problem, 2.0**17)
    eps = 2.0 if norm == "l0" else 0.5 * float(problem.optimum[norm].min())
    plain = candidates(problem, name, norm, eps, scale="gap", **SHORT[name])
    scaled_up = candidates(large, name, norm, eps, scale="gap", **SHORT[name])
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
    large = multiply_logits(problem, 2.0**17)
    knobs = SHORT[name]
    plain = candidates(problem, name, "linf", 0.01, scale="1", **knobs)
    undone = candidates(large, name, "linf", 0.01, scale=str(2.0**-17), **knobs)
    assert torch.equal(plain, undone)
    by_default = candidates(problem, name, "linf", 0.01, **knobs)
    assert torch.equal(plain, by_default), "1 is the default"
    # a scaled margin has the same steps, and the same best iterates
    margin_1 = candidates(problem, name, "linf", 0.01, scale="1", loss="margin", **knobs)
    scaled = candidates(problem, name, "linf", 0.01, scale="0.125", loss="margin", **knobs)
    assert torch.equal(margin_1, scaled)


def test_the_scale_does_not_change_who_leaves() -> None:
    """Who leaves is decided on the defence's own logits.

    So an example leaves at the same step under a loss that the scale does not turn.
    """
    problem = two_classes()
    eps = 1.05 * float(problem.optimum["linf"][0])
    calls = []
    for scale in ("1", "0.01", "gap"):
        target = problem.target()
        candidates(problem, "pgd", "linf", eps, target, scale=scale, loss="margin", steps=20)
        calls.append((target.forwards, target.backwards))
    assert len(set(calls)) == 1
    assert calls[0][0] < 20 * len(problem.x)


def test_half_precision_and_a_scale_go_together() -> None:
    problem = two_classes(batch=4)
    seen: list[torch.dtype] = []

    def note(logits: Tensor, x: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return 2.0**17 * logits

    layer = torch.nn.Linear(64, 2).requires_grad_(False)
    layer.weight.copy_(problem.model.weight)
    layer.bias.copy_(problem.model.bias)
    model = Wrapped(torch.nn.Sequential(torch.nn.Flatten(), layer), note)
    half = Problem(model, problem.x, problem.y, problem.optimum)
    target = half.target()
    for scale in ("gap", "0.00001"):
        lowered = lower_precision(target, "bfloat16")
        loss = scale_logits(ce, scale)
        grad, value, logits = query_gradient(lowered, half.x, half.y, loss, 1)
        assert {grad.dtype, value.dtype, logits.dtype} == {torch.float32}
        factor = 1 / logit_spread(logits[:, 0]) if scale == "gap" else 1e-5
        # of the rounded logits, scaled in float32
        assert torch.allclose(value, ce(factor * logits[:, 0], half.y))
        assert (grad != 0).flatten(1).any(1).all()
    assert torch.bfloat16 in seen
    eps = 1.3 * float(problem.optimum["linf"][0])
    assert fooled(half, "pgd", "linf", eps, precision="bfloat16", scale="gap", steps=20).all()


def test_it_beats_the_defence_whose_logits_are_too_large() -> None:
    """`gallery-scaled` multiplies its logits by 1e4: at 0.01 they are still far too large."""
    data = load(Spec.parse("digits[n=24]"))
    (cell,) = plan([Request(defences=("gallery-scaled",), attacks=("none",))]).cells
    problem = Problem(registry.build_defence(cell.defence), data.x, data.y, {})

    def surviving(scale: str) -> float:
        fallen = fooled(problem, "pgd", "linf", 0.2, scale=scale, steps=20)
        return 1 - float(fallen.float().mean())

    assert surviving("1") > 0.8
    assert surviving("0.0001") == surviving("gap") == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "x", "", "gap+1", "1,5"])
def test_what_is_no_scale_is_refused_in_one_line(name: str, value: str) -> None:
    message = f"scale='{value}' is neither a positive number nor gap"
    with pytest.raises(BadInput) as caught:
        registry.attacks.get(name).resolve({"scale": value})
    assert str(caught.value) == f"attack '{name}': {message}"
    with pytest.raises(BadInput, match=r"neither a positive number nor gap$"):
        candidates(two_classes(batch=2), name, "linf", 0.1, scale=value)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_scale_is_in_no_key_and_a_number_has_one_form(name: str) -> None:
    def key(scale: str) -> str:
        return plan_cell("noise", f"{name}{scale}").key

    entry = registry.attacks.get(name)
    assert entry.resolve({})["scale"] == "1"
    assert key("") == key("[scale=1]") == key("[scale=1.0]") == key("[scale=1e0]")
    assert key("[scale=0.01]") == key("[scale=1e-2]")
    assert len({key(""), key("[scale=0.01]"), key("[scale=100]"), key("[scale=gap]")}) == 4


def plan_cell(defence: str, attack: str) -> Cell:
    """The one cell of this attack on this defence."""
    cells = plan([Request(defences=(defence,), attacks=(attack,))]).cells
    (cell,) = [cell for cell in cells if cell.attack.name != "none"]
    return cell


def test_questions_from_before_the_knob_keep_their_keys() -> None:
    spec = {
        "from_x": False,
        "loss": "ce",
        "momentum": 0.0,
        "restarts": 1,
        "step": 2.0,
        "steps": 40,
        "wide": 3.0,
    }
    assert plan_cell("undefended", "pgd[loss=ce,steps=40]").attack == Spec.of("pgd", spec)
