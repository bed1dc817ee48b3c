"""The comparison of two defences, from counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.results.compare import compare_shares
from bench.results.statistics import mcnemar, mcnemar_mid


def test_mcnemar_is_exact_from_25_discordant_pairs() -> None:
    a = [1.0] * 25 + [0.0] * 15 + [1.0] * 60
    b = [0.0] * 25 + [1.0] * 15 + [1.0] * 60
    comparison = compare_shares(a, b, stochastic=False)
    assert (comparison.p, comparison.test) == (mcnemar(25, 15), "exact McNemar, 25 against 15")
    assert not comparison.significant
    comparison = compare_shares(a[:24], b[:24], stochastic=False)
    assert (comparison.p, comparison.test) == (mcnemar_mid(24, 0), "mid-p McNemar, 24 against 0")
    assert compare_shares(a[:25], b[:25], stochastic=False).p == mcnemar(25, 0)


def test_significance_needs_the_test_and_the_interval() -> None:
    comparison = compare_shares([1.0] * 5 + [0.0] * 95, [0.0] * 100, stochastic=False)
    assert comparison.p == pytest.approx(1 / 32)
    assert comparison.lo < 0
    assert not comparison.significant
    assert replace(comparison, lo=0.001).significant
    assert not replace(comparison, lo=0.001, p=0.06).significant
