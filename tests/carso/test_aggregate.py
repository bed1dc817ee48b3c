"""Aggregations against arithmetic of hundreds of digits, and the traps of float32."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from carso.aggregate import AGGREGATIONS, find_aggregation

STABLE = ("peel", "logit", "prob", "lse")
FLAT = ("count", "vote")


def draw(
    scale: float,
    *,
    b: int = 6,
    e: int = 8,
    k: int = 10,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    return scale * torch.randn(
        b, e, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def exact_peel(logits: Tensor) -> Tensor:
    """The definition in 2000-digit arithmetic: log(p/(1-p)), p = softmax_k(sum_e exp(l[k,e]))."""
    with mpmath.workdps(2000):
        rows = []
        for sample in logits.tolist():
            s = [
                mpmath.fsum(mpmath.exp(mpmath.mpf(v)) for v in column)
                for column in zip(*sample, strict=True)
            ]
            powers = [mpmath.exp(v) for v in s]
            total = mpmath.fsum(powers)
            rows.append(
                [
                    float(mpmath.log(p / mpmath.fsum(q for j, q in enumerate(powers) if j != i)))
                    for i, p in enumerate(powers)
                ]
            )
            assert total > 0
        return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 3.0])
def test_peel_is_its_definition(scale: float) -> None:
    logits = draw(scale)
    want = exact_peel(logits)
    torch.testing.assert_close(AGGREGATIONS["peel"](logits), want, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        AGGREGATIONS["peel"](logits.float()).double(), want, rtol=2e-5, atol=2e-5
    )


def test_peel_with_ties() -> None:
    logits = torch.zeros(3, 2, 5, dtype=torch.float64)
    logits[1, :, :2] = 4.0  # two at the top
    logits[2, :, 1:] = 4.0  # all but one
    torch.testing.assert_close(
        AGGREGATIONS["peel"](logits), exact_peel(logits), rtol=1e-13, atol=1e-13
    )


def test_peel_gradient_is_the_closed_form() -> None:
    """d out_k / d l[m,e] = exp(l[m,e]) (1 if m = k else -w_m).

    Here w is the softmax of s over all classes but k.
    """
    logits = draw(1.5, b=1, e=3, k=5).requires_grad_()
    out = AGGREGATIONS["peel"](logits)
    s = logits.detach().exp().sum(1)[0]
    for k in range(5):
        (got,) = torch.autograd.grad(out[0, k], logits, retain_graph=True)
        w = torch.cat([s[:k], torch.tensor([-math.inf], dtype=s.dtype), s[k + 1 :]]).softmax(0)
        factor = -w
        factor[k] = 1
        torch.testing.assert_close(
            got[0], logits.detach()[0].exp() * factor, rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("name", STABLE)
def test_gradcheck(name: str) -> None:
    assert torch.autograd.gradcheck(AGGREGATIONS[name], draw(1.0, b=3, e=4, k=5).requires_grad_())


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_peel_is_the_naive_form_where_that_is_finite(scale: float) -> None:
    logits = draw(scale, b=200)
    naive = AGGREGATIONS["peel-naive"](logits)
    finite = naive.isfinite()
    assert finite.float().mean() > 0.5
    # The naive form computes 1 - p, and loses what p takes of the 16 digits.
    moderate = finite & (naive < 12)
    torch.testing.assert_close(
        AGGREGATIONS["peel"](logits)[moderate], naive[moderate], rtol=1e-9, atol=1e-9
    )


def test_the_naive_form_breaks_where_its_record_says() -> None:
    """Ten classes, eight equal samples, the others at 0, in float32.

    The top class is +inf from 1.13 to 1.21 on: the order of a sum decides.
    """
    for top, finite in ((1.05, True), (1.3, False)):
        logits = torch.zeros(1, 8, 10)
        logits[:, :, 3] = top
        assert bool(AGGREGATIONS["peel-naive"](logits).isfinite().all()) == finite
        assert AGGREGATIONS["peel"](logits).isfinite().all()


def test_prob_is_its_definition() -> None:
    logits = draw(2.0)
    q = logits.sigmoid().mean(1)
    torch.testing.assert_close(
        AGGREGATIONS["prob"](logits), (q / (1 - q)).log(), rtol=1e-12, atol=1e-12
    )


def extremes() -> dict[str, Tensor]:
    """Float32 logits (B,8,K) up to +-50."""
    spread = 100 * torch.rand(64, 8, 10, generator=torch.Generator().manual_seed(3)) - 50
    single = torch.full((2, 8, 10), -50.0)
    single[:, :, 4] = 50.0
    lone = torch.full((2, 8, 10), -50.0)
    lone[:, 3, 4] = 50.0
    tied = torch.full((2, 8, 10), 50.0)
    pair = torch.zeros(2, 8, 10)
    pair[:, :, 2:4] = 50.0
    near = torch.full((2, 8, 10), 50.0)
    near[:, :, 1] = torch.nextafter(torch.tensor(50.0), torch.tensor(0.0))
    two = torch.tensor([[[50.0, -50.0]] * 8, [[50.0, 50.0]] * 8, [[-50.0, -50.0]] * 8])
    return {
        "spread": spread,
        "one": single,
        "lone": lone,
        "tied": tied,
        "low": -tied,
        "pair": pair,
        "near": near,
        "two": two,
    }


@pytest.mark.parametrize("case", list(extremes()))
@pytest.mark.parametrize("name", STABLE)
def test_margins_have_finite_gradients_that_are_not_zero(name: str, case: str) -> None:
    logits = extremes()[case].requires_grad_()
    out = AGGREGATIONS[name](logits)
    assert out.isfinite().all()
    for y in range(logits.shape[2]):
        wrong = out.clone()
        wrong[:, y] = -math.inf
        (gradient,) = torch.autograd.grad(
            (wrong.amax(1) - out[:, y]).sum(), logits, retain_graph=True
        )
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(1) > 0).all()
        assert (gradient[:, :, y] < 0).any(1).all()  # down with the true class


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("case", list(extremes()))
def test_piecewise_constant_ones_are_finite_and_flat(name: str, case: str) -> None:
    logits = extremes()[case].requires_grad_()
    out = AGGREGATIONS[name](logits)
    (gradient,) = torch.autograd.grad(out.sum(), logits)
    assert out.isfinite().all()
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
def test_peel_and_lse_decide_alike(scale: float) -> None:
    logits = draw(scale, b=500, dtype=torch.float32)
    s = logits.double().exp().sum(1)
    for name in ("peel", "lse"):
        assert torch.equal(AGGREGATIONS[name](logits).argmax(1), s.argmax(1))


def test_one_confident_sample_outweighs_seven() -> None:
    logits = torch.zeros(1, 8, 3)
    logits[0, :7, 0] = 2.0
    logits[0, 7, 1] = 6.0
    assert AGGREGATIONS["peel"](logits).argmax() == 1
    assert AGGREGATIONS["vote"](logits).argmax() == 0


def test_vote_counts_and_count_does_not() -> None:
    logits = torch.tensor([[[-1.0, -5.0, -3.0], [2.0, 1.0, -3.0], [1.0, 4.0, 0.0]]])
    assert AGGREGATIONS["vote"](logits).tolist() == [[2.0, 1.0, 0.0]]
    # floor(l / max): a sample of negative logits gives its worst class the most.
    assert AGGREGATIONS["count"](logits).tolist() == [
        [1.0 + 1.0 + 0.0, 5.0 + 0.0 + 1.0, 3.0 - 2.0 + 0.0]
    ]


def test_count_where_the_maximum_is_zero() -> None:
    out = AGGREGATIONS["count"](torch.tensor([[[0.0, -1.0, -2.0]] * 8]))
    assert out.isfinite().all()
    assert out.argmax(1).tolist() == [0]


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="'peal' is unknown; did you mean 'peel'"):
        find_aggregation("peal")


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize(
    ("name", "level"),
    [(name, level) for name in (*STABLE, "vote") for level in (-100, -3, 0, 3, 80)],
)
def test_the_class_that_every_sample_names_wins(name: str, level: float, samples: int) -> None:
    """Whatever the level of the logits: all below zero, all of one size, or large.

    PeeL is left out far below zero, where its values tie.
    """
    logits = level + draw(1, b=64, e=samples, dtype=torch.float32)
    winner = torch.arange(64) % 10
    logits[torch.arange(64), :, winner] = logits.amax(2) + 0.5
    answer = AGGREGATIONS[name](logits)
    if (name, level) == ("peel", -100):
        assert (answer == answer[:, :1]).all()
    else:
        assert torch.equal(answer.argmax(1), winner)
