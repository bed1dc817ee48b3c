"""D3 and D4: how a row's number moves with eps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from statistics import fmean

from bench.results.evidence import Evidence
from bench.results.record import Flag, Record
from bench.results.statistics import paired_difference
from bench.soundness.audits.shares import gradient_attacks, per_example_minimum
from bench.soundness.codes import D3_HARD, D3_SOFT, D4_FALL, D4_STANDS, STANDARD_ERRORS

WHOLE = Fraction(1)  # in linf: every image can become every other one


def audit_unbounded(evidence: Evidence) -> list[Flag]:
    """D3: at an eps that is no bound nothing may survive the gradient attacks together."""
    records = unbounded_attacks([*evidence.records, *evidence.other_eps])
    if not records:
        return []
    surviving = fmean(per_example_minimum(records))
    if surviving <= D3_SOFT:
        return []
    eps = records[0].cell.threat.eps
    message = (
        f"at eps {eps}, where every image can become any other, gradients leave {surviving:.1%}"
    )
    return [Flag("D3", "hard" if surviving > D3_HARD else "soft", message)]


def unbounded_attacks(records: Sequence[Record]) -> list[Record]:
    """The gradient attacks at an eps that is no bound.

    Only in linf is such an eps known without the size of the images.
    """
    return [
        record
        for record in gradient_attacks(records)
        if record.cell.threat.norm == "linf" and record.cell.threat.eps >= WHOLE
    ]


def audit_over_eps(evidence: Evidence) -> list[Flag]:
    """D4, from the gradient attacks at the row's own eps and at the others, two eps at a time."""
    by_eps: dict[Fraction, list[Record]] = {}
    for record in gradient_attacks([*evidence.records, *evidence.other_eps]):
        by_eps.setdefault(record.cell.threat.eps, []).append(record)
    flags = []
    for small, large in itertools.combinations(sorted(by_eps), 2):
        flags += compare_eps(by_eps[small], by_eps[large])
    return flags


def compare_eps(at_small: Sequence[Record], at_large: Sequence[Record]) -> list[Flag]:
    """D4 for two eps, by the attacks that were run at both."""
    shared = {r.cell.attack for r in at_small} & {r.cell.attack for r in at_large}
    if not shared:
        return []
    small = at_small[0].cell.threat.eps
    large = at_large[0].cell.threat.eps
    before = per_example_minimum([r for r in at_small if r.cell.attack in shared])
    after = per_example_minimum([r for r in at_large if r.cell.attack in shared])
    gain, error = paired_difference(after, before)
    course = f"from {fmean(before):.3f} at eps {small} to {fmean(after):.3f} at {large}"
    if gain > STANDARD_ERRORS * error:
        return [Flag("D4", "hard", f"robust accuracy rises {course}")]
    fourfold = large >= 4 * small > 0
    if fourfold and fmean(before) > D4_STANDS and -gain < D4_FALL:
        return [Flag("D4", "hard", f"robust accuracy hardly falls {course}")]
    return []
