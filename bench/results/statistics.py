"""Intervals and paired tests for accuracies. Standard library only.

An accuracy is a mean over examples; the examples, not the draws of a stochastic defence, are the independent units.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

FEW = 5  # with p near 0, n=100 and 8 draws the interval covers 88% without this rule and 96% with it (tests/test_statistics.py)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share in [0,1] with the limits of its 95% interval."""

    mean: float
    lo: float
    hi: float


def estimate(counts: Sequence[int], draws: int) -> Estimate:
    """Mean of `counts[i]/draws` over examples: Wilson for one draw each, Wilson with the effective n for several."""
    means = [count / draws for count in counts]
    lo, hi = wilson(sum(counts), len(counts)) if draws == 1 else wilson_eff(means, draws)
    return Estimate(fmean(means), lo, hi)


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of `k` successes in `n` trials; both may be fractional. Wilson 1927."""
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"wilson: {k} successes in {n} trials")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The limits are exactly 0 and 1 at the ends; rounding would leave them just beside.
    return (0.0 if k == 0 else max(0.0, centre - half)), (
        1.0 if k == n else min(1.0, centre + half)
    )


def wilson_eff(
    means: Sequence[float], draws: int | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval for a mean of per-example means in [0,1], at the n of independent single draws that has the same variance.

    Pooling the draws of all examples instead covers as little as 42% at nominal 95%. `draws` bounds the effective n by what that
    pooling would claim. Where fewer than `FEW` examples hold all that is seen of one outcome, their variance says little and n itself is used.
    """
    n, p = len(means), fmean(means)
    effective = float(n)
    if (
        min(sum(m > 0 for m in means), sum(m < 1 for m in means)) >= FEW
        and (spread := variance(means) / n) > 0
    ):
        effective = p * (1 - p) / spread
    if draws is not None:
        effective = min(effective, float(n * draws))
    return wilson(p * effective, effective, confidence)


def all_of(counts: Sequence[int], draws: int, m: int) -> float:
    """The mean over examples of the probability that `m` fresh draws are all right, `counts[i]` of `draws` having been: C(c,m)/C(draws,m).

    Unbiased for the mean of p^m; the power of the share, (c/draws)^m, is too large on average. ValueError for more than the `draws` there are.
    """
    return _among(counts, draws, m, m)


def majority_of(counts: Sequence[int], draws: int, m: int) -> float:
    """The mean over examples of the probability that over half of `m` fresh draws are right: hypergeometric, and unbiased for the binomial one.

    ValueError for an even `m`, of which a half is no majority, and for more than the `draws` there are.
    """
    if m % 2 == 0:
        raise ValueError(f"majority_of: {m} draws have no majority when they are tied")
    return _among(counts, draws, m, m // 2 + 1)


def _among(counts: Sequence[int], draws: int, m: int, least: int) -> float:
    """The mean probability that of `m` draws taken from the `draws` of an example, without putting them back, `least` or more are right."""
    if not 0 < m <= draws:
        raise ValueError(f"{m} draws cannot be taken from {draws}")
    ways = {
        c: sum(math.comb(c, k) * math.comb(draws - c, m - k) for k in range(least, m + 1))
        for c in set(counts)
    }
    return fmean(ways[c] / math.comb(draws, m) for c in counts)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of `k` successes in `n` trials; never covers less than `confidence`. Clopper and Pearson 1934."""
    tail = (1 - confidence) / 2
    return lower_limit(k, n, 1 - tail), 1 - lower_limit(n - k, n, 1 - tail)


def lower_limit(k: int, n: int, confidence: float = 0.95) -> float:
    """The exact one-sided lower limit of a share, `k` successes in `n` trials having been seen."""
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"clopper_pearson: {k} successes in {n} trials")
    return 0.0 if k == 0 else _solve(lambda p: beta_cdf(k, n - k + 1, p), 1 - confidence)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value for two defences on the same examples: `b` only the first got right, `c` only the second. McNemar 1947."""
    if b + c == 0:
        return 1.0
    fewer = min(b, c)
    return min(1.0, 2 * beta_cdf(b + c - fewer, fewer + 1, 0.5))


def mcnemar_mid(b: int, c: int) -> float:
    """McNemar's two-sided mid-p-value: half of what was seen counts as more extreme; for few discordant pairs, where the exact one is too large.

    Fagerland, Lydersen and Laake 2013.
    """
    chance = math.exp(
        math.lgamma(b + c + 1) - math.lgamma(b + 1) - math.lgamma(c + 1) - (b + c) * math.log(2)
    )
    return mcnemar(b, c) - chance if b != c else 1.0


def paired_interval(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the difference (b - c)/n of two shares on the same `n` examples, of which `b` speak for the first alone and `c` for the second.

    Wald's interval with one example added to each of `b` and `c`: it covers, and has a width, also where no pair is discordant.
    Bonett and Price 2012.
    """
    if n <= 0 or b < 0 or c < 0 or b + c > n:
        raise ValueError(f"paired_interval: {b} and {c} discordant pairs of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre, discordant = (b - c) / (n + 2), (b + c + 2) / (n + 2)
    half = z * math.sqrt((discordant - centre * centre) / (n + 2))
    return max(-1.0, centre - half), min(1.0, centre + half)


def bootstrap(
    differences: Sequence[float], seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of the mean of paired `differences` in [-1,1], by drawing the examples again. Efron 1979.

    Where fewer than `FEW` of them differ from the most frequent one the resamples say little, and the limits are no closer than with no
    discordant pair among n.
    """
    n = len(differences)
    if not n:
        raise ValueError("bootstrap: no differences")
    draw, mean = random.Random(seed), fmean(differences)
    means = sorted(math.fsum(draw.choices(differences, k=n)) / n for _ in range(resamples))
    tail = (1 - confidence) / 2
    lo, hi = (
        means[math.floor(tail * (resamples - 1))],
        means[math.ceil((1 - tail) * (resamples - 1))],
    )
    if n - Counter(differences).most_common(1)[0][1] < FEW:
        least = paired_interval(0, 0, n, confidence)[1]
        lo, hi = min(lo, max(-1.0, mean - least)), max(hi, min(1.0, mean + least))
    return lo, hi


def sign_flip(differences: Sequence[float], seed: int = 0, flips: int = 10_000) -> float:
    """Two-sided p-value of paired `differences`: how often their mean is as far from 0 when each has its sign by the toss of a coin.

    All signs are tried where there are no more than `flips` of them; else `flips` tosses are, and what was seen counts as one more, so that the
    value is never too small. Fisher 1935; Phipson and Smyth 2010.
    """
    sizes = Counter(round(abs(d), 12) for d in differences if round(abs(d), 12))
    seen = abs(math.fsum(differences)) - 1e-9
    if 2 ** sizes.total() <= flips:
        sums = [
            abs(math.fsum(signed))
            for signed in itertools.product(*((size, -size) for size in sizes.elements()))
        ]
        return sum(value >= seen for value in sums) / len(sums)
    toss = (
        random.Random(seed).getrandbits
    )  # the ones among m random bits are Binomial(m, 1/2): all differences of one size at once
    far = sum(
        abs(math.fsum(size * (2 * toss(m).bit_count() - m) for size, m in sizes.items())) >= seen
        for _ in range(flips)
    )
    return (far + 1) / (flips + 1)


def detectable(differences: Sequence[float], power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true difference that so many examples, with paired differences as far from 0 as these, show with that `power` at that `level`.

    For deterministic defences 2.8 sqrt(psi/n), with psi the share of discordant pairs; where none is, psi is its 95% upper limit, 3/n.
    """
    n, normal = len(differences), NormalDist()
    square = max(fmean(d * d for d in differences), 3 / n)
    return min(1.0, (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)) * math.sqrt(square / n))


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons made at once, adjusted so that none of them is too small by being chosen. Holm 1979."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, least = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = least
    return adjusted


def beta_cdf(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by Lentz's continued fraction. DLMF 8.17.22."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - beta_cdf(b, a, 1 - x)
    front = (
        math.exp(
            math.lgamma(a + b)
            - math.lgamma(a)
            - math.lgamma(b)
            + a * math.log(x)
            + b * math.log1p(-x)
        )
        / a
    )
    tiny = 1e-300
    c, d, value = 1.0, 0.0, 1.0
    for i in range(2000):
        m = i // 2
        if i == 0:
            step = 1.0
        elif i % 2 == 0:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / (1 + step * d or tiny)
        c = 1 + step / c or tiny
        value *= c * d
        if i and abs(1 - c * d) < 1e-15:
            break
    return front * (value - 1)


def _solve(rising: Callable[[float], float], target: float) -> float:
    lo, hi = 0.0, 1.0
    while (middle := (lo + hi) / 2) not in (lo, hi):
        lo, hi = (middle, hi) if rising(middle) < target else (lo, middle)
    return middle
