"""Common random numbers: what the noise adds to the margin cancels, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks.draws import same_noise
from bench.judging.target import Target
from tests.attacks.linear import TINY, Wrapped, candidates, two_classes

ATTACKS = ("spsa", "nes", "square")
LONG: dict[str, dict[str, Any]] = {
    "spsa": {"steps": 6, "samples": 20},
    "nes": {"steps": 6, "samples": 20},
    "square": {"queries": 80, "eot": 3},
}


class Noisy(nn.Module):
    """Margins with noise of that deviation added; remembers what it drew."""

    def __init__(self, base: nn.Module, deviation: float = 1.0) -> None:
        super().__init__()
        self.base = base
        self.deviation = deviation
        self.drawn: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.drawn.append(torch.randn(len(x)))
        half = self.deviation * self.drawn[-1] / 2
        return self.base(x) + torch.stack([-half, half], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_noise_that_is_added_to_the_margin_has_no_say(name: str, norm: str) -> None:
    problem = two_classes(batch=6)
    eps = 0.5 * float(problem.optimum[norm][0])

    def last_iterate(deviation: float, common: bool) -> Tensor:
        defence = Noisy(problem.model, deviation)  # it draws at any deviation
        target = Target(defence, access="score", stochastic=True, classes=2)
        return candidates(problem, name, norm, eps, target, common=common, **LONG[name])[0]

    still = last_iterate(0.0, common=True)
    noisy = last_iterate(1.0, common=True)
    assert torch.allclose(still, noisy, atol=1e-3 * eps)
    still = last_iterate(0.0, common=False)
    noisy = last_iterate(1.0, common=False)
    assert (still - noisy).flatten(1).abs().amax(1).min() > 0.1 * eps / 64, (
        "without common random numbers noise turns the search"
    )


@pytest.mark.parametrize("eot", [1, 3])
@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_a_pair_shares_its_noise_and_nobody_else_has_it(name: str, eot: int) -> None:
    problem = two_classes(batch=2)
    model = Noisy(problem.model)
    target = Target(model, access="score", stochastic=True, classes=2)
    torch.manual_seed(0)
    candidates(problem, name, "linf", 0.01, target, steps=3, samples=4, eot=eot, common=True)
    # one image alone is asked for the number of classes
    drawn = [noise for noise in model.drawn if len(noise) > 1]
    assert [len(noise) for noise in drawn] == [2 * eot, 8 * eot, 8 * eot] * 3
    assert all(torch.equal(drawn[i], drawn[i + 1]) for i in (1, 4, 7))
    assert torch.cat([drawn[i] for i in (0, 1, 3, 4, 6, 7)]).unique().numel() == 3 * 10 * eot


def test_square_meets_the_same_draws_at_every_query() -> None:
    problem = two_classes(batch=4)
    model = Noisy(problem.model)
    target = Target(model, access="score", stochastic=True, classes=2)
    candidates(problem, "square", "linf", 0.01, target, queries=9, eot=3, common=True)
    assert len(model.drawn) == 9
    assert all(torch.equal(model.drawn[0], noise) for noise in model.drawn)
    assert model.drawn[0].unique().numel() == 4 * 3


@pytest.mark.parametrize("name", ATTACKS)
def test_common_adds_no_query_and_spares_deterministic_defences(name: str) -> None:
    problem = two_classes(batch=4)
    noisy = Wrapped(problem.model, lambda logits, x: logits + torch.randn_like(logits))
    queried = []
    results = []
    for defence, stochastic in ((problem.model, False), (noisy, True)):
        for common in (False, True):
            target = Target(defence, access="score", stochastic=stochastic, classes=2)
            knobs = {**TINY[name], "common": common}
            results.append(candidates(problem, name, "l2", 0.05, target, **knobs))
            queried.append(target.forwards)
    assert torch.equal(results[0], results[1])
    assert queried[0] == queried[1]
    assert queried[2] == queried[3]


def test_same_noise_leaves_the_generator_where_it_was() -> None:
    target = two_classes().target()
    torch.manual_seed(0)
    noise = same_noise(target)
    with noise():
        first = torch.rand(5)
    after = torch.rand(5)
    with noise():
        again = torch.rand(5)
    assert torch.equal(first, again)
    torch.manual_seed(0)
    other = same_noise(target)
    assert torch.equal(torch.rand(5), after)
    with other():
        assert torch.equal(torch.rand(5), first)
    with same_noise(target)():
        assert not torch.equal(torch.rand(5), first)
