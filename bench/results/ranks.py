"""Ranks that rows share where the difference between them is not significant."""

from __future__ import annotations

from collections.abc import Sequence

from bench.results.record import Record
from bench.results.statistics import mcnemar_mid, paired_difference
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
    records_a: Sequence[Record],
    worst_a: WorstCase,
    records_b: Sequence[Record],
    worst_b: WorstCase,
) -> bool:
    """Whether two robust accuracies differ beyond chance.

    On the same examples by a paired test; on others where the intervals do not overlap.
    """
    a = records_a[0]
    b = records_b[0]
    if a.ids != b.ids or a.env.data != b.env.data:
        return worst_a.robust.lo > worst_b.robust.hi or worst_b.robust.lo > worst_a.robust.hi
    shares_a = [correct / worst_a.draws for correct in worst_a.correct]
    shares_b = [correct / worst_b.draws for correct in worst_b.correct]
    if worst_a.draws == worst_b.draws == 1:
        only_a = sum(x > y for x, y in zip(shares_a, shares_b, strict=True))
        only_b = sum(x < y for x, y in zip(shares_a, shares_b, strict=True))
        return mcnemar_mid(only_a, only_b) < LEVEL
    difference, error = paired_difference(shares_a, shares_b)
    return abs(difference) > STANDARD_ERRORS * error
