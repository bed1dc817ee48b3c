"""D16 and V8: what must not change a row's number: the logits' scale, the images' rounding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from statistics import fmean

from bench.checks.evidence import running_attack
from bench.questions.spec import Value
from bench.results.evidence import Evidence
from bench.results.record import Flag, Record
from bench.results.statistics import paired_difference
from bench.soundness.audits.shares import gradient_attacks, shares
from bench.soundness.codes import D16_GAIN, STANDARD_ERRORS, V8_LOSS

AS_IS = "1"  # the scale of logits as they are


def audit_scales(evidence: Evidence) -> list[Flag]:
    """D16: a gradient attack, and the same one on rescaled logits.

    Only where the latter finds more is it a fault of the logits. Scaled up or down enough, the
    cross-entropy finds less on any defence.
    """
    gains: list[tuple[float, str]] = []
    for plain, rescaled in pairs(evidence):
        if without_scale(plain) != without_scale(rescaled):
            continue
        scale = scale_of(rescaled)
        if scale_of(plain) != AS_IS or scale == AS_IS:
            continue
        before, after = shares(plain), shares(rescaled)
        gain, error = paired_difference(before, after)
        if gain > D16_GAIN and gain > STANDARD_ERRORS * error:
            message = (
                f"{plain.cell.attack.name} leaves {fmean(before):.3f} with scale={AS_IS}, and "
                f"{fmean(after):.3f} with scale={scale}: keep the strongest"
            )
            gains.append((gain, message))
    return [Flag("D16", "soft", max(gains)[1])] if gains else []


def audit_eight_bits(evidence: Evidence) -> list[Flag]:
    """V8: an attack, and the same one with its images rounded to 8 bits."""
    losses: list[tuple[float, str]] = []
    for plain, rounded in pairs(evidence):
        attack = rounded.cell.attack
        same = attack.params.get("attack") == str(plain.cell.attack)
        if not (rounded.attack_traits.rounds and same):
            continue
        before, after = shares(plain), shares(rounded)
        loss, error = paired_difference(after, before)
        if loss > V8_LOSS and loss > STANDARD_ERRORS * error:
            message = (
                f"{plain.cell.attack.name} leaves {fmean(before):.3f}, and {fmean(after):.3f} with "
                "its images in 8 bits: it lives on changes that no file holds"
            )
            losses.append((loss, message))
    return [Flag("V8", "soft", max(losses)[1])] if losses else []


def pairs(evidence: Evidence) -> Iterator[tuple[Record, Record]]:
    """Every two of the row's gradient attacks, in both orders."""
    return itertools.permutations(gradient_attacks(evidence.records), 2)


def scale_of(record: Record) -> str:
    """By what an attack multiplies the logits, as text: a number, or `gap`."""
    if not record.attack_traits.rescales:
        return AS_IS
    return str(record.cell.attack.params.get("scale", AS_IS))


def running_scale(record: Record) -> str:
    """The scale of the attack that runs: the one inside another attack, else the record's own."""
    if not record.effective_traits.rescales:
        return AS_IS
    return str(running_attack(record).params.get("scale", AS_IS))


def without_scale(record: Record) -> tuple[str, dict[str, Value]]:
    attack = record.cell.attack
    return attack.name, {knob: value for knob, value in attack.items if knob != "scale"}
