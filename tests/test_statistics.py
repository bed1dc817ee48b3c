"""Intervals against exact answers, published values and their own promise: coverage, by seeded simulation."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from bench.statistics import beta_cdf, clopper_pearson, estimate, lower_limit, mcnemar, wilson, wilson_eff


def tail(n: int, p: float, at_most: int) -> float:
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(at_most + 1))


@pytest.mark.parametrize(("n", "points"), [(100, 9.4), (256, 6.0), (512, 4.2), (1000, 3.0), (10_000, 1.0)])
def test_wilson_has_the_published_half_widths_at_sixty_percent(n: int, points: float) -> None:
    lo, hi = wilson(0.6 * n, n)
    assert (hi - lo) / 2 * 100 == pytest.approx(points, abs=0.06)


@pytest.mark.parametrize(("n", "percent"), [(100, 3.7), (512, 0.74), (1000, 0.38)])
def test_wilson_still_has_an_upper_limit_where_nothing_survived(n: int, percent: float) -> None:
    lo, hi = wilson(0, n)
    assert lo == 0
    assert hi * 100 == pytest.approx(percent, rel=0.01)
    assert wilson(n, n) == (pytest.approx(1 - hi), 1.0)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 1), (3, 10), (61, 100), (99, 100), (500, 1000)])
def test_clopper_pearson_leaves_exactly_the_tails(k: int, n: int) -> None:
    lo, hi = clopper_pearson(k, n)
    assert (lo, hi)[k == n] == k / n if k in (0, n) else lo < k / n < hi
    if k < n:
        assert tail(n, hi, k) == pytest.approx(0.025, rel=1e-6)
    if k > 0:
        assert 1 - tail(n, lo, k - 1) == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize(("n", "soft", "hard"), [(100, 2, 4), (512, 4, 10), (1000, 6, 16)])
def test_lower_limit_gives_the_published_counts_of_the_two_sample_rule(n: int, soft: int, hard: int) -> None:
    assert lower_limit(soft, n) > 0.002 >= lower_limit(soft - 1, n)
    assert lower_limit(hard, n) > 0.01 >= lower_limit(hard - 1, n)


def test_mcnemar_gives_the_published_values() -> None:
    found = [mcnemar(b, c) for b, c in ((6, 0), (0, 6), (5, 0), (60, 40), (0, 0), (3, 3))]
    assert found == pytest.approx([1 / 32, 1 / 32, 1 / 16, 0.056888, 1.0, 1.0], rel=1e-5)


@pytest.mark.parametrize(("a", "b", "x"), [(2, 5, 0.3), (5, 2, 0.9), (1, 1, 0.25), (30, 70, 0.31), (700, 300, 0.68)])
def test_beta_cdf_is_a_binomial_tail(a: int, b: int, x: float) -> None:
    n = a + b - 1
    assert beta_cdf(a, b, x) == pytest.approx(1 - tail(n, x, a - 1), abs=1e-10)


def test_wilson_eff_at_the_edges() -> None:
    assert wilson_eff([0.0] * 20) == wilson(0, 20)
    assert wilson_eff([1.0] * 20) == wilson(20, 20)
    assert wilson_eff([0.5] * 20) == wilson(10, 20)  # no variance is seen; the n examples are still only n
    assert wilson_eff([0.25]) == wilson(0.25, 1)
    # Half right on every example but for a hair: the variance asks for n = 10^7, ten draws of 20 examples allow 200.
    assert wilson_eff([0.4999, 0.5001] * 10, draws=10) == pytest.approx(wilson(100, 200))


def test_estimate_of_single_draws_is_plain_wilson() -> None:
    found = estimate([1, 0, 1, 1], 1)
    assert (found.mean, found.lo, found.hi) == (0.75, *wilson(3, 4))
    assert estimate([8, 0, 4, 8, 2], 8).mean == pytest.approx(22 / 40)


@pytest.mark.parametrize(
    ("n", "draws", "a", "b"), [(200, 16, 0.6, 0.4), (200, 16, 6, 4), (100, 8, 0.005, 0.5), (100, 8, 3, 0.05)], ids=["strong", "weak", "low", "high"]
)
def test_wilson_eff_covers_where_pooling_the_draws_does_not(n: int, draws: int, a: float, b: float) -> None:
    rng, truth, held, pooled, trials = random.Random(0), a / (a + b), 0, 0, 250
    for _ in range(trials):
        counts = [sum(rng.random() < p for _ in range(draws)) for p in (rng.betavariate(a, b) for _ in range(n))]
        lo, hi = wilson_eff([count / draws for count in counts], draws)
        held += lo <= truth <= hi
        lo, hi = wilson(sum(counts), n * draws)
        pooled += lo <= truth <= hi
    assert 0.92 <= held / trials <= 0.995
    assert pooled / trials < 0.87


def test_clopper_pearson_never_covers_less_than_it_says() -> None:
    rng = random.Random(1)
    for p in (0.02, 0.3, 0.9):
        draws = [sum(rng.random() < p for _ in range(40)) for _ in range(300)]
        assert fmean(lo <= p <= hi for lo, hi in (clopper_pearson(k, 40) for k in draws)) >= 0.93


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_counts_that_cannot_be_are_refused(k: int, n: int) -> None:
    for interval in (wilson, clopper_pearson):
        with pytest.raises(ValueError, match="successes"):
            interval(k, n)
