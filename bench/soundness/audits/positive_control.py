"""D18: the row's own attacks, on a classifier that nothing defends, must find what is there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.questions.spec import Spec
from bench.results.evidence import Evidence
from bench.results.names import dataset_of
from bench.results.record import Flag, Record
from bench.soundness.audits.shares import gradient_attacks, per_example_minimum
from bench.soundness.codes import D18_SHORT


@dataclass(frozen=True, slots=True)
class PlainClassifierCheck:
    """What attacks leave of a classifier that nothing defends, as shares of its examples.

    `left_by_these_attacks`: what this row's gradient attacks leave together, those that the plain
    classifier met too, with all of their knobs. `left_by_all`: what all of its attacks leave.
    """

    left_by_these_attacks: float
    left_by_all: float

    @property
    def falls_short(self) -> bool:
        return self.left_by_these_attacks - self.left_by_all > D18_SHORT


def audit_positive_control(evidence: Evidence) -> list[Flag]:
    """D18: the row's gradient attacks must find nearly all that other attacks find."""
    control = check_plain_classifier(evidence.records, evidence.controls)
    if control is None or not control.falls_short:
        return []
    message = (
        f"the same gradient attacks leave {control.left_by_these_attacks:.3f} of the undefended "
        f"classifier, of which others leave {control.left_by_all:.3f}"
    )
    return [Flag("D18", "hard", message)]


def check_plain_classifier(
    row: Sequence[Record], everywhere: Iterable[Record]
) -> PlainClassifierCheck | None:
    """How much of the undefended classifier this row's attacks leave, and how much all leave.

    On the examples of that classifier that met most of the row's attacks. None where it met none.
    None too where the attacks that it met fall short and it was spared others. All but the attacks
    that need a stochastic defence must have been tried.
    """
    asked = {r.cell.attack for r in gradient_attacks(row) if not r.attack_traits.stochastic_only}
    if not asked:
        return None
    groups = [(attacks_in(group, asked), group) for group in plain_classifiers(row[0], everywhere)]
    these, everything = max(
        groups, key=lambda pair: (len(pair[0]), len(pair[1][0].ids)), default=([], [])
    )
    if not these:
        return None
    control = PlainClassifierCheck(
        fmean(per_example_minimum(these)), fmean(per_example_minimum(everything))
    )
    met_all = len(these) == len(asked)
    return control if met_all or not control.falls_short else None


def attacks_in(records: Sequence[Record], attacks: set[Spec]) -> list[Record]:
    return [r for r in gradient_attacks(records) if r.cell.attack in attacks]


def plain_classifiers(record: Record, everywhere: Iterable[Record]) -> list[list[Record]]:
    """The attacks on undefended classifiers where `record` was asked, by question and examples."""
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for other in everywhere:
        is_attack = other.family not in ("none", "check")
        if other.defence_traits.undefended and is_attack and location(other) == location(record):
            groups[other.cell.question, other.ids, other.env.data].append(other)
    return list(groups.values())


def location(record: Record) -> tuple[object, ...]:
    return dataset_of(record.cell), record.cell.threat.norm, record.cell.threat.eps
