"""What the evidence on one row is worth: its flags, its verdict and the reasons."""

from __future__ import annotations

from bench.results.evidence import Assessment, Evidence
from bench.soundness.audits import check_results, positive_control
from bench.soundness.audits.records import audit
from bench.soundness.verdict import decide_verdict, missing_codes


def assess(evidence: Evidence) -> Assessment:
    """Audit the evidence and decide the verdict."""
    records = evidence.records
    check_flags, findings = check_results.audit(
        evidence.checks, evidence.worst, records, evidence.controls
    )
    own_flags = [flag for check in evidence.checks for flag in check.flags]
    control_flags = positive_control.audit(records, evidence.controls)
    flags = audit(
        records,
        evidence.worst,
        evidence.published,
        evidence.other_eps,
        [*check_flags, *own_flags, *control_flags],
    )
    lacking = missing_codes(records, evidence.other_eps, evidence.checks, evidence.controls)
    verdict, reasons = decide_verdict(
        flags,
        evidence.missing,
        lacking,
        evidence.robust,
        evidence.strongest_attack,
        evidence.published,
    )
    return Assessment(tuple(flags), verdict, (*reasons, *findings, *evidence.missing_checks))
