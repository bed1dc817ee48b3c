"""D5 and D7 to D9: an attack that should be the weaker one must not beat the gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.questions.pins import unpinned
from bench.results.evidence import Evidence
from bench.results.record import Flag, Record
from bench.results.statistics import lower_limit
from bench.soundness.audits.shares import gradient_attacks, per_example_minimum, shares
from bench.soundness.codes import BEATEN_HARD, BEATEN_SOFT

FAMILIES_OF_CODE = {"D7": ("score", "decision"), "D8": ("transfer",), "D9": ("noise",)}


def audit_single_step(evidence: Evidence) -> list[Flag]:
    """D5: an attack of one gradient step against the attacks of many."""
    single = [record for record in evidence.records if record.attack_traits.single_step]
    iterated = [record for record in evidence.records if record.attack_traits.iterated]
    return compare_attacks("D5", single, iterated, "PGD")


def audit_without_gradients(evidence: Evidence) -> list[Flag]:
    """D7 to D9: attacks without this defence's gradients against the union of those with them.

    On a deterministic defence AutoAttack holds a Square attack of its own. Where only the union
    with it keeps up, the flag is soft.
    """
    flags = []
    union = gradient_attacks(evidence.records)
    pure = [r for r in union if not r.effective_traits.ensemble or r.cell.stochastic]
    for code, families in FAMILIES_OF_CODE.items():
        attackers = [record for record in evidence.records if record.family in families]
        flags += compare_attacks(code, attackers, union, "gradient attack")
        if len(pure) < len(union):
            against_pure = compare_attacks(code, attackers, pure, "gradient attack but AutoAttack")
            flags += [Flag(f.id, "soft", f.message) for f in against_pure if f.severity == "hard"]
    return flags


def compare_attacks(
    code: str, attackers: Sequence[Record], union: Sequence[Record], what: str
) -> list[Flag]:
    """Does an attacker break examples that nothing in the union breaks, beyond chance?

    The luck of the sample is left out by a one-sided limit at 95%.
    """
    if not attackers or not union:
        return []
    counts = [(sum(breaks_alone(attacker, union)), label(attacker)) for attacker in attackers]
    count, name = max(counts)
    n = len(attackers[0].ids)
    limit = lower_limit(count, n)
    if limit <= BEATEN_SOFT:
        return []
    message = f"{name} breaks {count} of {n} examples that no {what} breaks (surely {limit:.1%})"
    return [Flag(code, "hard" if limit > BEATEN_HARD else "soft", message)]


def label(record: Record) -> str:
    """The attack's name, and the model that it was transferred from."""
    attack = record.cell.attack
    if record.family != "transfer":
        return attack.name
    return f"{attack.name} from {unpinned(str(attack.params['source']))}"


def breaks_alone(attacker: Record, union: Sequence[Record]) -> list[bool]:
    """Per example, whether the attacker breaks it and nothing in the union does.

    Two shares of `draws` answers must differ by two standard errors of their difference, taken at
    its largest. One draw each is told apart as it is.
    """
    draws = attacker.cell.draws
    clear = 2 * math.sqrt(0.5 / draws) if draws > 1 else 0.5
    return [
        share <= 0.5 and least - share > clear
        for share, least in zip(shares(attacker), per_example_minimum(union), strict=True)
    ]
