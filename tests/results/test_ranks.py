"""Rows share a rank where their difference is not significant, and only there."""

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


def right(first: int, last: int, n: int = 100) -> list[int]:
    return [int(first <= i < last) for i in range(n)]


def differ(a: list[Record], b: list[Record]) -> bool:
    return differ_significantly(a, worst_case(a), b, worst_case(b))


@pytest.mark.parametrize(("more", "significant"), [(4, False), (5, True)])
def test_deterministic_rows_differ_by_the_test_of_their_discordant_pairs(
    more: int, significant: bool
) -> None:
    """All discordant pairs on one side: mid-p is 2^-n, 1/16 at four and 1/32 at five."""
    assert mcnemar_mid(more, 0) == pytest.approx(0.5**more)
    assert differ(row(right(0, 60 + more)), row(right(0, 60))) is significant
    assert differ(row(right(0, 60)), row(right(0, 60 + more))) is significant


def test_the_same_difference_on_many_discordant_pairs_is_chance() -> None:
    assert not differ(row(right(0, 65)), row(right(40, 100)))


def test_a_row_ranks_below_those_that_are_surely_better() -> None:
    """Of 90, 88 and 84 the first and the last differ, and neighbours do not."""
    rows = [row(right(0, top)) for top in (90, 88, 84, 60)]
    assert [differ(rows[0], other) for other in rows] == [False, False, True, True]
    assert not differ(rows[1], rows[2])
    assert compute_ranks([(0, records) for records in rows]) == [1, 1, 2, 4]
    assert compute_ranks([(0, rows[0])]) == [1]
    assert compute_ranks([]) == []


def test_a_row_of_another_class_ranks_below_whatever_its_figures() -> None:
    complete = row(right(0, 88))
    exempted = row(right(0, 90))
    assert compute_ranks([("complete", complete), ("exempted", exempted)]) == [1, 2]


def test_stochastic_rows_differ_by_paired_standard_errors() -> None:
    how = {"select": 4, "draws": 10}
    base = [5, 6] * 50
    assert not differ(row(base, **how), row([6, 5] * 50, **how))
    assert differ(row([count + 1 for count in base], **how), row(base, **how)), (
        "the same gain on every example has no error"
    )
    assert not differ(row([10, *base[1:]], **how), row(base, **how))


def test_rows_of_other_examples_differ_where_intervals_do_not_overlap() -> None:
    few = [replace(r, ids=tuple(range(100, 120))) for r in row(right(0, 12, 20))]
    assert not differ(row(right(0, 75)), few)
    assert differ(row(right(0, 99)), few)


def test_ranks_never_fall_along_the_table() -> None:
    few = [replace(r, ids=tuple(range(100, 110))) for r in row(right(0, 6, 10))]
    assert not differ(row(right(0, 80)), few)
    assert compute_ranks([(0, row(right(0, 90))), (0, row(right(0, 80))), (0, few)]) == [1, 2, 2]
