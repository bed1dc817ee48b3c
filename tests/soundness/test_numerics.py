"""P8, P14 and P15: raised by what they are about, and by nothing honest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.data.sample import load
from bench.judging.randomness import random_stream
from bench.questions import registry
from bench.questions.plan import Request, plan
from bench.questions.spec import Spec
from bench.soundness.probes.numerics import optimises, precise, saturated
from bench.soundness.probes.probe import probe

CPU = torch.device("cpu")
LINEAR = torch.randn(36, 5, generator=torch.Generator().manual_seed(0))
X = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = (X.flatten(1) @ LINEAR).argmax(1)


class Made(nn.Module):
    """A linear map, with `after` behind it."""

    def __init__(self, after: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        self.weight = nn.Parameter(LINEAR)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x.flatten(1) @ self.weight)


class Optimising(Made):
    """Moves each image by its own gradient before it answers; `always`, or only where gradients are on."""

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
def test_answers_that_float32_takes_for_certain(scale: float, raised: bool) -> None:
    with random_stream(CPU, 0):
        flags = saturated(Made(lambda z: scale * z), X, 0.1)
    assert [(flag.id, flag.severity) for flag in flags] == [("P8", "soft")] * raised


def test_the_threshold_is_where_the_cross_entropy_has_no_gradient_in_float32() -> None:
    for gap, dead in ((16.5, False), (16.7, True)):
        logits = torch.tensor([[gap, 0.0]], requires_grad=True)
        nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
        assert logits.grad is not None
        assert bool(logits.grad[0, 0] == 0) == dead
        with random_stream(CPU, 0):
            assert (
                bool(
                    saturated(
                        Made(lambda z, gap=gap: torch.tensor([[gap, 0.0]]).expand(len(z), -1)),
                        X,
                        0.1,
                    )
                )
                == dead
            )


@pytest.mark.parametrize(("lowest", "raised"), [(-9e3, False), (-1.1e4, True)])
def test_a_range_of_logits_that_leaves_float32_no_room_is_as_bad(
    lowest: float, raised: bool
) -> None:
    with random_stream(CPU, 0):
        assert (
            bool(
                saturated(
                    Made(lambda z: torch.cat([z[:, :4], torch.full_like(z[:, 4:], lowest)], 1)),
                    X,
                    0.1,
                )
            )
            == raised
        )


def test_abstentions_and_infinities_are_no_certainty() -> None:
    with random_stream(CPU, 0):
        assert saturated(Made(lambda z: 0 * z), X, 0.1) == []
        assert saturated(Made(lambda z: torch.full_like(z, torch.inf)), X, 0.1) == []


def test_answers_that_only_float32_gives() -> None:
    """Beside 1e8 float32 tells multiples of 8 alone apart, and these logits are of a size of about 2."""
    assert precise(Made(), X, Y) == []
    (flag,) = precise(Made(lambda z: (z + 1e8) - 1e8), X, Y)
    assert (flag.id, flag.severity) == ("P15", "soft")


def test_gradients_that_only_float32_has() -> None:
    """The slope of sin(1e9 z) is another one in float32 at almost every point, while the answer hardly moves."""
    (flag,) = precise(Made(lambda z: z + 1e-6 * (1e9 * z).sin()), X, Y)
    assert "0.0% of the answers" in flag.message


def test_what_cannot_be_computed_in_float64_is_passed_over() -> None:
    assert precise(Made(lambda z: z @ torch.eye(5)), X, Y) == []
    assert precise(Made(lambda z: z.detach()), X, Y) == []


def test_the_defence_keeps_its_precision() -> None:
    model = Made()
    precise(model, X, Y)
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "dynamic", "raised"),
    [(Made(), False, False), (Optimising(True), True, False), (Optimising(False), False, True)],
)
def test_optimisation_at_test_time_is_seen_and_must_not_depend_on_who_asks(
    model: nn.Module, dynamic: bool, raised: bool
) -> None:
    seen, flags = optimises(model, X)
    assert seen == dynamic
    assert [(flag.id, flag.severity) for flag in flags] == [("P14", "hard")] * raised


def test_noise_is_no_difference() -> None:
    assert optimises(Made(lambda z: z + torch.randn_like(z)), X) == (False, [])


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
def test_the_probe_raises_them_on_what_is_planted_and_on_nothing_honest(name: str) -> None:
    data = load(Spec.parse("digits[n=64]"))
    (cell,) = plan([Request(defences=(name,), attacks=("none",))]).cells
    with random_stream(CPU, "probe"):
        found = probe(
            registry.build_defence(cell.defence),
            data.x,
            data.y,
            0.2,
            declared=registry.is_stochastic(cell.defence),
        )
    assert ("P14" in dict(found.checks)) == (name in DYNAMIC)
    # carso's and gallery-scaled's answers are as sure, and their zero gradients of the cross-entropy say it: D1
    assert {flag.id for flag in found.flags} & {"P8", "P14", "P15"} == (
        {"P8"} if name in SURE else set()
    )
    assert ("D1" in {flag.id for flag in found.flags}) == (name in ("carso", "gallery-scaled"))
