"""Checks of how a row's number moves with eps and with effort, of which more must never help the defence, and with the scale of the logits and the
rounding of the images, which must not matter. Standard library only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from statistics import fmean, stdev

from bench.questions.facts import AttackTraits
from bench.questions.spec import Spec, Value
from bench.results.record import Flag, Record

WHOLE = Fraction(1)  # in linf: every image can become every other one
FALLS, MOSTLY = 0.01, 0.05  # of the examples that may stand there
FLAT, STANDS = (
    0.05,
    0.2,
)  # a robust accuracy above the second that falls by less than the first while eps grows fourfold
SLACK, TOO_MUCH = 0.005, 0.02  # robust accuracy that twice the effort may take

MEANING = {
    "D3": "with an unbounded eps every image must fall to the gradients",
    "D4": "robust accuracy must fall as eps grows",
    "D6": "twice the steps, or the restarts, must not find more",
    "D14": "twice the averaged draws must not find more",
    "D16": "an attack must not find more for rescaled logits",
    "V8": "adversarial images must survive being stored in 8 bits",
}
AS_IS = "1"  # the scale of logits as they are
EFFORT = {"steps": "D6", "restarts": "D6", "eot": "D14"}


def over_eps(here: Sequence[Record], others: Sequence[Record]) -> list[Flag]:
    """D3 and D4, from the gradient attacks at the row's own eps and at the others."""
    found = unbounded([*here, *others])
    by_eps: dict[Fraction, list[Record]] = {}
    for record in gradient([*here, *others]):
        by_eps.setdefault(record.cell.threat.eps, []).append(record)
    for (small, some), (large, more) in itertools.combinations(sorted(by_eps.items()), 2):
        shared = {r.cell.attack for r in some} & {r.cell.attack for r in more}
        if not shared:
            continue
        before, after = (
            per_example_minimum([r for r in held if r.cell.attack in shared])
            for held in (some, more)
        )
        gain, error = paired(after, before)
        if gain > 2 * error:
            found.append(
                Flag(
                    "D4",
                    "hard",
                    f"robust accuracy rises from {fmean(before):.3f} at eps {small} to {fmean(after):.3f} at {large}",
                )
            )
        elif large >= 4 * small > 0 and fmean(before) > STANDS and -gain < FLAT:
            found.append(
                Flag(
                    "D4",
                    "hard",
                    f"robust accuracy hardly falls from {fmean(before):.3f} at eps {small} to {fmean(after):.3f} at {large}",
                )
            )
    return found


def unbounded(records: Sequence[Record]) -> list[Flag]:
    held = at_whole(records)
    if not held:
        return []
    left = fmean(per_example_minimum(held))
    if left <= FALLS:
        return []
    eps = held[0].cell.threat.eps
    return [
        Flag(
            "D3",
            "hard" if left > MOSTLY else "soft",
            f"at eps {eps}, where every image can become any other, gradients leave {left:.1%}",
        )
    ]


def at_whole(records: Sequence[Record]) -> list[Record]:
    """The gradient attacks at an eps that is no bound; only in linf is one known without the size of the images."""
    return [
        r for r in gradient(records) if r.cell.threat.norm == "linf" and r.cell.threat.eps >= WHOLE
    ]


def more_effort(records: Sequence[Record]) -> list[Flag]:
    """D6 and D14: pairs of one gradient attack that differ in one kind of effort alone, by a factor of two or more."""
    found = []
    for code, less, more in pairs(records):
        before, after = shares(less), shares(more)
        gain, error = paired(before, after)
        if gain > SLACK and gain > 2 * error:
            knobs = (
                f"{name}={more.cell.attack.params[name]}"
                for name in EFFORT
                if differ(less, more, name)
            )
            severity = "hard" if gain > TOO_MUCH else "soft"
            found.append(
                Flag(
                    code,
                    severity,
                    f"{less.cell.attack.name} leaves {fmean(before):.3f}, and {fmean(after):.3f} with {', '.join(knobs)}: go on",
                )
            )
    return found


def pairs(records: Sequence[Record]) -> list[tuple[str, Record, Record]]:
    """The check, the record of less effort and that of more; of each attack only the two of most effort count."""
    found: dict[tuple[str, str], tuple[int, int, str, Record, Record]] = {}
    for less, more in itertools.permutations(gradient(records), 2):
        one, other = less.cell.attack, more.cell.attack
        names = [name for name in {*one.params, *other.params} if differ(less, more, name)]
        if one.name == other.name and len(names) == 1 and names[0] in EFFORT:
            few, many = (int(attack.params[names[0]]) for attack in (one, other))
            kept = found.get((one.name, names[0]))
            if many >= 2 * few and (kept is None or (many, few) > kept[:2]):
                found[one.name, names[0]] = (many, few, EFFORT[names[0]], less, more)
    return [pair[2:] for pair in found.values()]


def rescaled(records: Sequence[Record]) -> list[Flag]:
    """D16: a gradient attack, and the same one on rescaled logits.

    Only where that finds more is it a fault of the logits: scaled up or down enough, the cross-entropy finds less on any defence.
    """
    found: list[tuple[float, str]] = []
    for plain, other in itertools.permutations(gradient(records), 2):
        if (
            without_scale(plain) != without_scale(other)
            or scale_of(plain.cell.attack, plain.attack_traits) != AS_IS
            or scale_of(other.cell.attack, other.attack_traits) == AS_IS
        ):
            continue
        before, after = shares(plain), shares(other)
        gain, error = paired(before, after)
        if gain > SLACK and gain > 2 * error:
            scales = (
                f"{fmean(left):.3f} with scale={scale_of(one.cell.attack, one.attack_traits)}"
                for one, left in ((plain, before), (other, after))
            )
            found.append(
                (
                    gain,
                    f"{plain.cell.attack.name} leaves {', and '.join(scales)}: keep the strongest",
                )
            )
    return [Flag("D16", "soft", max(found)[1])] if found else []


def scale_of(attack: Spec, traits: AttackTraits) -> str:
    """What the attack multiplies the logits by, as text."""
    return str(attack.params.get("scale", AS_IS)) if traits.rescales else AS_IS


def without_scale(record: Record) -> tuple[str, dict[str, Value]]:
    attack = record.cell.attack
    return attack.name, {knob: value for knob, value in attack.items if knob != "scale"}


def in_eight_bits(records: Sequence[Record]) -> list[Flag]:
    """V8: an attack, and the same one with its images rounded to 8 bits."""
    found: list[tuple[float, str]] = []
    for plain, other in itertools.permutations(gradient(records), 2):
        if not other.attack_traits.rounds or other.cell.attack.params["attack"] != str(
            plain.cell.attack
        ):
            continue
        before, after = shares(plain), shares(other)
        loss, error = paired(after, before)
        if loss > TOO_MUCH and loss > 2 * error:
            told = f"{plain.cell.attack.name} leaves {fmean(before):.3f}, and {fmean(after):.3f} with its images in 8 bits"
            found.append((loss, f"{told}: it lives on changes that no file holds"))
    return [Flag("V8", "soft", max(found)[1])] if found else []


def shares(record: Record) -> list[float]:
    """Per example, the share of the draws that were right."""
    return [count / record.cell.draws for count in record.correct]


def differ(one: Record, other: Record, knob: str) -> bool:
    return one.cell.attack.params.get(knob) != other.cell.attack.params.get(knob)


def ran(here: Sequence[Record], others: Sequence[Record]) -> set[str]:
    """The codes of the checks that these records allow."""
    codes = {code for code, _, _ in pairs(here)}
    return (
        codes
        | ({"D3"} if at_whole([*here, *others]) else set())
        | ({"D4"} if gradient(others) else set())
    )


def gradient(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.family == "gradient"]


def per_example_minimum(records: Sequence[Record]) -> list[float]:
    """Per example, the smallest share of right answers that one of the attacks leaves."""
    return [min(several) for several in zip(*map(shares, records), strict=True)]


def paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The mean difference, and its standard error."""
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    return fmean(gaps), stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
