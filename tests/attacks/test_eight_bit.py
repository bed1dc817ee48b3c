"""Images rounded to 8 bits: within ball and box in every norm, and as good as rounding allows."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.attacks.eight_bit import EightBitTarget, round_in_ball
from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.norms import NORMS, to_ball
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Cell, Spec
from tests.attacks.linear import (
    Linear,
    Problem,
    candidates,
    fooled,
    misclassified,
    two_classes,
)

SIZES = {
    "linf": ("8/255", "0.031", "1/1020", "1"),
    "l2": ("0.5", "1/1020", "5"),
    "l1": ("3", "1/1020", "40"),
    "l0": ("5", "0", "64"),
}
PAIRS = [(norm, eps) for norm, sizes in SIZES.items() for eps in sizes]


def is_whole(images: Tensor) -> Tensor:
    """Which values are whole numbers of 255ths, to within 1e-4 of one."""
    steps = images.double() * 255
    return (steps - steps.round()).abs() < 1e-4


def draw_images(stored: bool) -> Tensor:
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 1.2 - 0.1
    x = x.clamp(0, 1)
    return (x * 255).round() / 255 if stored else x


def move_to_border(x: Tensor, norm: str, eps: float) -> Tensor:
    """Images far outside of the ball, put onto its border, in every direction."""
    generator = torch.Generator().manual_seed(4)
    step = torch.randn(x.shape, generator=generator)
    if norm == "l1":
        step = step * torch.rand(x.shape, generator=generator) ** 3
    return to_ball(x + 3 * max(eps, 0.01) * step, x, norm, eps)


@pytest.mark.parametrize("stored", [True, False], ids=["8-bit", "float"])
@pytest.mark.parametrize(("norm", "eps"), PAIRS)
def test_ball_and_box_hold_and_values_are_of_8_bits_or_clean(
    norm: str, eps: str, stored: bool
) -> None:
    x = draw_images(stored)
    reach = float(Fraction(eps))
    x_adv = round_in_ball(move_to_border(x, norm, reach), x, norm, reach)
    assert (NORMS[norm].distance(x_adv.double() - x.double()) <= reach).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (is_whole(x_adv) | (x_adv == x)).all()
    assert x_adv.dtype == x.dtype
    assert stored is False or is_whole(x_adv).all()
    if norm in ("linf", "l0"):
        assert torch.equal(round_in_ball(x_adv, x, norm, reach), x_adv), "rounded once is rounded"


@pytest.mark.parametrize("stored", [True, False], ids=["8-bit", "float"])
@pytest.mark.parametrize("eps", ["8/255", "0.031", "1/1020"])
def test_in_linf_each_value_is_the_nearest_of_those_in_the_ball(stored: bool, eps: str) -> None:
    """Against all 256; a distance of eps to within the rounding of float32 is in the ball."""
    x = draw_images(stored)[:2]
    reach = float(Fraction(eps))
    x_adv = move_to_border(x, "linf", reach)
    levels = torch.arange(256, dtype=torch.float64) / 255
    far = (levels - x_adv.double().unsqueeze(-1)).abs()
    far[(levels - x.double().unsqueeze(-1)).abs() > reach + 7e-8] = torch.inf
    least, where = far.min(-1)
    best = torch.where(least.isfinite(), levels[where], x.double())
    assert (round_in_ball(x_adv, x, "linf", reach).double() - best).abs().max() < 2e-7
    assert least.isinf().any() == (eps == "1/1020" and not stored)


def test_a_step_of_whole_255ths_stays_whole() -> None:
    """8/255 away in float32 is a little more than 8/255 for half of the values.

    It must not become 7/255.
    """
    x = draw_images(True)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    sign = torch.where(noise < 0.5, -1.0, 1.0)
    x_adv = round_in_ball(x + sign * 8 / 255, x, "linf", 8 / 255)
    steps = (x_adv.double() * 255).round() - (x.double() * 255).round()
    inside = ((x * 255).round() + 8 * sign).clamp(0, 255) - (x * 255).round()
    assert torch.equal(steps.float(), inside)


@pytest.mark.parametrize(("norm", "eps", "more"), [("l2", 0.2, 0.05), ("l1", 3.0, 0.005)])
def test_rounding_spends_what_the_ball_holds(norm: str, eps: float, more: float) -> None:
    """All values rounded towards the clean image would lose a part of the ball.

    In l2 they lose the more the smaller the values are. This loses next to nothing.
    """
    x = draw_images(True)
    border = move_to_border(x, norm, eps)
    clean = x.double() * 255
    steps = border.double() * 255
    inward = torch.where(steps > clean, (steps + 1e-4).floor(), (steps - 1e-4).ceil()) / 255
    rounded = round_in_ball(border, x, norm, eps)
    kept = NORMS[norm].distance(rounded.double() - x.double()).mean() / eps
    lost = NORMS[norm].distance(inward - x.double()).mean() / eps
    assert kept > 0.99
    assert lost < kept - more
    assert (rounded - border).abs().max() < 1 / 255 + 1e-6


def test_in_l0_what_is_unchanged_stays_as_it_is() -> None:
    x = draw_images(False)
    border = move_to_border(x, "l0", 5.0)
    same = (border == x).all(1, keepdim=True).expand_as(x)
    # a ball larger than that leaves room to change other pixels
    x_adv = round_in_ball(border, x, "l0", 9.0)
    assert torch.equal(x_adv[same], x[same])
    assert not is_whole(x[same]).all()
    assert is_whole(x_adv[~same]).all()


def on_the_grid(gap: int, ahead: int) -> Problem:
    """Grey images of 8 bits on either side of a plane.

    They are `gap` steps of 1/255 from it in each value, and one more in `ahead` of the 64. The linf
    distance to the plane is the mean, gap + ahead/64 steps, since all weights are of one size.
    """
    signs = torch.where(torch.arange(64) % 3 == 0, -1.0, 1.0)
    weight = torch.stack([-signs, signs]) / 2
    side = torch.tensor([1.0, -1.0, 1.0, -1.0])
    x = (128 + side[:, None] * signs * (gap + (torch.arange(64) < ahead))) / 255
    return Problem(
        Linear(weight, -weight.sum(1) * 128 / 255), x.view(4, 1, 8, 8), (side > 0).long(), {}
    )


def test_a_perturbation_that_rounding_leaves_whole_survives() -> None:
    problem = on_the_grid(3, 32)
    for steps, plain, stored in ((4.0, True, True), (3.6, True, False), (3.4, False, False)):
        assert fooled(problem, "pgd", "linf", steps / 255, steps=20).all() == plain
        rounded = fooled(problem, "eight-bit", "linf", steps / 255, attack="pgd[steps=20]")
        assert rounded.any() == stored, "of 3.6 steps a file holds 3"
    assert fooled(problem, "eight-bit", "linf", 4 / 255, attack="pgd[steps=20]").all()


def test_below_half_a_step_nothing_is_left() -> None:
    problem = on_the_grid(0, 13)
    eps = 1 / 1020
    assert fooled(problem, "pgd", "linf", eps, steps=20).all()
    assert not fooled(problem, "eight-bit", "linf", eps, attack="pgd[steps=20]").any()
    x_adv = candidates(problem, "eight-bit", "linf", eps, attack="pgd[steps=20]")
    assert torch.equal(x_adv, problem.x.expand_as(x_adv)), "the clean images"


@pytest.mark.parametrize(
    ("inner", "knobs"),
    [
        ("pgd", {"steps": 5}),
        ("adaptive", {"steps": 3}),
        ("fgsm", {}),
        ("apgd", {"steps": 5}),
        ("fab", {"steps": 5}),
    ],
)
def test_it_is_the_inner_attack_rounded(inner: str, knobs: dict[str, int]) -> None:
    problem = two_classes(batch=4)
    text = str(Spec.of(inner, knobs))
    x_adv = candidates(problem, "eight-bit", "linf", 0.05, attack=text)
    target = EightBitTarget(problem.target())
    plain = candidates(problem, inner, "linf", 0.05 - 1 / 510, target, **knobs).flatten(0, -5)
    rounded = torch.stack([round_in_ball(images, problem.x, "linf", 0.05) for images in plain])
    assert torch.equal(x_adv, rounded)
    assert not torch.equal(x_adv, plain)


def test_it_costs_what_the_inner_attack_costs() -> None:
    problem = two_classes(batch=4)
    knobs = {"attack": "pgd-eot[steps=4,eot=3]"}
    target = problem.target(stochastic=True)
    x_adv = candidates(problem, "eight-bit", "l2", 0.05, target, **knobs)
    assert x_adv.shape == (3, *problem.x.shape)
    entry = registry.attacks.get("eight-bit")
    inner = registry.attacks.get("pgd-eot")
    assert (
        entry.facts.calls(knobs, True)
        == inner.facts.calls(inner.resolve({"steps": 4, "eot": 3}), True)
        == 36
    )


def test_an_image_barely_wrong_before_rounding_does_not_end_the_attack() -> None:
    """PGD lets an example go at the first wrong image, which rounding often undoes.

    Here that must have been seen.
    """
    data = load(Spec.parse("digits[n=64]"))
    model = registry.build_classifier("own:digits-at")
    problem = Problem(model, data.x, data.y, {})
    knobs: dict[str, Any] = {"loss": "ce+margin", "steps": 20}
    text = str(Spec.of("pgd", knobs))
    plain = float(fooled(problem, "pgd", "linf", 0.2, **knobs).float().mean())
    stored = float(fooled(problem, "eight-bit", "linf", 0.2, attack=text).float().mean())
    x_adv = candidates(problem, "pgd", "linf", 0.2, **knobs)
    late = torch.stack([round_in_ball(images, data.x, "linf", 0.2) for images in x_adv])
    undone = float(misclassified(problem, late).any(0).float().mean())
    assert undone < plain - 0.03, "what is rounded at the end alone"
    assert stored > undone
    assert abs(stored - plain) < 0.03


def plan_cells(attack: str, **more: str) -> list[Cell]:
    request = Request(defences=("undefended",), attacks=(attack,), **more)
    return [cell for cell in plan([request]).cells if cell.attack.name != "none"]


def test_the_budget_and_the_defaults_are_those_of_the_attack_inside() -> None:
    for budget in ("quick", "standard"):
        (inner,) = plan_cells("pgd", budget=budget)
        (outer,) = plan_cells("eight-bit", budget=budget)
        assert outer.attack.params == {"attack": str(inner.attack)}
    (cell,) = plan_cells("eight-bit[attack=pgd[scale=1.0,precision=float32]]")
    assert "scale" not in str(cell.attack)
    assert "precision" not in str(cell.attack)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("none", "attack=none asks nothing of the model before it"),
        ("transfer", "attack=transfer asks nothing of the model before it"),
        ("planted", "attack=planted asks nothing of the model before it"),
        ("frozen", "attack=frozen asks nothing of the model before it"),
        ("eight-bit", "attack=eight-bit runs an attack of its own; give that one"),
        ("square", "attack=square has score access; give one with white-box access, such as pgd"),
        ("boundary", "attack=boundary has decision access"),
        ("noise", "attack=noise has score access"),
        ("pdg", "attack 'pdg' is unknown; did you mean 'pgd'?"),
        ("pgd[scale=0]", "scale='0' is neither a positive number nor gap"),
    ],
)
def test_an_attack_that_cannot_stand_inside_is_refused(inside: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        plan_cells(f"eight-bit[attack={inside}]")
    assert message in str(caught.value)
    assert str(caught.value).startswith("attack 'eight-bit': ")
    assert "\n" not in str(caught.value)


def test_an_attack_without_the_norm_is_refused() -> None:
    with pytest.raises(BadInput, match="'eight-bit' has no l0 form; it has l1, l2, linf"):
        plan_cells("eight-bit[attack=apgd]", norm="l0")
