"""P8, P14 and P15 are raised by the faults that they name, and by nothing honest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.data.sample import load
from bench.judging.randomness import random_stream
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Spec
from bench.soundness.codes import P8_GAP
from bench.soundness.probes.numerics import (
    probe_optimisation,
    probe_precision,
    probe_saturation,
)
from bench.soundness.probes.probe import probe

CPU = torch.device("cpu")
LINEAR = torch.randn(36, 5, generator=torch.Generator().manual_seed(0))
X = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = (X.flatten(1) @ LINEAR).argmax(1)


class LinearThen(nn.Module):
    """A linear map, with `after` behind it."""

    def __init__(self, after: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        self.weight = nn.Parameter(LINEAR)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x.flatten(1) @ self.weight)


class Optimising(LinearThen):
    """Moves each image by its own gradient first: `always`, or only where gradients are on."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        if self.always or torch.is_grad_enabled():
            with torch.enable_grad():
                seen = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(super().forward(seen).square().sum(), seen)
            x = x + 0.1 * slope.sign()
        return super().forward(x)


@pytest.mark.parametrize(("scale", "raised"), [(1, False), (100, True), (1e4, True)])
def test_saturated_answers_raise_p8(scale: float, raised: bool) -> None:
    with random_stream(CPU, 0):
        flags = probe_saturation(LinearThen(lambda z: scale * z), X, 0.1)
    assert [(flag.id, flag.severity) for flag in flags] == [("P8", "soft")] * raised


@pytest.mark.parametrize(("gap", "dead"), [(P8_GAP - 0.1, False), (P8_GAP + 0.1, True)])
def test_p8_starts_where_cross_entropy_has_no_gradient_in_float32(gap: float, dead: bool) -> None:
    logits = torch.tensor([[gap, 0.0]], requires_grad=True)
    nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert bool(logits.grad[0, 0] == 0) == dead
    with random_stream(CPU, 0):
        flags = probe_saturation(LinearThen(lambda z: logits.detach().expand(len(z), -1)), X, 0.1)
    assert bool(flags) == dead


@pytest.mark.parametrize(("lowest", "raised"), [(-9e3, False), (-1.1e4, True)])
def test_a_wide_range_of_logits_raises_p8(lowest: float, raised: bool) -> None:
    model = LinearThen(lambda z: torch.cat([z[:, :4], torch.full_like(z[:, 4:], lowest)], 1))
    with random_stream(CPU, 0):
        assert bool(probe_saturation(model, X, 0.1)) == raised


def test_abstentions_and_infinities_do_not_raise_p8() -> None:
    with random_stream(CPU, 0):
        assert probe_saturation(LinearThen(lambda z: 0 * z), X, 0.1) == []
        assert probe_saturation(LinearThen(lambda z: torch.full_like(z, torch.inf)), X, 0.1) == []


def test_answers_that_float64_does_not_give_raise_p15() -> None:
    """Near 1e8 float32 holds multiples of 8 alone, and these logits are of a size of about 2."""
    assert probe_precision(LinearThen(), X, Y) == []
    (flag,) = probe_precision(LinearThen(lambda z: (z + 1e8) - 1e8), X, Y)
    assert (flag.id, flag.severity) == ("P15", "soft")


def test_gradients_that_float64_does_not_have_raise_p15() -> None:
    """The slope of sin(1e9 z) differs in float32 almost everywhere; the answer hardly moves."""
    (flag,) = probe_precision(LinearThen(lambda z: z + 1e-6 * (1e9 * z).sin()), X, Y)
    assert "0.0% of the answers" in flag.message


def test_a_defence_without_a_float64_form_is_passed_over() -> None:
    assert probe_precision(LinearThen(lambda z: z @ torch.eye(5)), X, Y) == []
    assert probe_precision(LinearThen(lambda z: z.detach()), X, Y) == []


def test_the_defence_keeps_its_precision() -> None:
    model = LinearThen()
    probe_precision(model, X, Y)
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "dynamic", "raised"),
    [
        (LinearThen(), False, False),
        (Optimising(True), True, False),
        (Optimising(False), False, True),
    ],
)
def test_optimisation_is_seen_and_raises_p14_where_answers_differ(
    model: nn.Module, dynamic: bool, raised: bool
) -> None:
    seen, flags = probe_optimisation(model, X)
    assert seen == dynamic
    assert [(flag.id, flag.severity) for flag in flags] == [("P14", "hard")] * raised


def test_noise_does_not_raise_p14() -> None:
    assert probe_optimisation(LinearThen(lambda z: z + torch.randn_like(z)), X) == (False, [])


DYNAMIC = {"anti-adversary", "gallery-detached"}
SURE = {"anti-adversary", "gallery-detached"}


@pytest.mark.parametrize(
    "name",
    [
        *sorted(DYNAMIC),
        "undefended",
        "at",
        "carso",
        "tta",
        "median",
        "ensemble",
        "tv",
        "gallery-scaled",
    ],
)
def test_the_probe_flags_the_gallery_and_nothing_honest(name: str) -> None:
    data = load(Spec.parse("digits[n=64]"))
    (cell,) = plan([Request(defences=(name,), attacks=("none",))]).cells
    with random_stream(CPU, "probe"):
        result = probe(
            registry.build_defence(cell.defence),
            data.x,
            data.y,
            0.2,
            declared=registry.is_stochastic(cell.defence),
        )
    assert ("P14" in dict(result.checks)) == (name in DYNAMIC)
    # Answers of carso and gallery-scaled are as sure; D1 of the cross-entropy says it.
    assert {flag.id for flag in result.flags} & {"P8", "P14", "P15"} == (
        {"P8"} if name in SURE else set()
    )
    assert ("D1" in {flag.id for flag in result.flags}) == (name in ("carso", "gallery-scaled"))
