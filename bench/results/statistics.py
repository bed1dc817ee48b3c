"""Intervals and paired tests for accuracies. scipy is imported only where a limit is computed.

An accuracy is a mean over examples. The examples are the independent units, not the draws of a
stochastic defence.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev, variance

# With p near 0, n=100 and 8 draws the interval covers 88% without this rule and 96% with it
# (tests/results/test_statistics.py).
FEW = 5


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share in [0,1] with the limits of its 95% interval."""

    mean: float
    lo: float
    hi: float


def estimate(counts: Sequence[int], draws: int) -> Estimate:
    """The mean of `counts[i]/draws` over examples, with its interval.

    Wilson's interval for one draw each; for several, Wilson's interval with the effective n.
    """
    means = [count / draws for count in counts]
    lo, hi = wilson(sum(counts), len(counts)) if draws == 1 else wilson_eff(means, draws)
    return Estimate(fmean(means), lo, hi)


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of `k` successes in `n` trials; both may be fractional.

    Wilson 1927.
    """
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"wilson: {k} successes in {n} trials")
    z = normal_quantile(confidence)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The limits are exactly 0 and 1 at the ends; rounding would leave them just beside.
    lo = 0.0 if k == 0 else max(0.0, centre - half)
    hi = 1.0 if k == n else min(1.0, centre + half)
    return lo, hi


def wilson_eff(
    means: Sequence[float], draws: int | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval for a mean of per-example means in [0,1], at the effective n.

    The effective n is the number of independent single draws that has the same variance. Pooling
    the draws of all examples instead covers as little as 42% at nominal 95%. `draws` bounds the
    effective n by what pooling would claim. Where fewer than `FEW` examples hold all that is seen
    of one outcome, their variance says little and n itself is used.
    """
    n = len(means)
    p = fmean(means)
    effective = float(n)
    ever_right = sum(m > 0 for m in means)
    ever_wrong = sum(m < 1 for m in means)
    if min(ever_right, ever_wrong) >= FEW:
        variance_of_mean = variance(means) / n
        if variance_of_mean > 0:
            effective = p * (1 - p) / variance_of_mean
    if draws is not None:
        effective = min(effective, float(n * draws))
    return wilson(p * effective, effective, confidence)


def normal_quantile(confidence: float) -> float:
    """The quantile of the normal distribution that leaves half of 1 - `confidence` above it."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def all_of(counts: Sequence[int], draws: int, m: int) -> float:
    """The mean over examples of the probability that `m` fresh draws are all right.

    `counts[i]` of `draws` were right, so it is C(c,m)/C(draws,m). That is unbiased for the mean of
    p^m; the power of the share, (c/draws)^m, is too large on average. ValueError for more than the
    `draws` there are.
    """
    return mean_probability_of(counts, draws, m, at_least=m)


def majority_of(counts: Sequence[int], draws: int, m: int) -> float:
    """The mean over examples of the probability that over half of `m` fresh draws are right.

    It is hypergeometric, and unbiased for the binomial one. ValueError for an even `m`, of which a
    half is no majority, and for more than the `draws` there are.
    """
    if m % 2 == 0:
        raise ValueError(f"majority_of: {m} draws have no majority when they are tied")
    return mean_probability_of(counts, draws, m, at_least=m // 2 + 1)


def mean_probability_of(counts: Sequence[int], draws: int, m: int, at_least: int) -> float:
    """The mean probability that of `m` draws of an example `at_least` or more are right.

    The `m` are taken from the `draws` of the example without putting them back.
    """
    if not 0 < m <= draws:
        raise ValueError(f"{m} draws cannot be taken from {draws}")
    ways = {
        c: sum(math.comb(c, k) * math.comb(draws - c, m - k) for k in range(at_least, m + 1))
        for c in set(counts)
    }
    return fmean(ways[c] / math.comb(draws, m) for c in counts)


def lower_limit(k: int, n: int, confidence: float = 0.95) -> float:
    """The exact one-sided lower limit of a share, of which `k` successes in `n` trials were seen.

    Clopper and Pearson 1934.
    """
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"lower_limit: {k} successes in {n} trials")
    if k == 0:
        return 0.0
    from scipy.special import betaincinv

    return float(betaincinv(k, n - k + 1, 1 - confidence))


def mcnemar(b: int, c: int) -> float:
    """The exact two-sided p-value for two defences on the same examples.

    `b` examples only the first got right, `c` only the second. McNemar 1947.
    """
    if b + c == 0:
        return 1.0
    from scipy.special import betainc

    fewer = min(b, c)
    return min(1.0, 2 * float(betainc(b + c - fewer, fewer + 1, 0.5)))


def mcnemar_mid(b: int, c: int) -> float:
    """McNemar's two-sided mid-p-value: half of what was seen counts as more extreme.

    It is for few discordant pairs, where the exact p-value is too large. Fagerland, Lydersen and
    Laake 2013.
    """
    if b == c:
        return 1.0
    log_ways = math.lgamma(b + c + 1) - math.lgamma(b + 1) - math.lgamma(c + 1)
    return mcnemar(b, c) - math.exp(log_ways - (b + c) * math.log(2))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The mean of a - b over the examples, and its standard error; infinite for one example."""
    differences = [value_a - value_b for value_a, value_b in zip(a, b, strict=True)]
    n = len(differences)
    error = stdev(differences) / math.sqrt(n) if n > 1 else math.inf
    return fmean(differences), error


def paired_interval(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the difference (b - c)/n of two shares on the same `n` examples.

    Of these, `b` speak for the first alone and `c` for the second. It is Wald's interval with one
    example added to each of `b` and `c`. So it covers, and has a width, also where no pair is
    discordant. Bonett and Price 2012.
    """
    if n <= 0 or b < 0 or c < 0 or b + c > n:
        raise ValueError(f"paired_interval: {b} and {c} discordant pairs of {n}")
    z = normal_quantile(confidence)
    centre = (b - c) / (n + 2)
    discordant = (b + c + 2) / (n + 2)
    half = z * math.sqrt((discordant - centre * centre) / (n + 2))
    return max(-1.0, centre - half), min(1.0, centre + half)


def bootstrap(
    differences: Sequence[float], seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of the mean of paired `differences` in [-1,1].

    The examples are drawn again. Where fewer than `FEW` differences are not the most frequent one,
    the resamples say little; the limits are then no closer than with no discordant pair among n.
    Efron 1979.
    """
    n = len(differences)
    if not n:
        raise ValueError("bootstrap: no differences")
    rng = random.Random(seed)
    means = sorted(math.fsum(rng.choices(differences, k=n)) / n for _ in range(resamples))
    tail = (1 - confidence) / 2
    lo = means[math.floor(tail * (resamples - 1))]
    hi = means[math.ceil((1 - tail) * (resamples - 1))]
    most_frequent = Counter(differences).most_common(1)[0][1]
    if n - most_frequent < FEW:
        mean = fmean(differences)
        half = paired_interval(0, 0, n, confidence)[1]
        lo = min(lo, max(-1.0, mean - half))
        hi = max(hi, min(1.0, mean + half))
    return lo, hi


def sign_flip(differences: Sequence[float], seed: int = 0, flips: int = 10_000) -> float:
    """The two-sided p-value of paired `differences`: how often random signs move the mean as far.

    All signs are tried where there are no more than `flips` of them. Else `flips` tosses are tried,
    and what was seen counts as one more, so that the value is never too small. Fisher 1935; Phipson
    and Smyth 2010.
    """
    sizes = Counter(round(abs(d), 12) for d in differences if round(abs(d), 12))
    seen = abs(math.fsum(differences)) - 1e-9
    if 2 ** sizes.total() <= flips:
        signed = itertools.product(*((size, -size) for size in sizes.elements()))
        sums = [abs(math.fsum(values)) for values in signed]
        return sum(value >= seen for value in sums) / len(sums)
    rng = random.Random(seed)
    as_far = 0
    for _ in range(flips):
        flipped = math.fsum(size * sum_of_signs(rng, count) for size, count in sizes.items())
        as_far += abs(flipped) >= seen
    return (as_far + 1) / (flips + 1)


def sum_of_signs(rng: random.Random, count: int) -> int:
    """The sum of `count` random signs, drawn at once: each bit of a random number is one sign."""
    positive = rng.getrandbits(count).bit_count()
    return positive - (count - positive)


def detectable(differences: Sequence[float], power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true difference that so many examples show with `power` at `level`.

    The paired differences are taken to be as far from 0 as these. For deterministic defences it is
    2.8 sqrt(psi/n), with psi the share of discordant pairs. Where no pair is, psi is its 95% upper
    limit, 3/n.
    """
    n = len(differences)
    square = max(fmean(d * d for d in differences), 3 / n)
    quantiles = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)
    return min(1.0, quantiles * math.sqrt(square / n))


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, adjusted so that none is too small by being chosen.

    Holm 1979.
    """
    ascending = sorted(range(len(values)), key=values.__getitem__)
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, i in enumerate(ascending):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted
