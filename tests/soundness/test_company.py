"""P2 and P3: one image, one gradient; and an answer that is nobody else's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.soundness.probes.probe import company, probe, same_gradient
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
    return [flag.id for flag in company(Changed(change), PROBLEM.x, PROBLEM.y, stochastic)]


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
def test_an_answer_that_depends_on_the_batch_is_found(name: str) -> None:
    assert codes(SHARED[name], False) == ["P3"]


def test_a_difference_below_a_thousandth_of_a_logit_is_rounding() -> None:
    assert codes(lambda x: x + 1e-6 * x.mean(), False) == []
    assert codes(lambda x: x, False) == []


def test_noise_is_no_dependence_but_noise_that_grows_with_the_batch_or_a_shift_is() -> None:
    assert not [
        seed for seed in range(100) if codes(lambda x: x + 0.3 * torch.randn_like(x), True, seed)
    ]
    assert codes(lambda x: x - 0.2 * x.mean(0) + 0.03 * torch.randn_like(x), True) == ["P3"]


def test_a_defence_whose_draws_agree_has_nothing_to_compare() -> None:
    assert codes(lambda x: x, True) == []
    assert codes(lambda x: x * torch.nan, True) == []
    assert codes(lambda x: x + 1e-6 * len(x), True) == []  # rounding, though every draw has it
    assert codes(lambda x: x * (1 + len(x) / 10), True) == ["P3"]


def gradient(change: Callable[[Tensor], Tensor]) -> list[str]:
    torch.manual_seed(0)
    return [flag.id for flag in same_gradient(Changed(change), PROBLEM.x, PROBLEM.y)]


def test_a_gradient_that_changes_between_two_calls_is_found_though_the_answer_does_not() -> None:
    assert gradient(lambda x: x + (x - x.detach()) * 3 * torch.randn_like(x)) == ["P2"]
    assert gradient(lambda x: x + 0.1 * torch.sin(3 * x)) == []
    assert gradient(lambda x: x + (x - x.detach()) * torch.nan) == []  # D2 says so
    assert gradient(lambda x: x.detach()) == []  # P11 says so
    assert gradient(lambda x: 0 * x) == []  # D1 says so


def test_the_probe_asks_for_equal_gradients_only_where_answers_are_equal() -> None:
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
