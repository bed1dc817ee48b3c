"""What the evidence on one row is worth: its flags, its verdict and the reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.checks.evidence import CheckEvidence, Finding
from bench.questions.registry import checks
from bench.results.evidence import Assessment, Evidence
from bench.results.record import Flag
from bench.soundness.audits.curves import audit_over_eps, audit_unbounded
from bench.soundness.audits.effort import audit_effort
from bench.soundness.audits.gradients import (
    audit_nonfinite_gradients,
    audit_unmoved,
    audit_zero_gradients,
)
from bench.soundness.audits.positive_control import audit_positive_control
from bench.soundness.audits.rows import (
    audit_against_clean,
    audit_certificates,
    audit_proposals,
    audit_published_clean,
    audit_published_robust,
    audit_repeated_answers,
    audit_selection_gap,
    audit_weights,
)
from bench.soundness.audits.variants import audit_eight_bits, audit_scales
from bench.soundness.audits.weaker_attacks import audit_single_step, audit_without_gradients
from bench.soundness.verdict import decide_verdict, missing_codes

# Flags of one severity stand in a row's reasons in this order.
AUDITS = (
    audit_positive_control,
    audit_repeated_answers,
    audit_zero_gradients,
    audit_nonfinite_gradients,
    audit_single_step,
    audit_without_gradients,
    audit_unmoved,
    audit_proposals,
    audit_weights,
    audit_effort,
    audit_unbounded,
    audit_over_eps,
    audit_scales,
    audit_eight_bits,
    audit_against_clean,
    audit_certificates,
    audit_selection_gap,
    audit_published_clean,
    audit_published_robust,
)


def assess(evidence: Evidence) -> Assessment:
    """Audit the evidence and decide the verdict."""
    row_flags = audit_row(evidence)
    findings = audit_checks(evidence, row_flags)
    probe_flags = [flag for record in evidence.records for flag in record.flags]
    check_flags = [flag for finding in findings for flag in finding.flags]
    kept_flags = [flag for answer in evidence.checks for flag in answer.flags]
    flags = keep_hardest([*probe_flags, *check_flags, *kept_flags, *row_flags])
    notes = [note for finding in findings for note in finding.notes]
    lacking = missing_codes(evidence)
    verdict, reasons = decide_verdict(evidence, flags, lacking)
    return Assessment(tuple(flags), verdict, (*reasons, *notes, *evidence.missing_checks))


def audit_row(evidence: Evidence) -> list[Flag]:
    """The flags that the attacks on the row raise."""
    return [flag for audit in AUDITS for flag in audit(evidence)]


def audit_checks(evidence: Evidence, row_flags: Sequence[Flag] = ()) -> list[Finding]:
    """What the checks say of the row, each by the `audit_row` that it registers."""
    findings: list[Finding] = []
    for entry in checks:
        answers = tuple(r for r in evidence.checks if r.cell.attack.name == entry.name)
        if answers and entry.facts.audit_row:
            findings += entry.facts.audit_row(CheckEvidence(answers, evidence, tuple(row_flags)))
    return findings


def keep_hardest(flags: Iterable[Flag]) -> list[Flag]:
    """One flag per code, the first of the hardest; the hard ones first."""
    hardest: dict[str, Flag] = {}
    for flag in flags:
        kept = hardest.get(flag.id)
        if kept is None or (kept.severity == "soft" and flag.severity == "hard"):
            hardest[flag.id] = flag
    return sorted(hardest.values(), key=lambda flag: flag.severity != "hard")
