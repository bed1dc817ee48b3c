"""What the records say of one row, before anybody assesses it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from bench.questions.facts import AttackTraits
from bench.questions.spec import Cell, Spec
from bench.results import legacy
from bench.results.equal_sources import EqualSources
from bench.results.names import short_names
from bench.results.published import PublishedResult, match_published
from bench.results.record import Flag, Record
from bench.results.statistics import Estimate
from bench.results.worst_case import WorstCase, worst_case


@dataclass(frozen=True, slots=True)
class AskedCells:
    """Every cell that was asked on one dataset and threat model, once.

    The cells of the largest plan come first, those that only the records hold come last.
    `attacks` and `defences` are the short names of their specs, `traits` those of attacks by name.
    """

    cells: tuple[Cell, ...]
    attacks: Mapping[Spec, str]
    defences: Mapping[Spec, str]
    traits: Mapping[str, AttackTraits]

    def is_check(self, cell: Cell) -> bool:
        """Whether the cell asks a check, which is no attack on the defence as it is."""
        traits = self.traits.get(cell.attack.name) or legacy.attack_traits(cell)
        return traits.family == "check"

    @staticmethod
    def collect(
        records: Sequence[Record],
        plans: Mapping[str, Sequence[Cell]],
        planned_traits: Mapping[str, AttackTraits],
    ) -> AskedCells:
        largest_first = sorted(plans.items(), key=lambda item: (-len(item[1]), item[0]))
        planned = [cell for _, plan in largest_first for cell in plan]
        answered = [record.cell for record in records]
        cells = tuple({cell.key: cell for cell in (*planned, *answered)}.values())
        attacks = short_names(cell.attack for cell in cells)
        defences = short_names((cell.defence for cell in cells), hide=("classifier", "classifiers"))
        recorded_traits = {record.cell.attack.name: record.attack_traits for record in records}
        return AskedCells(cells, attacks, defences, {**planned_traits, **recorded_traits})


@dataclass(frozen=True, slots=True)
class BoardData:
    """All that is known of one dataset and threat model.

    `answers` are its records and `failures` the errors, by the key of their cell. `other_eps` are
    records of the same dataset and norm at another eps. `equal` says which code is the same.
    """

    asked: AskedCells
    answers: Mapping[str, Record]
    failures: Mapping[str, str]
    published: Sequence[PublishedResult] = ()
    other_eps: Sequence[Record] = ()
    equal: EqualSources = field(default_factory=EqualSources)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the records say of one defence, on one set of examples.

    `records` answer the attacks, `none` among them, and `checks` the checks: a check is no attack
    on the defence. `missing` and `missing_checks` say in words what is unanswered. `other_eps` are
    the answers to the same question at another eps, `controls` all records of the leaderboard.
    """

    cell: Cell
    records: tuple[Record, ...]
    checks: tuple[Record, ...]
    missing: tuple[str, ...]
    missing_checks: tuple[str, ...]
    other_eps: tuple[Record, ...]
    controls: tuple[Record, ...]
    worst: WorstCase | None
    strongest_attack: str
    published: PublishedResult | None

    @property
    def clean(self) -> Record | None:
        """The answer to the attack `none`."""
        return next((r for r in self.records if r.family == "none"), None)

    @property
    def robust(self) -> Estimate | None:
        return self.worst.robust if self.worst else None


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the evidence is worth: flags, one of the four verdicts, and its reasons in words."""

    flags: tuple[Flag, ...]
    verdict: str
    reasons: tuple[str, ...]


Assess = Callable[[Evidence], Assessment]


def gather(cells: Sequence[Cell], data: BoardData) -> Evidence:
    """The evidence on the cells of one question, in plan order.

    Records of other images under the same name (an edited folder, say), or of other code, are left
    out and named. They cannot be compared example by example.
    """
    attack_cells = [cell for cell in cells if not data.asked.is_check(cell)]
    check_cells = [cell for cell in cells if data.asked.is_check(cell)]
    answered = [data.answers[cell.key] for cell in attack_cells if cell.key in data.answers]
    answered_checks = [data.answers[cell.key] for cell in check_cells if cell.key in data.answers]
    base = find_base(answered)
    records = [r for r in answered if base and not why_left_out(r, base, data.equal)]
    attacks = [r for r in records if r.family != "none"]
    weakest = min(attacks, key=lambda r: r.accuracy, default=None)
    left_out = [
        f"{data.asked.attacks[r.cell.attack]}: {why_left_out(r, base, data.equal)}"
        for r in answered
        if base and r not in records
    ]
    return Evidence(
        cell=cells[0],
        records=tuple(records),
        checks=tuple(r for r in answered_checks if base and may_stand(r, base, data.equal)),
        missing=(*list_unanswered(attack_cells, data), *left_out),
        missing_checks=tuple(list_unanswered(check_cells, data)),
        other_eps=tuple(select_other_eps(records, data.other_eps, data.equal)),
        controls=tuple(data.answers.values()),
        worst=worst_case(records) if attacks else None,
        strongest_attack=data.asked.attacks[weakest.cell.attack] if weakest else "",
        published=match_published(data.published, cells[0]),
    )


def find_base(records: Sequence[Record]) -> Record | None:
    """The record whose examples are the row's: that of `none`, else the first."""
    for record in records:
        if record.family == "none":
            return record
    return records[0] if records else None


def same_examples(record: Record, base: Record) -> bool:
    return record.ids == base.ids and record.env.data == base.env.data


def why_left_out(record: Record, base: Record, equal: EqualSources) -> str:
    """Why a record cannot stand in the row of `base`; empty where it can."""
    if not same_examples(record, base):
        return "on other images"
    if equal.same_code(record.env, base.env):
        return ""
    names = ", ".join(equal.list_differing(record.env, base.env)) or "unknown"
    return f"of other code ({names})"


def may_stand(check: Record, base: Record, equal: EqualSources) -> bool:
    """Whether the record of a check, of some of the examples perhaps, is of the row of `base`."""
    same_images = set(check.ids) <= set(base.ids) and check.env.data == base.env.data
    return same_images and equal.same_code(check.env, base.env)


def select_other_eps(
    records: Sequence[Record], others: Sequence[Record], equal: EqualSources
) -> list[Record]:
    """Of `others`, those that ask the same of the same examples as `records`, at another eps."""
    if not records:
        return []
    first = records[0]
    question = question_without_eps(first.cell)
    return [
        other
        for other in others
        if other.cell.threat.eps != first.cell.threat.eps
        and not why_left_out(other, first, equal)
        and question_without_eps(other.cell) == question
    ]


@functools.cache
def question_without_eps(cell: Cell) -> str:
    """The key of what two cells share that differ in eps and attack alone."""
    return replace(cell, threat=replace(cell.threat, eps=Fraction(0))).question


def list_unanswered(cells: Sequence[Cell], data: BoardData) -> list[str]:
    """In words: the cells that failed, and those that were planned and not run."""
    failed = []
    pending = []
    for cell in cells:
        name = data.asked.attacks[cell.attack]
        if cell.key in data.answers:
            continue
        if cell.key in data.failures:
            message = " ".join(data.failures[cell.key].split())
            failed.append(f"{name} failed: {message[:100]}")
        else:
            pending.append(name)
    if pending:
        failed.append(f"not yet run: {', '.join(pending)}")
    return failed
