"""P1, V1, V3, W1 to W3, E1 and G1 to G3: what else in a row makes its number hard to believe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from bench.results.evidence import Evidence
from bench.results.record import Flag, Record
from bench.results.statistics import estimate, lower_limit
from bench.results.worst_case import WorstCase
from bench.soundness.codes import (
    G3_EXAMPLES,
    G3_GAP,
    P1_SHARE,
    STANDARD_ERRORS,
    V1_SHARE,
    W2_GAP,
)


def audit_repeated_answers(evidence: Evidence) -> list[Flag]:
    """P1: the draws that select and judge are one answer of a deterministic defence."""
    records = evidence.records
    if not records or records[0].cell.stochastic:
        return []
    share, name = max((differing_share(record), record.cell.attack.name) for record in records)
    if not share:
        return []
    message = f"judged twice on the same image, {share:.1%} of the answers differ ({name})"
    return [Flag("P1", "hard" if share >= P1_SHARE else "soft", message)]


def differing_share(record: Record) -> float:
    """The share of the examples on which selection and evaluation disagree."""
    pairs = zip(record.selected, record.correct, strict=True)
    return fmean(selected != correct for selected, correct in pairs)


def audit_proposals(evidence: Evidence) -> list[Flag]:
    """V1 and V3: proposals that held NaN, or lay outside of ball or box.

    Decision-based attacks minimise the distance, and may propose what is too far.
    """
    flags = []
    share, name = largest_share(evidence.records, lambda strayed: strayed == -1)
    if share:
        message = f"{name} proposed images that are not finite for {share:.1%} of the examples"
        flags.append(Flag("V1", "hard" if share > V1_SHARE else "soft", message))
    bounded = [record for record in evidence.records if record.family != "decision"]
    share, name = largest_share(bounded, lambda strayed: strayed > 0)
    if share:
        message = f"{name} proposed images outside of ball or box for {share:.1%} of the examples"
        flags.append(Flag("V3", "soft", message))
    return flags


def largest_share(records: Sequence[Record], strays: Callable[[float], bool]) -> tuple[float, str]:
    """The largest share of examples whose proposals stray in this way, and the attack's name."""
    return max(
        ((fmean(map(strays, record.strayed)), record.cell.attack.name) for record in records),
        default=(0.0, ""),
    )


def audit_weights(evidence: Evidence) -> list[Flag]:
    """E1: one name, one file. Names that are pinned cannot mix; RobustBench's are not pinned."""
    digests_of: dict[str, set[str]] = {}
    for record in evidence.records:
        for name, digest in record.env.weights:
            digests_of.setdefault(name, set()).add(digest)
    mixed = sorted(name for name, digests in digests_of.items() if len(digests) > 1)
    if not mixed:
        return []
    return [Flag("E1", "hard", f"the cells used different weights for {', '.join(mixed)}")]


def audit_against_clean(evidence: Evidence) -> list[Flag]:
    """W1: the clean image is among the candidates, so attacks cannot raise the accuracy."""
    worst = evidence.worst
    clean = evidence.clean
    if not worst or not clean:
        return []
    pairs = zip(worst.correct, clean.correct, strict=True)
    gains = [(robust - correct) / worst.draws for robust, correct in pairs]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    if fmean(gains) <= STANDARD_ERRORS * error:
        return []
    message = (
        f"robust accuracy lies {fmean(gains):.1%} above clean accuracy (standard error {error:.1%})"
    )
    return [Flag("W1", "soft", message)]


def audit_certificates(evidence: Evidence) -> list[Flag]:
    """W3, in l2: certificates of at most a share alpha of the examples may be wrong."""
    if not evidence.worst:
        return []
    flags = []
    for record in evidence.records:
        if record.certificate and record.cell.threat.norm == "l2":
            flags += fallen_though_certified(record, evidence.worst)
    return flags


def fallen_though_certified(record: Record, worst: WorstCase) -> list[Flag]:
    certificate, eps = record.certificate, record.cell.threat.eps
    assert certificate
    pairs = zip(certificate.beyond(float(eps)), worst.correct, strict=True)
    fallen = sum(bool(certified) and 2 * correct < worst.draws for certified, correct in pairs)
    n = len(worst.correct)
    if lower_limit(fallen, n) <= dict(certificate.rests_on).get("alpha", 0.0):
        return []
    message = f"{fallen} of {n} examples fall at eps {eps} although certified beyond it"
    return [Flag("W3", "hard", message)]


def audit_selection_gap(evidence: Evidence) -> list[Flag]:
    """W2: the draws that chose the attack, against the fresh draws that scored it."""
    worst = evidence.worst
    if not worst or worst.selection_gap <= W2_GAP:
        return []
    fresh = worst.robust.mean
    message = (
        f"the draws that chose the attack give {fresh - worst.selection_gap:.3f}, "
        f"fresh ones {fresh:.3f}: "
        "raise --select"
    )
    return [Flag("W2", "soft", message)]


def audit_published_clean(evidence: Evidence) -> list[Flag]:
    """G1: the same model must have the published clean accuracy."""
    published, record = evidence.published, evidence.clean
    if not record or published is None or published.clean is None:
        return []
    clean = estimate(record.correct, record.cell.draws)
    if clean.lo <= published.clean <= clean.hi:
        return []
    message = (
        f"clean accuracy {clean.mean:.3f} [{clean.lo:.3f}, {clean.hi:.3f}], published "
        f"{published.clean:.3f}"
    )
    return [Flag("G1", "soft", message)]


def audit_published_robust(evidence: Evidence) -> list[Flag]:
    """G2 and G3: robust accuracy must lie near what the published attack leaves."""
    published, worst = evidence.published, evidence.worst
    if published is None or worst is None:
        return []
    flags = []
    robust = worst.robust
    n = len(worst.chosen)
    if robust.lo > published.robust:
        message = (
            f"robust accuracy {robust.mean:.3f}, published {published.robust:.3f} under "
            f"{published.attack}"
        )
        flags.append(Flag("G2", "soft", message))
    gap = round(robust.mean - published.robust, 9)  # two decimals: one point exactly is no gap
    if n >= G3_EXAMPLES and abs(gap) > G3_GAP:
        message = (
            f"robust accuracy lies {100 * gap:+.2f} points from the published "
            f"{published.robust:.4f} at n {n}"
        )
        flags.append(Flag("G3", "soft", message))
    return flags
