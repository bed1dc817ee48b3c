"""P7, P12 and P13 are raised by the faults that they name, one at a time."""

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
from bench.soundness.probes.gradients import has_surrogate
from bench.soundness.probes.outputs import probe_outputs
from bench.soundness.probes.probe import probe

CPU = torch.device("cpu")
LINEAR = torch.randn(36, 5, generator=torch.Generator().manual_seed(0))
X = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))


class Wrapped(nn.Module):
    """`after` what a linear map makes of `before` the images."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.before(x).flatten(1) @ LINEAR)


def flags_of(model: nn.Module, *, eps: float = 0.1, surrogate: bool = False) -> dict[str, str]:
    with random_stream(CPU, 0):
        return {flag.id: flag.severity for flag in probe_outputs(model, X, eps, surrogate)}


def test_logits_of_an_honest_model_raise_nothing() -> None:
    assert flags_of(Wrapped()) == {}
    assert flags_of(Wrapped(after=lambda z: z.log_softmax(1))) == {}, "log-probabilities are logits"
    assert flags_of(Wrapped(after=lambda z: z.sigmoid())) == {}, "of no sum 1"
    assert flags_of(Wrapped(after=lambda z: 2 * z.softmax(1))) == {}


def test_probabilities_differ_from_logits_to_1e_5() -> None:
    assert flags_of(Wrapped(after=lambda z: z.softmax(1))) == {"P7": "soft"}
    assert flags_of(Wrapped(after=lambda z: 1.0001 * z.softmax(1))) == {}


@pytest.mark.parametrize(
    ("step", "flags"), [(2.0, {"P12": "soft"}), (0.5, {"P13": "hard"}), (1e-3, {})]
)
def test_rounded_outputs_raise_p12_or_p13(step: float, flags: dict[str, str]) -> None:
    """Logits of a standard deviation of about 2, rounded to twos or to halves.

    Rounded to twos they take few values and tie. Rounded to halves they move in steps.
    """
    assert flags_of(Wrapped(after=lambda z: (z / step).round() * step)) == flags


def test_an_unused_class_and_abstentions_do_not_raise_p12() -> None:
    assert (
        flags_of(Wrapped(after=lambda z: torch.cat([z[:, :4], torch.full_like(z[:, 4:], -9)], 1)))
        == {}
    )
    assert flags_of(Wrapped(after=lambda z: torch.where(z.amax(1, keepdim=True) > 1.5, z, 0))) == {}


@pytest.mark.parametrize(("levels", "flagged"), [(8, True), (100_000, False)])
@pytest.mark.parametrize("surrogate", [False, True])
def test_quantised_images_are_hard_without_a_surrogate(
    levels: int, flagged: bool, surrogate: bool
) -> None:
    steps = Wrapped(lambda x: (x * (levels - 1)).round() / (levels - 1))
    assert flags_of(steps, surrogate=surrogate) == (
        {"P13": "soft" if surrogate else "hard"} if flagged else {}
    )


def test_steps_are_measured_under_the_same_noise() -> None:
    """Noise after the rounding hides the steps from who compares two draws."""
    noisy = Wrapped(lambda x: (x * 7).round() / 7 + 0.1 * torch.randn_like(x))
    assert flags_of(noisy) == {"P13": "hard"}
    assert flags_of(Wrapped(lambda x: x + 0.1 * torch.randn_like(x))) == {}


def test_p13_needs_a_step_and_an_eps() -> None:
    assert "P13" not in flags_of(Wrapped(lambda x: 0 * x + 0.5))
    assert flags_of(Wrapped(lambda x: (x * 7).round() / 7), eps=0) == {}


WITH = {
    "gallery-softmax": {"P7", "P12"},
    "gallery-one-hot": {"P7", "P12"},
    "gallery-rounded": {"P12"},
    "bit-depth": {"P13"},
    "jpeg": {"P13"},
    "gallery-thermometer": {"P13"},
    "carso[aggregation=vote]": {"P12"},
}
HONEST = (
    "undefended",
    "at",
    "tta[mean=prob,noise=0.05,shift=0]",
    "carso",
    "median",
    "ensemble",
    "noise",
)


@pytest.mark.parametrize("name", [*WITH, *HONEST])
def test_the_probe_flags_the_gallery_and_nothing_honest(name: str) -> None:
    data = load(Spec.parse("digits[n=64]"))
    (cell,) = plan([Request(defences=(name,), attacks=("none",))]).cells
    model = registry.build_defence(cell.defence)
    assert has_surrogate(model) or name in HONEST or name == "carso[aggregation=vote]"
    with random_stream(CPU, "probe"):
        flags = probe(
            model, data.x, data.y, 0.2, declared=registry.is_stochastic(cell.defence)
        ).flags
    assert {flag.id for flag in flags} & {"P7", "P12", "P13"} == WITH.get(name, set())
