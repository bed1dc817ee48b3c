"""D6 and D14: what more effort takes from a row's number."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.results.evidence import Evidence
from bench.results.record import Flag, Record
from bench.results.statistics import paired_difference
from bench.soundness.audits.shares import gradient_attacks, shares
from bench.soundness.codes import EFFORT_HARD, EFFORT_SOFT, STANDARD_ERRORS

CODE_OF_KNOB = {"steps": "D6", "restarts": "D6", "eot": "D14"}


@dataclass(frozen=True, slots=True)
class Doubling:
    """One gradient attack with less and with at least twice as much of one kind of effort."""

    knob: str
    less: Record
    more: Record

    @property
    def code(self) -> str:
        return CODE_OF_KNOB[self.knob]

    @property
    def effort(self) -> tuple[int, int]:
        """The larger effort, then the smaller one."""
        return effort_of(self.more, self.knob), effort_of(self.less, self.knob)


def audit_effort(evidence: Evidence) -> list[Flag]:
    """D6 and D14: twice the effort must not find more."""
    flags = []
    for doubling in find_doublings(evidence.records):
        before, after = shares(doubling.less), shares(doubling.more)
        gain, error = paired_difference(before, after)
        if gain > EFFORT_SOFT and gain > STANDARD_ERRORS * error:
            message = (
                f"{doubling.less.cell.attack.name} leaves {fmean(before):.3f}, and "
                f"{fmean(after):.3f} with {doubling.knob}={doubling.effort[0]}: go on"
            )
            flags.append(Flag(doubling.code, "hard" if gain > EFFORT_HARD else "soft", message))
    return flags


def find_doublings(records: Sequence[Record]) -> list[Doubling]:
    """Of each attack and kind of effort, the two records of most effort."""
    largest: dict[tuple[str, str], Doubling] = {}
    for less, more in itertools.permutations(gradient_attacks(records), 2):
        knob = only_difference(less, more)
        if knob not in CODE_OF_KNOB:
            continue
        doubling = Doubling(knob, less, more)
        much, little = doubling.effort
        kept = largest.get((less.cell.attack.name, knob))
        if much >= 2 * little and (kept is None or doubling.effort > kept.effort):
            largest[less.cell.attack.name, knob] = doubling
    return list(largest.values())


def only_difference(less: Record, more: Record) -> str:
    """The one knob in which two answers to one attack differ; empty where there is no such knob.

    A knob at its default may be no part of the question. What it stands at is not known then.
    """
    a, b = less.cell.attack, more.cell.attack
    if a.name != b.name or a.params.keys() != b.params.keys():
        return ""
    differing = [knob for knob in a.params if a.params[knob] != b.params[knob]]
    return differing[0] if len(differing) == 1 else ""


def effort_of(record: Record, knob: str) -> int:
    return int(record.cell.attack.params[knob])
