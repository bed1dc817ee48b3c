"""D18, the positive control: the row's own attacks on a classifier that nothing defends must find what is there. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from bench.results.names import dataset_of
from bench.results.record import Flag, Record
from bench.soundness.audits.curves import gradient, per_example_minimum

SHORT = (
    0.05  # of the examples of the plain classifier, which the row's attacks leave and others do not
)

MEANING = {"D18": "the same attacks, on a classifier that nothing defends, must find what is there"}


def audit(row: Sequence[Record], others: Iterable[Record]) -> list[Flag]:
    """The flag that the row's gradient attacks earn on the plain classifier of the same data, norm and eps; `others` are the records of all rows."""
    found = compared(row, others)
    if found is None or found[0] - found[1] <= SHORT:
        return []
    left, known = found
    return [
        Flag(
            "D18",
            "hard",
            f"the same gradient attacks leave {left:.3f} of the undefended classifier, of which others leave {known:.3f}",
        )
    ]


def compared(row: Sequence[Record], others: Iterable[Record]) -> tuple[float, float] | None:
    """Of the plain classifier: what those of the row's gradient attacks leave together that it met too, with all of their knobs, and what all of its
    attacks leave; on those of its examples that met most of them. None where it met none, or where they leave too much and the rest was not tried:
    all but the attacks that average draws, of which it has one.
    """
    asked = {
        record.cell.attack for record in gradient(row) if not record.attack_traits.stochastic_only
    }
    held: dict[str, list[Record]] = defaultdict(list)
    for one in others:
        if (
            asked
            and one.defence_traits.undefended
            and one.family not in ("none", "check")
            and where(one) == where(row[0])
        ):
            held[f"{one.cell.question} {one.ids} {one.env.data}"].append(one)
    met = [
        ([r for r in gradient(everything) if r.cell.attack in asked], everything)
        for everything in held.values()
    ]
    same, everything = max(
        met, key=lambda pair: (len(pair[0]), len(pair[1][0].ids)), default=([], [])
    )
    if not same:
        return None
    left, known = fmean(per_example_minimum(same)), fmean(per_example_minimum(everything))
    return (left, known) if left - known <= SHORT or len(same) == len(asked) else None


def where(record: Record) -> tuple[object, ...]:
    return dataset_of(record.cell), record.cell.threat.norm, record.cell.threat.eps
