"""What the audit of a check reads, and what it finds. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.questions.spec import Spec
from bench.results.evidence import Evidence
from bench.results.record import Flag, Record


@dataclass(frozen=True, slots=True)
class CheckEvidence:
    """The answers of one check on one row, and what else is known of the row.

    `flags` are those that the audits of the row raised.
    """

    answers: tuple[Record, ...]
    row: Evidence
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one answer of a check says of a row.

    `flags` count against the row's number, `notes` stand in its reasons only. `was_met` is whether
    the row met the attack that was checked, `passed` whether that attack is a good one.
    """

    flags: tuple[Flag, ...] = ()
    notes: tuple[str, ...] = ()
    was_met: bool = True
    passed: bool = False


def keep_decisive(findings: Sequence[Finding]) -> list[Finding]:
    """Turn into notes the flags that say nothing of the row's number.

    An attack that the row did not meet speaks neither for the number nor against it. Where one
    attack that the row met is good, it does not count that others are not.
    """
    one_is_good = any(finding.passed and finding.was_met for finding in findings)
    kept = []
    for finding in findings:
        if one_is_good or not finding.was_met:
            suffix = "" if finding.was_met else ", and the row did not meet it"
            notes = [f"{flag.id}: {flag.message}{suffix}" for flag in finding.flags]
            finding = replace(finding, flags=(), notes=(*finding.notes, *notes))
        kept.append(finding)
    return kept


def running_attack(record: Record) -> Spec:
    """The attack that runs: the one inside a check or another attack, else the record's own."""
    attack = record.cell.attack
    inner = attack.params.get("attack")
    return attack if inner is None else Spec.parse(str(inner))
