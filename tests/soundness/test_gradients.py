"""D12: a gradient is believed as far as differences confirm it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.soundness.probes.gradients import probe_differences
from bench.soundness.probes.probe import probe
from tests.attacks.linear import two_classes

EPS = 0.1
PROBLEM = two_classes(batch=32)


class Changed(nn.Module):
    """The linear model behind a change of its input."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = PROBLEM.model(self.change(x))
        return logits


def error_and_flags(
    change: Callable[[Tensor], Tensor], surrogates: object = None
) -> tuple[float | None, list[tuple[str, str]]]:
    torch.manual_seed(0)
    model = Changed(change)
    if surrogates:
        model.surrogates = surrogates
    error, flags = probe_differences(model, PROBLEM.x, PROBLEM.y, EPS)
    return error, [(flag.id, flag.severity) for flag in flags]


def straight_through(x: Tensor) -> Tensor:
    return x + (torch.round(7 * x) / 7 - x).detach()


HONEST = {
    "linear": lambda x: x,
    "curved": lambda x: x + 0.1 * torch.sin(3 * x),
    "random": lambda x: x + 0.1 * torch.randn_like(x),
    "random in size": lambda x: x * (1 + 0.5 * torch.rand(len(x), 1, 1, 1)),
}
FALSE = {
    "reversed": lambda x: 2 * x.detach() - x,
    "noise in its place": lambda x: x + (x - x.detach()) * 100 * torch.randn_like(x),
    "shattered": lambda x: x + 0.005 * torch.sin(9000 * x),
    "rounded, straight through": straight_through,
}


@pytest.mark.parametrize("name", list(HONEST))
def test_a_true_gradient_agrees_with_differences(name: str) -> None:
    error, flags = error_and_flags(HONEST[name])
    assert error is not None
    assert error < 0.05
    assert flags == []


@pytest.mark.parametrize("name", list(FALSE))
def test_a_false_gradient_disagrees_with_differences(name: str) -> None:
    error, flags = error_and_flags(FALSE[name])
    assert error is not None
    assert error > 0.5
    assert flags == [("D12", "hard")]
    assert error_and_flags(FALSE[name], {"identity": PROBLEM.model})[1] == [("D12", "soft")], (
        "who declares the way around hides nothing"
    )


def test_flat_differences_are_flagged_even_under_a_flat_gradient() -> None:
    """Zero agrees with zero; but a step of eps changes the answer, and no gradient says so."""
    error, flags = error_and_flags(lambda x: torch.round(7 * x.detach()) / 7 + 0 * x)
    assert flags == [("D12", "hard")]
    assert error is not None


def test_nothing_is_measured_without_a_graph_or_an_eps() -> None:
    assert error_and_flags(lambda x: x.detach()) == (None, [])
    assert probe_differences(PROBLEM.model, PROBLEM.x, PROBLEM.y, 0.0) == (None, [])


def test_the_probe_records_the_figure_without_a_flag() -> None:
    result = probe(PROBLEM.model, PROBLEM.x, PROBLEM.y, EPS, declared=False)
    assert result.flags == ()
    assert [name for name, _ in result.checks] == ["D12"]
    assert result.checks[0][1] < 0.01
