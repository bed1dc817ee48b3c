"""P2 and P3: one image has one gradient, and its answer depends on no other image."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.soundness.probes.gradients import probe_repeated_gradient
from bench.soundness.probes.probe import probe
from bench.soundness.probes.state import probe_company
from tests.attacks.linear import two_classes

PROBLEM = two_classes(batch=32)


class Changed(nn.Module):
    """The linear model behind a change of its input."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = PROBLEM.model(self.change(x))
        return logits


def codes(change: Callable[[Tensor], Tensor], stochastic: bool, seed: int = 0) -> list[str]:
    torch.manual_seed(seed)
    return [flag.id for flag in probe_company(Changed(change), PROBLEM.x, PROBLEM.y, stochastic)]


def first_of_batch_differs(x: Tensor) -> Tensor:
    return torch.cat([1 - x[:1], x[1:]])


def infinite_beside_noise(x: Tensor) -> Tensor:
    return torch.where(x.std() > PROBLEM.x.std() * 1.01, torch.inf, x)


SHARED = {
    "the mean of the batch": lambda x: x - 0.2 * x.mean(0, keepdim=True),
    "its size": lambda x: x * (1 + len(x) / 10),
    "the place in it": first_of_batch_differs,
    "infinite in company": infinite_beside_noise,
}


@pytest.mark.parametrize("name", list(SHARED))
def test_an_answer_that_depends_on_the_batch_raises_p3(name: str) -> None:
    assert codes(SHARED[name], False) == ["P3"]


def test_a_difference_below_a_thousandth_of_a_logit_is_rounding() -> None:
    assert codes(lambda x: x + 1e-6 * x.mean(), False) == []
    assert codes(lambda x: x, False) == []


def test_noise_raises_p3_only_where_the_batch_shifts_it() -> None:
    assert not [
        seed for seed in range(100) if codes(lambda x: x + 0.3 * torch.randn_like(x), True, seed)
    ]
    assert codes(lambda x: x - 0.2 * x.mean(0) + 0.03 * torch.randn_like(x), True) == ["P3"]


def test_draws_that_agree_have_no_spread_to_compare() -> None:
    assert codes(lambda x: x, True) == []
    assert codes(lambda x: x * torch.nan, True) == []
    assert codes(lambda x: x + 1e-6 * len(x), True) == []  # rounding, though every draw has it
    assert codes(lambda x: x * (1 + len(x) / 10), True) == ["P3"]


def repeated_gradient(change: Callable[[Tensor], Tensor]) -> list[str]:
    torch.manual_seed(0)
    return [flag.id for flag in probe_repeated_gradient(Changed(change), PROBLEM.x, PROBLEM.y)]


def test_a_gradient_that_changes_between_calls_raises_p2() -> None:
    assert repeated_gradient(lambda x: x + (x - x.detach()) * 3 * torch.randn_like(x)) == ["P2"]
    assert repeated_gradient(lambda x: x + 0.1 * torch.sin(3 * x)) == []
    assert repeated_gradient(lambda x: x + (x - x.detach()) * torch.nan) == []  # D2 says so
    assert repeated_gradient(lambda x: x.detach()) == []  # P11 says so
    assert repeated_gradient(lambda x: 0 * x) == []  # D1 says so


def test_p2_is_asked_only_of_equal_answers() -> None:
    torch.manual_seed(0)
    noisy = probe(
        Changed(lambda x: x + 0.3 * torch.randn_like(x)), PROBLEM.x, PROBLEM.y, 0.1, declared=True
    )
    assert not {"P2", "P3"} & {flag.id for flag in noisy.flags}
    crowd = probe(
        Changed(lambda x: x - 0.2 * x.mean(0, keepdim=True)),
        PROBLEM.x,
        PROBLEM.y,
        0.1,
        declared=False,
    )
    assert "P3" in {flag.id for flag in crowd.flags}
    spoilt = probe(
        Changed(lambda x: x + (x - x.detach()) * 3 * torch.randn_like(x)),
        PROBLEM.x,
        PROBLEM.y,
        0.1,
        declared=False,
    )
    assert "P2" in {flag.id for flag in spoilt.flags}


def test_the_probes_are_imported_without_scipy_stats() -> None:
    """`--list` imports the probes, and scipy.stats takes two seconds."""
    code = "import sys, bench.soundness.probes.probe; assert 'scipy.stats' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
