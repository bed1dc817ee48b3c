"""What a row's number is worth: sound, suspicious, broken or incomplete, and why.

- broken: the attacks here leave less than was published, by 3 points or more and outside of the
  interval. It is the claim that is broken.
- suspicious: a hard flag, or three soft ones.
- incomplete: nothing speaks against the number, but something that it needs was not run. Or no
  attack that was run finds what is planted (D17).
- sound: all of it was run. No attack of this bench, at this budget, does better. It is an upper
  bound and no certificate.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from bench.questions.pins import classifier_of, unpinned
from bench.questions.registry import checks
from bench.results.evidence import Evidence
from bench.results.record import Flag, Record
from bench.soundness.audits.curves import unbounded_attacks
from bench.soundness.audits.effort import find_doublings
from bench.soundness.audits.positive_control import check_plain_classifier
from bench.soundness.codes import code_order

GAP = 0.03  # between a published robust accuracy and one that breaks the claim
MANY = 3  # soft flags
ADAPTIVE = ("A2", "A3", "A4", "A5", "A6", "A7")
OPTIMISING = ("A8", "A9")
OF_ATTACKS = ("D3", "D5", "D6", "D7", "D8", "D9", "D12", "D18")
OF_DRAWS = ("D14", "D15")
DIFFERENT_MODEL = "G1"
NOT_FOUND = "D17"


def decide_verdict(
    evidence: Evidence, flags: Sequence[Flag], lacking: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    """The verdict and its reasons; `lacking` are the codes of what was not run."""
    reasons = [f"{flag.id} {flag.severity}: {flag.message}" for flag in flags]
    reasons += evidence.missing
    if lacking:
        reasons.append(f"not run: {join_ranges(lacking)}")
    codes = {flag.id for flag in flags}
    broken = broken_claim(evidence)
    if broken and DIFFERENT_MODEL not in codes:
        return "broken", (broken, *reasons)
    if any(flag.severity == "hard" for flag in flags) or len(flags) >= MANY:
        return "suspicious", tuple(reasons)
    if evidence.missing or lacking or NOT_FOUND in codes or not evidence.robust:
        return "incomplete", tuple(reasons)
    return "sound", tuple(reasons)


def broken_claim(evidence: Evidence) -> str:
    """By what attack, and from where to where, a published claim falls; empty where it stands."""
    robust, published = evidence.robust, evidence.published
    if not robust or not published or robust.hi >= published.robust:
        return ""
    if published.robust - robust.mean < GAP:
        return ""
    return (
        f"by {evidence.strongest_attack}: published {published.robust:.3f} ({published.attack}), "
        f"here {robust.mean:.3f} [{robust.lo:.3f}, {robust.hi:.3f}]"
    )


def missing_codes(evidence: Evidence) -> tuple[str, ...]:
    """The codes of required attacks (A) and diagnostics (D) that the evidence does not hold."""
    if not evidence.records:
        return ()
    missing = set(required_codes(evidence)) - answered_codes(evidence)
    return tuple(sorted(missing, key=code_order))


def required_codes(evidence: Evidence) -> list[str]:
    """A bare classifier has no parts that an adaptive attack could aim at."""
    first = evidence.records[0]
    codes = ["A1", *OF_ATTACKS]
    if not first.defence_traits.bare:
        codes += ADAPTIVE
    if probed(evidence.records, "P14"):
        codes += OPTIMISING
    if first.cell.stochastic:
        codes += OF_DRAWS
    return codes


def answered_codes(evidence: Evidence) -> set[str]:
    """The codes of all that was run."""
    records = evidence.records
    families = {record.family for record in records}
    traits = [record.attack_traits for record in records]
    everywhere = [*records, *evidence.other_eps]
    single_step = any(trait.single_step for trait in traits)
    answered = {
        "A1": "gradient" in families,
        "A2": transfers_own_classifier(records),
        "D3": bool(unbounded_attacks(everywhere)),
        "D5": single_step and any(trait.iterated for trait in traits),
        "D7": any(trait.random_search for trait in traits),
        "D8": "transfer" in families,
        "D9": "noise" in families,
        "D12": probed(records, "D12"),
        "D18": check_plain_classifier(records, evidence.controls) is not None,
    }
    codes = {code for code, is_answered in answered.items() if is_answered}
    codes |= {doubling.code for doubling in find_doublings(records)}
    return codes | adaptive_codes(records) | codes_of_checks(evidence.checks)


def adaptive_codes(records: Sequence[Record]) -> set[str]:
    """What the adaptive attack stands for, where it went every way that the declared parts open.

    Every composite defence has the bare classifier to offer as one of the ways.
    """
    whole = [r.routes for r in records if r.routes and not r.cell.attack.params.get("only")]
    ways = {name for routes in whole for name in routes.names}
    if not ways & {"base", "classifier"}:
        return set()
    codes = set(ADAPTIVE)
    if "full" in ways:
        codes.add("A8")
    if any(name.startswith("identity") for name in ways):
        codes.add("A9")
    return codes


def codes_of_checks(answers: Sequence[Record]) -> set[str]:
    """The codes that the checks that were run register."""
    names = {record.cell.attack.name for record in answers}
    return {code.id for name in names if name in checks for code in checks.get(name).facts.codes}


def transfers_own_classifier(records: Sequence[Record]) -> bool:
    """Whether an attack was transferred from the classifier that the defence stands before."""
    classifiers = set(classifier_of(records[0].cell.defence).split("+"))
    sources = {
        unpinned(str(record.cell.attack.params.get("source", "")))
        for record in records
        if record.family == "transfer"
    }
    return bool(sources & classifiers)


def probed(records: Sequence[Record], code: str) -> bool:
    """Whether the probe of this code gave a figure."""
    return any(code in dict(record.checks) for record in records)


def expand_ranges(text: str) -> str:
    """The same text with every code of a range: `A2-A4` -> `A2 A3 A4`."""

    def expand(match: re.Match[str]) -> str:
        letter, first, last = match.groups()
        return " ".join(f"{letter}{number}" for number in range(int(first), int(last) + 1))

    return re.sub(r"([A-Z])(\d+)-\1(\d+)", expand, text)


def join_ranges(codes: Sequence[str]) -> str:
    """`A2, A3, A4, D3` -> `A2-A4, D3`."""
    parts = []
    numbered = enumerate(codes)
    # Codes of one letter that follow each other have one difference of number and place.
    for _, run in itertools.groupby(
        numbered, key=lambda item: (item[1][0], int(item[1][1:]) - item[0])
    ):
        names = [code for _, code in run]
        parts.append(f"{names[0]}-{names[-1]}" if len(names) > 2 else ", ".join(names))
    return ", ".join(parts)
