"""The comparison of two defences, from counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.errors import BadInput
from bench.questions.spec import Spec
from bench.results.compare import compare_shares, matches, pair_rows
from bench.results.leaderboard import Row
from bench.results.statistics import mcnemar, mcnemar_mid
from tests.fake_records import build_rows, cell, record


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at", True),
        ("at[classifier=own:a]", True),
        ("at[classifier=own:a@1a2b3c4d]", True),
        ("at[classifier=own:a@5e6f7a8b]", False),
        ("at[classifier=own:b]", False),
        ("jpeg", False),
    ],
)
def test_a_defence_matches_by_its_name_and_some_of_its_knobs(text: str, expected: bool) -> None:
    assert matches(Spec.parse("at[classifier=own:a@1a2b3c4d]"), Spec.parse(text)) is expected


def attacked_row(defence: str, n: int, seed: int = 0) -> Row:
    asked = [cell(name, defence, dataset=f"digits[n={n}]", seed=seed) for name in ("none", "pgd")]
    (row,) = build_rows([record(c, [1] * n) for c in asked], {}, {})
    return row


def test_rows_are_paired_on_the_same_examples_and_seed() -> None:
    a = [attacked_row("at", 10), attacked_row("at", 20, seed=1), attacked_row("at", 20)]
    b = [attacked_row("jpeg", 10), attacked_row("jpeg", 20)]
    assert pair_rows(a, b, "digits") == (a[2], b[1])
    assert pair_rows(a[:2], b, "digits") == (a[1], b[1]), "more examples before the same seed"


def test_complete_rows_are_paired_first() -> None:
    a = [attacked_row("at", 10), replace(attacked_row("at", 20), complete=False)]
    b = [attacked_row("jpeg", 10), attacked_row("jpeg", 20)]
    assert pair_rows(a, b, "digits") == (a[0], b[0])


def test_rows_of_other_examples_are_not_paired() -> None:
    with pytest.raises(BadInput, match="different examples on digits: 'at' on n=10 and 'jpeg'"):
        pair_rows([attacked_row("at", 10)], [attacked_row("jpeg", 20)], "digits")
