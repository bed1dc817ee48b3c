"""The worst case over attacks, example by example.

A minimum over attacks of the scored draws would count luck as attack success. So the attack is
chosen on the selection draws and scored on the evaluation draws, which no choice has seen. For a
deterministic defence the two are the same single answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.results.record import Record
from bench.results.statistics import Estimate, estimate


@dataclass(frozen=True, slots=True)
class WorstCase:
    """Per example the index of the chosen record, and how many of its draws were right.

    `correct` counts evaluation draws out of `draws`, `selected` selection draws out of `select`.
    """

    chosen: tuple[int, ...]
    correct: tuple[int, ...]
    selected: tuple[int, ...]
    draws: int
    select: int

    @property
    def robust(self) -> Estimate:
        return estimate(self.correct, self.draws)

    @property
    def selection_gap(self) -> float:
        """The score less what the selection draws would have it: what their split corrects."""
        n = len(self.chosen)
        return sum(self.correct) / (n * self.draws) - sum(self.selected) / (n * self.select)


def worst_case(records: Sequence[Record]) -> WorstCase:
    """The worst of `records`, one per attack in plan order, on the same examples of one question.

    Per example the record with the fewest right selection draws counts; ties go to the larger
    margin, then to the earlier record. With one draw of each kind an example is robust only if it
    resists every attack. ValueError for a check: it attacks something else than the defence.
    """
    refuse_mixture(records)
    n = len(records[0].ids)
    chosen = [choose_strongest(records, i) for i in range(n)]
    return WorstCase(
        chosen=tuple(chosen),
        correct=tuple(records[a].correct[i] for i, a in enumerate(chosen)),
        selected=tuple(records[a].selected[i] for i, a in enumerate(chosen)),
        draws=records[0].cell.draws,
        select=records[0].cell.select,
    )


def refuse_mixture(records: Sequence[Record]) -> None:
    first = records[0]
    for record in records:
        if record.family == "check":
            raise ValueError(
                f"worst_case: a check is no attack on the defence, beside {first.cell.key}"
            )
        if record.ids != first.ids or record.cell.question != first.cell.question:
            raise ValueError(
                f"worst_case: records of different questions or examples beside {first.cell.key}"
            )


def choose_strongest(records: Sequence[Record], i: int) -> int:
    """The index of the record whose attack was the strongest on example `i`."""

    def weakness(a: int) -> tuple[int, float]:
        record = records[a]
        right = record.selected if record.cell.stochastic else record.correct
        return right[i], -record.margin[i]

    return min(range(len(records)), key=weakness)  # the first of several equal ones
