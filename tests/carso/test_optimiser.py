"""Schedules, RAdam and Lookahead against the paper's numbers and formulas."""

from __future__ import annotations

import math

import pytest
import torch

from carso.loss import beta_at, elbo
from carso.optimiser import Lookahead, learning_rate
from carso.recipe import read_recipe


@pytest.mark.parametrize(
    ("name", "points"),
    [
        (
            "cifar10",
            {
                0: 5e-9,
                1: 0.00256,
                12: 0.03072,
                24: 0.06144,
                25: 0.064,
                50: 0.064,
                51: 0.063573,
                100: 0.042669,
                150: 0.021339,
                199: 4.35e-4,
            },
        ),
        ("cifar100", {0: 5e-9, 1: 0.00256, 25: 0.064, 50: 0.064, 51: 0.063573, 199: 4.35e-4}),
        (
            "tinyimagenet200",
            {1: 4.13e-4, 31: 0.0128, 62: 0.0128, 63: 0.012732, 150: 0.006809, 249: 6.97e-5},
        ),
    ],
)
def test_learning_rate_of_the_paper(name: str, points: dict[int, float]) -> None:
    r = read_recipe(name)
    for epoch, want in points.items():
        got = learning_rate(
            epoch, r.epochs, start=r.lr_start, base=r.lr, final=r.lr_final, warmup=r.warmup
        )
        assert got == pytest.approx(want, rel=2e-3)


@pytest.mark.parametrize(
    ("epochs", "points"),
    [
        (200, {0: 0, 25: 0, 26: 1 / 9, 33: 8 / 9, 34: 1, 199: 1}),
        (250, {32: 0, 33: 1 / 11, 42: 10 / 11, 43: 1}),
    ],
)
def test_beta_of_the_paper(epochs: int, points: dict[int, float]) -> None:
    for epoch, want in points.items():
        assert beta_at(epoch, epochs, 0.125) == pytest.approx(want)


def test_elbo_is_a_sum() -> None:
    x, rec = (
        torch.rand(3, 1, 4, 4, dtype=torch.float64),
        torch.rand(3, 1, 4, 4, dtype=torch.float64),
    )
    mu, logvar = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    total, reconstruction, kl = elbo(rec, x, mu, logvar, 0.3)
    bce = -sum(
        float(a) * math.log(b) + (1 - float(a)) * math.log(1 - b)
        for a, b in zip(x.flatten().tolist(), rec.flatten().tolist(), strict=True)
    )
    assert float(reconstruction) == pytest.approx(bce)
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(posterior, prior).sum())
    torch.testing.assert_close(total, reconstruction + 0.3 * kl)
    assert elbo(torch.zeros(1, 1), torch.ones(1, 1), mu, logvar, 0)[1] == 100  # the clamp


def radam(
    theta: float, gradients: list[float], lr: float, *, lookahead: bool = False
) -> list[float]:
    """The paper's text, for one number."""
    m = v = 0.0
    out, slow = [], theta
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        n = 1999 - 2 * t * 0.999**t / (1 - 0.999**t)
        if n >= 5:
            r = math.sqrt((1 - 0.999**t) * (n - 4) * (n - 2) * 1999 / (1995 * 1997 * n)) / (
                1 - 0.9**t
            )
            theta -= lr * r * m / (math.sqrt(v) + 1e-8)
        else:
            theta -= lr * m / (1 - 0.9**t)
        if lookahead and t % 6 == 0:
            theta = slow = 0.8 * theta + 0.2 * slow
        out.append(theta)
    return out


def test_radam_inside_is_the_text() -> None:
    gradients = [math.sin(3 * t) + 0.2 for t in range(1, 6)]
    parameter = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimiser = Lookahead([parameter], lr=0.01)
    for g, want in zip(
        gradients, radam(1.0, gradients, 0.01), strict=True
    ):  # five steps: before the first meeting
        parameter.grad = torch.tensor([g], dtype=torch.float64)
        optimiser.step()
        assert parameter.item() == pytest.approx(want, rel=1e-9)


def test_the_two_together_for_thirty_steps() -> None:
    """Five plain steps, then steps divided by the gradient's size; a meeting after each sixth."""
    gradients = [math.sin(3 * t) + 0.2 for t in range(1, 31)]
    want = radam(1.0, gradients, 0.01, lookahead=True)
    parameter = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimiser = Lookahead([parameter], lr=0.01)
    for g, theta in zip(gradients, want, strict=True):
        parameter.grad = torch.tensor([g], dtype=torch.float64)
        optimiser.step()
        assert parameter.item() == pytest.approx(theta, rel=1e-9)


@pytest.mark.parametrize("stop", [0, 1, 4, 6, 9])
def test_a_restored_optimiser_goes_on_as_it_would_have(stop: int) -> None:
    def step(optimiser: Lookahead, t: int) -> None:
        for i, p in enumerate(optimiser.parameters):
            p.grad = torch.full_like(p, math.cos(t + i))
        optimiser.set_lr(0.01 * (t + 1))
        optimiser.step()

    def new() -> Lookahead:
        return Lookahead(
            [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.zeros(4))], lr=1.0
        )

    whole, restored = new(), new()
    for t in range(stop):
        step(whole, t)
    for p, q in zip(restored.parameters, whole.parameters, strict=True):
        p.data.copy_(q.data)
    restored.restore({name: value.clone() for name, value in whole.state().items()}, whole.steps)
    for t in range(stop, 14):
        step(whole, t)
        step(restored, t)
    whole.load_slow_weights()
    restored.load_slow_weights()
    for p, q in zip(restored.parameters, whole.parameters, strict=True):
        assert torch.equal(p, q)
    if stop:
        with pytest.raises(KeyError, match=r"exp_avg\.1"):
            new().restore(
                {name: value for name, value in whole.state().items() if name != "exp_avg.1"}, stop
            )


def test_a_schedule_without_a_decay() -> None:
    assert [learning_rate(e, 2, start=0.1, base=1.0, final=0.0, warmup=0.5) for e in range(2)] == [
        0.1,
        1.0,
    ]


def test_lookahead_meets_every_six_steps_and_ends_on_the_slow_weights() -> None:
    gradients = [math.cos(t) for t in range(15)]
    inner = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    fast = torch.optim.RAdam([inner], lr=0.05)
    parameter = torch.nn.Parameter(inner.detach().clone())
    optimiser = Lookahead([parameter], lr=0.05)
    slow = inner.item()
    for t, g in enumerate(gradients, 1):
        inner.grad = torch.tensor([g], dtype=torch.float64)
        parameter.grad = inner.grad.clone()
        fast.step()
        optimiser.step()
        if t % 6 == 0:
            slow = 0.8 * inner.item() + 0.2 * slow
            with torch.no_grad():
                inner.fill_(slow)
        assert parameter.item() == pytest.approx(inner.item(), rel=1e-12)
    optimiser.load_slow_weights()
    assert parameter.item() == pytest.approx(slow, rel=1e-12)
    assert parameter.item() != pytest.approx(inner.item(), rel=1e-6)
