"""Intervals against exact answers, published values, and the coverage that they promise."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from fractions import Fraction
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from bench.results.statistics import (
    all_of,
    bootstrap,
    detectable,
    estimate,
    holm,
    lower_limit,
    majority_of,
    mcnemar,
    mcnemar_mid,
    paired_interval,
    sign_flip,
    wilson,
    wilson_eff,
)


def tail(n: int, p: float, at_most: int) -> float:
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(at_most + 1))


@pytest.mark.parametrize(
    ("n", "points"), [(100, 9.4), (256, 6.0), (512, 4.2), (1000, 3.0), (10_000, 1.0)]
)
def test_wilson_has_the_published_half_widths_at_sixty_percent(n: int, points: float) -> None:
    lo, hi = wilson(0.6 * n, n)
    assert (hi - lo) / 2 * 100 == pytest.approx(points, abs=0.06)


@pytest.mark.parametrize(("n", "percent"), [(100, 3.7), (512, 0.74), (1000, 0.38)])
def test_wilson_has_an_upper_limit_where_nothing_survived(n: int, percent: float) -> None:
    lo, hi = wilson(0, n)
    assert lo == 0
    assert hi * 100 == pytest.approx(percent, rel=0.01)
    assert wilson(n, n) == (pytest.approx(1 - hi), 1.0)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 1), (3, 10), (61, 100), (99, 100), (500, 1000)])
def test_lower_limit_leaves_exactly_the_tail(k: int, n: int) -> None:
    lo = lower_limit(k, n, 0.975)
    if k == 0:
        assert lo == 0
    else:
        assert lo < k / n
        assert 1 - tail(n, lo, k - 1) == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize(("n", "soft", "hard"), [(100, 2, 4), (512, 4, 10), (1000, 6, 16)])
def test_lower_limit_gives_the_counts_of_the_two_sample_rule(n: int, soft: int, hard: int) -> None:
    assert lower_limit(soft, n) > 0.002 >= lower_limit(soft - 1, n)
    assert lower_limit(hard, n) > 0.01 >= lower_limit(hard - 1, n)


def test_mcnemar_gives_the_published_values() -> None:
    p_values = [mcnemar(b, c) for b, c in ((6, 0), (0, 6), (5, 0), (60, 40), (0, 0), (3, 3))]
    assert p_values == pytest.approx([1 / 32, 1 / 32, 1 / 16, 0.056888, 1.0, 1.0], rel=1e-5)


def test_wilson_eff_at_the_edges() -> None:
    assert wilson_eff([0.0] * 20) == wilson(0, 20)
    assert wilson_eff([1.0] * 20) == wilson(20, 20)
    # No variance is seen; the n examples are still only n.
    assert wilson_eff([0.5] * 20) == wilson(10, 20)
    assert wilson_eff([0.25]) == wilson(0.25, 1)
    # Half right on every example but for a hair: the variance asks for n = 10^7.
    # Ten draws of 20 examples allow 200.
    assert wilson_eff([0.4999, 0.5001] * 10, draws=10) == pytest.approx(wilson(100, 200))


def test_estimate_of_single_draws_is_plain_wilson() -> None:
    share = estimate([1, 0, 1, 1], 1)
    assert (share.mean, share.lo, share.hi) == (0.75, *wilson(3, 4))
    assert estimate([8, 0, 4, 8, 2], 8).mean == pytest.approx(22 / 40)


@pytest.mark.parametrize(
    ("n", "draws", "a", "b"),
    [(200, 16, 0.6, 0.4), (200, 16, 6, 4), (100, 8, 0.005, 0.5), (100, 8, 3, 0.05)],
    ids=["strong", "weak", "low", "high"],
)
def test_wilson_eff_covers_where_pooling_the_draws_does_not(
    n: int, draws: int, a: float, b: float
) -> None:
    rng = random.Random(0)
    truth = a / (a + b)
    trials = 250
    covered = 0
    covered_by_pooling = 0
    for _ in range(trials):
        counts = [
            sum(rng.random() < p for _ in range(draws))
            for p in (rng.betavariate(a, b) for _ in range(n))
        ]
        lo, hi = wilson_eff([count / draws for count in counts], draws)
        covered += lo <= truth <= hi
        lo, hi = wilson(sum(counts), n * draws)
        covered_by_pooling += lo <= truth <= hi
    assert 0.92 <= covered / trials <= 0.995
    assert covered_by_pooling / trials < 0.87


def test_lower_limit_covers_at_least_as_often_as_it_says() -> None:
    rng = random.Random(1)
    for p in (0.02, 0.3, 0.9):
        counts = [sum(rng.random() < p for _ in range(40)) for _ in range(300)]
        covered = [
            lower_limit(k, 40, 0.975) <= p <= 1 - lower_limit(40 - k, 40, 0.975) for k in counts
        ]
        assert fmean(covered) >= 0.93


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    for interval in (wilson, lower_limit):
        with pytest.raises(ValueError, match="successes"):
            interval(k, n)


PAIRS = [(0, 0), (1, 0), (0, 4), (5, 5), (3, 9), (9, 3), (20, 4), (60, 40), (700, 800)]


@pytest.mark.parametrize(("b", "c"), PAIRS)
def test_mcnemar_and_its_mid_p_are_scipys_binomial_test(b: int, c: int) -> None:
    assert mcnemar(b, c) == pytest.approx(
        stats.binomtest(b, b + c).pvalue if b + c else 1.0, rel=1e-9
    )
    few = min(b, c)
    mid = 2 * stats.binom.cdf(few - 1, b + c, 0.5) + stats.binom.pmf(few, b + c, 0.5)
    assert mcnemar_mid(b, c) == pytest.approx(mid, rel=1e-6)


def differences(rng: random.Random, n: int, first: float, second: float) -> list[float]:
    """Of `n` examples, a share `first` that A alone gets right, and `second` that B alone does."""
    values = []
    for _ in range(n):
        u = rng.random()
        if u < first:
            values.append(1.0)
        elif u < first + second:
            values.append(-1.0)
        else:
            values.append(0.0)
    return values


@pytest.mark.parametrize(
    ("n", "first", "second"), [(50, 0.02, 0.02), (100, 0.1, 0.02), (200, 0.3, 0.1)]
)
def test_the_paired_interval_covers_the_true_difference(
    n: int, first: float, second: float
) -> None:
    rng = random.Random(2)
    trials = 400
    covered = 0
    for _ in range(trials):
        seen = differences(rng, n, first, second)
        lo, hi = paired_interval(seen.count(1.0), seen.count(-1.0), n)
        covered += lo <= first - second <= hi
    assert covered / trials >= 0.925


def test_the_paired_interval_is_walds_with_two_more_examples() -> None:
    wald = 1.959964 * math.sqrt(21 + 11 - (21 - 11) ** 2 / 102) / 102
    assert paired_interval(20, 10, 100) == pytest.approx(
        (10 / 102 - wald, 10 / 102 + wald), abs=1e-6
    )
    assert paired_interval(10, 20, 100) == pytest.approx(
        (-10 / 102 - wald, -10 / 102 + wald), abs=1e-6
    )
    lo, hi = paired_interval(0, 0, 100)
    assert lo == -hi < -0.02
    assert paired_interval(3, 0, 3)[1] == 1
    for b, c, n in ((1, 0, 0), (-1, 0, 5), (3, 3, 5)):
        with pytest.raises(ValueError, match="discordant pairs"):
            paired_interval(b, c, n)


def graded(rng: random.Random, n: int, draws: int, gain: float) -> list[float]:
    """Differences of the shares of right draws of two stochastic defences.

    The first is better by `gain` on every example.
    """
    levels = [rng.betavariate(2, 2) * (1 - gain) for _ in range(n)]
    return [
        sum((rng.random() < p + gain) - (rng.random() < p) for _ in range(draws)) / draws
        for p in levels
    ]


def test_the_bootstrap_is_scipys() -> None:
    seen = graded(random.Random(3), 80, 10, 0.1)
    theirs = stats.bootstrap(
        (np.array(seen),),
        np.mean,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert bootstrap(seen) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert bootstrap(seen) == bootstrap(seen)
    assert bootstrap(seen, seed=1) != bootstrap(seen)
    narrow = bootstrap(seen, confidence=0.5)
    wide = bootstrap(seen)
    assert wide[0] < narrow[0] < fmean(seen) < narrow[1] < wide[1]


def test_the_bootstrap_covers_the_true_difference() -> None:
    rng = random.Random(4)
    intervals = [bootstrap(graded(rng, 50, 4, 0.1), resamples=300) for _ in range(150)]
    assert 0.89 <= fmean(lo <= 0.1 <= hi for lo, hi in intervals) <= 0.99


def test_the_bootstrap_of_few_differences_is_no_point() -> None:
    assert bootstrap([0.0] * 50, resamples=100) == paired_interval(0, 0, 50)
    assert bootstrap([1.0] * 50, resamples=100)[1] == 1
    lo, hi = bootstrap([0.0] * 49 + [0.5], resamples=100)
    assert lo <= 0.01 - paired_interval(0, 0, 50)[1]
    assert hi >= 0.01 + paired_interval(0, 0, 50)[1]
    with pytest.raises(ValueError, match="no differences"):
        bootstrap([])


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 6), (6, 2), (5, 5), (10, 3)])
def test_sign_flips_of_single_draws_are_the_exact_mcnemar_test(b: int, c: int) -> None:
    assert sign_flip([1.0] * b + [-1.0] * c + [0.0] * 30) == pytest.approx(mcnemar(b, c), rel=1e-9)


def test_sign_flips_are_scipys_permutation_test() -> None:
    seen = [0.3, -0.1, 0.2, 0.25, -0.05, 0.1, 0.0, 0.4, 0.1, -0.2]
    theirs = stats.permutation_test(
        (seen, [0.0] * len(seen)),
        lambda a, b: np.mean(a) - np.mean(b),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert sign_flip(seen) == pytest.approx(theirs.pvalue, rel=1e-9)
    assert sign_flip([-d for d in seen]) == sign_flip(seen)
    assert sign_flip(seen, flips=500) == pytest.approx(theirs.pvalue, abs=0.06)
    assert sign_flip([0.1] * 60) == 1 / 10_001
    assert sign_flip([1.0] * 60 + [-1.0] * 40) == pytest.approx(0.0569, abs=0.008)
    assert sign_flip([]) == 1


def test_sign_flips_keep_the_level_and_have_power() -> None:
    rng = random.Random(5)
    null = [sign_flip(graded(rng, 40, 5, 0.0), flips=400) for _ in range(200)]
    assert fmean(p < 0.05 for p in null) <= 0.09
    assert fmean(p < 0.5 for p in null) == pytest.approx(0.5, abs=0.12)
    assert fmean(sign_flip(graded(rng, 40, 5, 0.15), flips=400) < 0.05 for _ in range(50)) > 0.6


def test_the_detectable_difference_has_the_published_values_and_its_power() -> None:
    for n, points in ((1000, 4.0), (10_000, 1.25)):
        tenth = n // 10
        values = [1.0] * tenth + [-1.0] * tenth + [0.0] * (8 * tenth)
        assert 100 * detectable(values) == pytest.approx(points, abs=0.05)
    assert detectable([0.0] * 100) == pytest.approx(2.8016 * math.sqrt(3) / 100, rel=1e-4)
    rng = random.Random(6)
    n = 400
    gain = 2.8016 * math.sqrt(0.2 / n)
    tables = [differences(rng, n, (0.2 + gain) / 2, (0.2 - gain) / 2) for _ in range(300)]
    shown = [mcnemar_mid(table.count(1.0), table.count(-1.0)) < 0.05 for table in tables]
    assert fmean(shown) == pytest.approx(0.8, abs=0.08)


def test_holm_gives_the_values_of_rs_p_adjust() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@pytest.mark.parametrize(("draws", "m"), [(7, 1), (7, 3), (7, 7), (10, 9), (9, 5)])
@pytest.mark.parametrize("p", [Fraction(1, 10), Fraction(1, 2), Fraction(4, 5), Fraction(1)])
def test_repeated_draws_are_estimated_without_bias(p: Fraction, draws: int, m: int) -> None:
    """The expected estimate over all that `draws` answers can be, for any probability p."""
    chance = [math.comb(draws, c) * p**c * (1 - p) ** (draws - c) for c in range(draws + 1)]
    weights = [float(weight) for weight in chance]

    def expect(values: Iterable[float]) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    counts = range(draws + 1)
    expected_all = expect(all_of([c], draws, m) for c in counts)
    assert expected_all == pytest.approx(float(p**m), abs=1e-12)
    binomial = [math.comb(m, k) * p**k * (1 - p) ** (m - k) for k in range(m // 2 + 1, m + 1)]
    expected_majority = expect(majority_of([c], draws, m) for c in counts)
    assert expected_majority == pytest.approx(float(sum(binomial)), abs=1e-12)
    expected_power = expect((c / draws) ** m for c in counts)
    if m > 1 and p < 1:
        assert expected_power > expected_all + 1e-12, "the power of the share is too large"


def test_repeated_draws_are_means_of_the_hypergeometric_distribution() -> None:
    counts = [0, 3, 8, 12, 12, 5]
    assert all_of(counts, 12, 4) == pytest.approx(
        fmean(stats.hypergeom.pmf(4, 12, c, 4) for c in counts)
    )
    assert majority_of(counts, 12, 5) == pytest.approx(
        fmean(stats.hypergeom.sf(2, 12, c, 5) for c in counts)
    )
    assert all_of(counts, 12, 1) == majority_of(counts, 12, 1) == pytest.approx(fmean(counts) / 12)
    assert all_of(counts, 12, 12) == pytest.approx(2 / 6), (
        "the share of examples that were right every time"
    )
    for wrong in (13, 0):
        with pytest.raises(ValueError, match="cannot be taken from 12"):
            all_of(counts, 12, wrong)
    with pytest.raises(ValueError, match="no majority"):
        majority_of(counts, 12, 4)


def test_all_of_32_draws_is_estimated_from_64() -> None:
    """The chances have a Beta(.6,.4) distribution: the mean of their 32nd power is .167."""
    rng = random.Random(0)
    counts = [
        sum(rng.random() < p for _ in range(64))
        for p in (rng.betavariate(0.6, 0.4) for _ in range(4000))
    ]
    true = math.prod((0.6 + i) / (1 + i) for i in range(32))
    assert true == pytest.approx(0.1672, abs=0.0001)
    assert all_of(counts, 64, 32) == pytest.approx(true, abs=0.012)
    assert fmean((c / 64) ** 32 for c in counts) > true + 0.012
