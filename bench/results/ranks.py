"""Ranks that rows share where the difference between them is not significant. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from bench.results.record import Record
from bench.results.statistics import mcnemar_mid
from bench.results.worst_case import WorstCase, worst_case

LEVEL, ERRORS = (
    0.05,
    2,
)  # of the test of two that answer once; and paired standard errors, where one of them is stochastic


def ranks(rows: Sequence[tuple[object, Sequence[Record]]]) -> list[int]:
    """The ranks of rows in their order: one more than the rows before it that are surely better, and no less than that of the row before it.

    Each row is its class, such that a row of another class before it counts as better whatever the figures, and its records, of one question.
    """
    worsts = [worst_case(records) for _, records in rows]
    found: list[int] = []
    for i, (kind, records) in enumerate(rows):
        better = sum(
            rows[j][0] != kind or told_apart(rows[j][1], worsts[j], records, worsts[i])
            for j in range(i)
        )
        found.append(max(1 + better, found[-1] if found else 1))
    return found


def told_apart(
    a: Sequence[Record], worst_a: WorstCase, b: Sequence[Record], worst_b: WorstCase
) -> bool:
    """Whether two robust accuracies differ beyond chance: on the same examples a paired test, on others intervals that do not overlap."""
    if (a[0].ids, a[0].env.data) != (b[0].ids, b[0].env.data):
        return worst_a.robust.lo > worst_b.robust.hi or worst_b.robust.lo > worst_a.robust.hi
    gaps = [
        one / worst_a.draws - other / worst_b.draws
        for one, other in zip(worst_a.correct, worst_b.correct, strict=True)
    ]
    if worst_a.draws == worst_b.draws == 1:
        return mcnemar_mid(sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)) < LEVEL
    return len(gaps) > 1 and abs(fmean(gaps)) > ERRORS * stdev(gaps) / math.sqrt(len(gaps))
