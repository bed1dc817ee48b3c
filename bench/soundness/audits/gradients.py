"""D1, D2 and D10: gradients that vanish, are not finite, or move nothing."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from bench.checks.evidence import running_attack
from bench.questions.runs import runs_by_loss
from bench.results.evidence import Evidence
from bench.results.record import Flag, Record
from bench.soundness.audits.shares import gradient_attacks, surviving
from bench.soundness.audits.variants import running_scale
from bench.soundness.codes import D1_SHARE, D2_SHARE, D10_SHARE


def audit_zero_gradients(evidence: Evidence) -> list[Flag]:
    """D1: the zero gradients that examples which survive must account for.

    It does not matter what the fallen examples had: a clamped loss has no gradient left on these.
    No attack spends more gradients on a fallen example than on a surviving one. So with accuracy a
    and zero share z, at least (z - (1-a)) / a of the gradients of the surviving examples were zero.
    It is hard only if the cross-entropy, which underflows where an answer is certain, cannot
    account for them. Let an attack use the cross-entropy for a share c of its gradients. Then at
    least (z - c) / (1 - c) of the others were zero. One that uses nothing else shows nothing about
    them. Nor does an attack that makes the logits larger itself.
    """
    shares = []
    other_losses = []  # what the losses other than the cross-entropy must account for
    for record in gradient_attacks(evidence.records):
        left = fmean(surviving(record))
        if scales_up(record) or not record.cost.backwards or not left:
            continue
        share = (record.cost.zero / record.cost.backwards - (1 - left)) / left
        cross_entropy = cross_entropy_share(record)
        shares.append((share, record.cell.attack.name))
        if cross_entropy < 1:
            other_losses.append((share - cross_entropy) / (1 - cross_entropy))
    if not shares or max(shares)[0] < D1_SHARE:
        return []
    if other_losses and min(other_losses) >= D1_SHARE:
        message = (
            f"at least {min(other_losses):.1%} of the gradients on standing examples were zero, "
            "under every gradient attack and loss"
        )
        return [Flag("D1", "hard", message)]
    share, name = max(shares)
    message = (
        f"at least {share:.1%} of the gradients on standing examples were zero under {name}, not "
        "under every attack and loss"
    )
    return [Flag("D1", "soft", message)]


def cross_entropy_share(record: Record) -> float:
    """The share of an attack's gradients that are of the cross-entropy, by its knob `loss`.

    Half of the gradients of AutoAttack's pair of losses are.
    """
    if record.effective_traits.ensemble:
        return 0.5
    runs = runs_by_loss({"loss": "margin", **running_attack(record).params})
    of_cross_entropy = sum(count for loss, count in runs if loss == "ce")
    return of_cross_entropy / sum(count for _, count in runs)


def scales_up(record: Record) -> bool:
    """Whether the attack multiplied the logits by more than 1.

    Its cross-entropy then underflows on any defence.
    """
    scale = running_scale(record)
    return scale != "gap" and float(scale) > 1


def audit_nonfinite_gradients(evidence: Evidence) -> list[Flag]:
    """D2: gradients that were NaN or infinite."""
    shares = [
        (record.cost.nonfinite / record.cost.backwards, record.cell.attack.name)
        for record in gradient_attacks(evidence.records)
        if record.cost.backwards
    ]
    share, name = max(shares, default=(0.0, ""))
    if not share:
        return []
    message = f"{share:.2g} of the gradients of {name} were NaN or infinite"
    return [Flag("D2", "hard" if share >= D2_SHARE else "soft", message)]


def audit_unmoved(evidence: Evidence) -> list[Flag]:
    """D10: surviving examples that no gradient attack moved.

    The harness keeps the clean image where no proposal had a larger margin. So this is also the
    share whose loss never rose. An attack that returns the clean image where it fails says nothing.
    """
    attacks = [
        record
        for record in gradient_attacks(evidence.records)
        if not record.effective_traits.returns_clean
    ]
    if not attacks or not attacks[0].cell.threat.eps:
        return []
    survive = [all(example) for example in zip(*map(surviving, attacks), strict=True)]
    unmoved = count_unmoved(attacks, survive)
    if unmoved <= D10_SHARE * sum(survive):
        return []
    names = ", ".join(dict.fromkeys(record.cell.attack.name for record in attacks))
    message = f"{unmoved} of {sum(survive)} standing examples were not moved by {names}"
    return [Flag("D10", "hard", message)]


def count_unmoved(attacks: Sequence[Record], survive: Sequence[bool]) -> int:
    """How many surviving examples have distance 0 under every attack."""
    distances = zip(*(record.distance for record in attacks), strict=True)
    return sum(
        survives and not any(moves) for survives, moves in zip(survive, distances, strict=True)
    )
