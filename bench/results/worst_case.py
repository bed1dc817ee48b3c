"""The worst case over attacks, example by example. Standard library only.

A minimum over attacks of the scored draws would count luck as attack success; so the attack is chosen on the selection draws and
scored on the evaluation draws, which no choice has seen. For a deterministic defence the two are the same single answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.results.record import Record
from bench.results.statistics import Estimate, estimate


@dataclass(frozen=True, slots=True)
class WorstCase:
    """Per example: which of the records was chosen, and how many of its evaluation and of its selection draws were right."""

    chosen: tuple[int, ...]
    correct: tuple[int, ...]
    selected: tuple[int, ...]
    draws: int
    select: int

    @property
    def robust(self) -> Estimate:
        return estimate(self.correct, self.draws)

    @property
    def gap(self) -> float:
        """How much higher the score is than the same draws that chose would have it: what the split of the draws corrects."""
        n = len(self.chosen)
        return sum(self.correct) / (n * self.draws) - sum(self.selected) / (n * self.select)


def is_stochastic(record: Record) -> bool:
    return record.cell.select > 1 or record.cell.draws > 1


def worst_case(records: Sequence[Record]) -> WorstCase:
    """The worst of `records`, one per attack in plan order, on the same examples of one question.

    Per example the record with the fewest right selection draws counts (ties: the larger margin, then the earlier). With one draw of
    each kind an example is robust only if it resists every attack. ValueError for a check among them: it attacks something else than the defence.
    """
    first = records[0]
    if any(record.family == "check" for record in records):
        raise ValueError(
            f"worst_case: a check is no attack on the defence, beside {first.cell.key}"
        )
    if any(
        record.ids != first.ids or record.cell.question != first.cell.question for record in records
    ):
        raise ValueError(
            f"worst_case: records of different questions or examples beside {first.cell.key}"
        )
    stochastic = is_stochastic(first)

    def weakness(a: int, i: int) -> tuple[int, float, int]:
        record = records[a]
        return (record.selected if stochastic else record.correct)[i], -record.margin[i], a

    chosen = tuple(
        min(range(len(records)), key=lambda a: weakness(a, i)) for i in range(len(first.ids))
    )
    return WorstCase(
        chosen=chosen,
        correct=tuple(records[a].correct[i] for i, a in enumerate(chosen)),
        selected=tuple(records[a].selected[i] for i, a in enumerate(chosen)),
        draws=first.cell.draws,
        select=first.cell.select,
    )
