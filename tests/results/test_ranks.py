"""Ranks are shared where a paired test cannot tell two rows apart, and never where it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.results.ranks import compute_ranks, differ_significantly
from bench.results.record import Record
from bench.results.statistics import mcnemar_mid
from bench.results.worst_case import worst_case
from tests.fake_records import cell, record


def row(correct: Sequence[int], defence: str = "at", **how: int) -> list[Record]:
    return [
        record(cell("none", defence, **how), [how.get("draws", 1)] * len(correct)),
        record(cell("pgd", defence, **how), correct),
    ]


def stands(first: int, last: int, n: int = 100) -> list[int]:
    return [int(first <= i < last) for i in range(n)]


def apart(a: list[Record], b: list[Record]) -> bool:
    return differ_significantly(a, worst_case(a), b, worst_case(b))


@pytest.mark.parametrize(("more", "differs"), [(4, False), (5, True)])
def test_two_that_answer_once_are_told_apart_by_the_test_of_their_discordant_pairs(
    more: int, differs: bool
) -> None:
    """All discordant pairs on one side: mid-p is 2^-n, 1/16 at four and 1/32 at five."""
    assert mcnemar_mid(more, 0) == pytest.approx(0.5**more)
    assert apart(row(stands(0, 60 + more)), row(stands(0, 60))) == differs
    assert apart(row(stands(0, 60)), row(stands(0, 60 + more))) == differs


def test_the_same_difference_on_many_discordant_pairs_is_chance() -> None:
    assert not apart(row(stands(0, 65)), row(stands(40, 100)))


def test_a_row_ranks_below_those_that_are_surely_better_and_beside_the_others() -> None:
    """90 and 88 and 84: the first and the last are told apart, neighbours not (or only the last two)."""
    rows = [row(stands(0, top)) for top in (90, 88, 84, 60)]
    assert [apart(rows[0], other) for other in rows] == [False, False, True, True]
    assert not apart(rows[1], rows[2])
    assert compute_ranks([(0, one) for one in rows]) == [1, 1, 2, 4]
    assert compute_ranks([(0, rows[0])]) == [1]
    assert compute_ranks([]) == []


def test_a_row_of_another_class_ranks_below_whatever_its_figures() -> None:
    good, better = row(stands(0, 88)), row(stands(0, 90))
    assert compute_ranks([("whole", good), ("spared", better)]) == [1, 2]


def test_stochastic_rows_are_told_apart_by_paired_standard_errors() -> None:
    how = {"select": 4, "draws": 10}
    base = [5, 6] * 50
    assert not apart(row(base, **how), row([6, 5] * 50, **how))
    assert apart(row([count + 1 for count in base], **how), row(base, **how)), (
        "the same gain on every example has no error"
    )
    assert not apart(row([10, *base[1:]], **how), row(base, **how))


def test_other_examples_are_told_apart_by_intervals_that_do_not_overlap() -> None:
    few = [replace(one, ids=tuple(range(100, 120))) for one in row(stands(0, 12, 20))]
    assert not apart(row(stands(0, 75)), few)
    assert apart(row(stands(0, 99)), few)


def test_ranks_never_fall_along_the_table() -> None:
    few = [replace(one, ids=tuple(range(100, 110))) for one in row(stands(0, 6, 10))]
    assert not apart(row(stands(0, 80)), few)
    assert compute_ranks([(0, row(stands(0, 90))), (0, row(stands(0, 80))), (0, few)]) == [1, 2, 2]
