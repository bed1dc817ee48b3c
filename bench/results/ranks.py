"""Ranks that rows share where the difference between them is not significant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from bench.results.record import Record
from bench.results.statistics import mcnemar_mid
from bench.results.worst_case import WorstCase, worst_case

LEVEL = 0.05  # of the paired test of two deterministic rows
STANDARD_ERRORS = 2  # of the paired difference, where one of the two rows is stochastic


def compute_ranks(rows: Sequence[tuple[object, Sequence[Record]]]) -> list[int]:
    """The ranks of rows, in their order.

    A row is its class and its records, which answer one question. The rank is one more than the
    number of earlier rows that are surely better, and at least the rank of the row before. An
    earlier row of another class counts as better, whatever its figures.
    """
    worst_cases = [worst_case(records) for _, records in rows]
    ranks: list[int] = []
    for i, (row_class, records) in enumerate(rows):
        better = 0
        for j in range(i):
            other_class, other_records = rows[j]
            better += other_class != row_class or differ_significantly(
                other_records, worst_cases[j], records, worst_cases[i]
            )
        ranks.append(max(1 + better, ranks[-1] if ranks else 1))
    return ranks


def differ_significantly(
    a: Sequence[Record], worst_a: WorstCase, b: Sequence[Record], worst_b: WorstCase
) -> bool:
    """Whether two robust accuracies differ beyond chance.

    On the same examples by a paired test; on others where the intervals do not overlap.
    """
    if a[0].ids != b[0].ids or a[0].env.data != b[0].env.data:
        return worst_a.robust.lo > worst_b.robust.hi or worst_b.robust.lo > worst_a.robust.hi
    differences = [
        correct_a / worst_a.draws - correct_b / worst_b.draws
        for correct_a, correct_b in zip(worst_a.correct, worst_b.correct, strict=True)
    ]
    if worst_a.draws == worst_b.draws == 1:
        only_a = sum(d > 0 for d in differences)
        only_b = sum(d < 0 for d in differences)
        return mcnemar_mid(only_a, only_b) < LEVEL
    n = len(differences)
    if n < 2:
        return False
    standard_error = stdev(differences) / math.sqrt(n)
    return abs(fmean(differences)) > STANDARD_ERRORS * standard_error
