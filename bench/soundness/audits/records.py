"""Checks across the records of one row: what in them makes its number hard to believe. Standard library only.

Every check takes the records of one question, one per attack, on the same examples. `MEANING` says what each code asks.
The checks that look at one live defence are in probes.py, and reach the row through the records' own flags.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from bench.questions.runs import runs_by_loss
from bench.results.names import unpinned
from bench.results.published import PublishedResult
from bench.results.record import Flag, Record
from bench.results.statistics import estimate, lower_limit
from bench.results.worst_case import WorstCase
from bench.soundness.audits import check_results as checks
from bench.soundness.audits import curves
from bench.soundness.audits import positive_control as control

SOFT, HARD = (
    0.002,
    0.01,
)  # of examples broken by an attack that should be the weaker one (at 95%): AutoAttack's margin for Square, and one point
INVALID = 0.001
APART, ENOUGH = (
    0.01,
    1000,
)  # from what was published, and the examples below which chance alone goes that far
BREAKS_HALF = 0.5  # a stochastic defence holds an example that it gets right more often than not

MEANING = {
    "P1": "is a defence declared deterministic really so",
    "P2": "two gradients at the same image must be the same where two answers are",
    "P3": "the answer to an image must not depend on the other images of its batch",
    "P4": "layers that behave as in training, where dropout or batch statistics change the answer",
    "P5": "a prediction must change neither the defence nor the images it is given",
    "P6": "logits must be finite on every legal image",
    "P7": "outputs should be logits: probabilities near 0 and 1 have no gradient left",
    "P8": "answers must not be surer than float32 can tell from certain: the cross-entropy has no gradient there",
    "P14": "a prediction must be the same whether gradients are on or off",
    "P15": "answers and gradients must be those of float64",
    "P12": "outputs that take a few values only, or tie: attacks that see scores see little",
    "P13": "an answer must follow its image, not move in steps",
    "P11": "a gradient must reach the image",
    "D1": "gradients that are exactly zero on examples that still stand",
    "D2": "gradients that are NaN or infinite: the sign of NaN is 0, so the attack stands still",
    "D5": "one step of FGSM must not beat many steps of PGD",
    "D7": "an attack without gradients must not beat the attacks with them",
    "D8": "an attack transferred from another model must not beat the gradients of this one",
    "D9": "random noise must not beat the gradients",
    "D10": "an attack by gradients that leaves the image where it is has not attacked",
    **curves.MEANING,
    **checks.MEANING,
    **control.MEANING,
    "D12": "gradients must agree with finite differences",
    "V1": "proposals that were not finite were dropped, which helps the defence",
    "V3": "proposals outside of ball or box were projected back",
    "W1": "robust accuracy above clean accuracy cannot be",
    "W2": "the draws that chose the attack and those that scored it disagree: too few selection draws",
    "W3": "an example that is certified at this eps cannot fall",
    "E1": "the cells of the row used different weights files under one name",
    "G1": "clean accuracy differs from the published one: not the same model, images or preprocessing",
    "G2": "more survives here than under the published attack: the attacks of this row are the weaker ones",
    "G3": "robust accuracy over one point from the published one, at enough examples to tell: another model, or attacks of another strength",
}


def audit(
    records: Sequence[Record],
    worst: WorstCase | None,
    published: PublishedResult | None = None,
    others: Sequence[Record] = (),
    more: Sequence[Flag] = (),
) -> list[Flag]:
    """All flags of one row, the probes' own first; one flag per code, the hardest. `others` are the same question's records at another eps,
    `more` the flags that its checks raised."""
    records = [record for record in records if record.family != "check"]
    found = [*(flag for record in records for flag in record.flags), *more]
    for check in (
        nondeterminism,
        zero_gradients,
        nonfinite_gradients,
        one_step,
        black_box,
        unmoved,
        proposals,
        mixed_weights,
    ):
        found += check(records)
    found += (
        curves.more_effort(records)
        + curves.over_eps(records, others)
        + curves.rescaled(records)
        + curves.in_eight_bits(records)
    )
    if worst:
        found += worst_against_clean(records, worst)
    if published:
        found += against_published(records, worst, published)
    hardest: dict[str, Flag] = {}
    for flag in found:
        if flag.id not in hardest or (flag.severity, hardest[flag.id].severity) == ("hard", "soft"):
            hardest[flag.id] = flag
    return sorted(hardest.values(), key=lambda flag: flag.severity != "hard")


def gradient_attacks(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.family == "gradient"]


def nondeterminism(records: Sequence[Record]) -> list[Flag]:
    """P1: one draw each was to select and to judge; for a deterministic defence the two are the same answer."""
    if not records or records[0].cell.stochastic:
        return []
    share, name = max(
        (fmean(s != c for s, c in zip(r.selected, r.correct, strict=True)), r.cell.attack.name)
        for r in records
    )
    if not share:
        return []
    return [
        Flag(
            "P1",
            "hard" if share >= 0.01 else "soft",
            f"judged twice on the same image, {share:.1%} of the answers differ ({name})",
        )
    ]


def zero_gradients(records: Sequence[Record]) -> list[Flag]:
    """D1 from what the attacks met: the share of zero gradients that examples which still stand must account for, whatever the fallen ones had.

    A clamped loss has no gradient left on a fallen example. With accuracy a and zero share z, at least (z - (1-a)) / a of the gradients of the
    standing examples were zero, since no attack spends more gradients on a fallen example than on a standing one. Hard only if the
    cross-entropy, which underflows where an answer is certain, cannot account for them: an attack that uses it for a share c of its
    gradients shows at least (z - c) / (1 - c) under its other losses, and one that uses nothing else shows nothing about them. Nor does an attack
    that makes the logits larger itself.
    """
    shares, beyond = [], []
    for record in gradient_attacks(records):
        if steepened(record):
            continue
        held, name = fmean(standing(record)), record.cell.attack.name
        if record.cost.backwards and held:
            share, ce = (
                (record.cost.zero / record.cost.backwards - (1 - held)) / held,
                cross_entropy_share(record),
            )
            shares.append((share, name))
            beyond += [((share - ce) / (1 - ce), name)] if ce < 1 else []
    if not shares or max(shares)[0] < 0.1:
        return []
    if beyond and min(beyond)[0] >= 0.1:
        least = min(beyond)[0]
        return [
            Flag(
                "D1",
                "hard",
                f"at least {least:.1%} of the gradients on standing examples were zero, under every gradient attack and loss",
            )
        ]
    share, name = max(shares)
    return [
        Flag(
            "D1",
            "soft",
            f"at least {share:.1%} of the gradients on standing examples were zero under {name}, not under every attack and loss",
        )
    ]


def cross_entropy_share(record: Record) -> float:
    """The share of an attack's gradients that are of the cross-entropy: by its `loss` knob, or half of it for AutoAttack's pair of losses."""
    attack = checks.inside(record)
    if record.effective_traits.ensemble:
        return 0.5
    runs = runs_by_loss({"loss": "margin", **attack.params})
    return sum(count for loss, count in runs if loss == "ce") / sum(count for _, count in runs)


def steepened(record: Record) -> bool:
    """Whether the attack multiplied the logits by more than 1, so that its cross-entropy underflows on any defence."""
    scale = curves.scale_of(checks.inside(record), record.effective_traits)
    return scale != "gap" and float(scale) > 1


def nonfinite_gradients(records: Sequence[Record]) -> list[Flag]:
    """D2: soft if there is any, hard from 1%."""
    shares = [
        (r.cost.nonfinite / r.cost.backwards, r.cell.attack.name)
        for r in gradient_attacks(records)
        if r.cost.backwards
    ]
    share, name = max(shares, default=(0.0, ""))
    return (
        [
            Flag(
                "D2",
                "hard" if share >= 0.01 else "soft",
                f"{share:.2g} of the gradients of {name} were NaN or infinite",
            )
        ]
        if share
        else []
    )


def one_step(records: Sequence[Record]) -> list[Flag]:
    """D5: FGSM against the PGD attacks."""
    iterated = [record for record in records if record.attack_traits.iterated]
    return outdone("D5", [r for r in records if r.attack_traits.single_step], iterated, "PGD")


def black_box(records: Sequence[Record]) -> list[Flag]:
    """D7 to D9: attacks without this defence's gradients against the union of those with them.

    On a deterministic defence AutoAttack holds a Square attack of its own; where only the union with it keeps up, the flag is soft.
    """
    found = []
    union = gradient_attacks(records)
    pure = [r for r in union if not r.effective_traits.ensemble or r.cell.stochastic]
    for code, families in (
        ("D7", ("score", "decision")),
        ("D8", ("transfer",)),
        ("D9", ("noise",)),
    ):
        attackers = [record for record in records if record.family in families]
        found += outdone(code, attackers, union, "gradient attack")
        if pure != union:
            found += [
                Flag(f.id, "soft", f.message)
                for f in outdone(code, attackers, pure, "gradient attack but AutoAttack")
                if f.severity == "hard"
            ]
    return found


def outdone(
    code: str, attackers: Sequence[Record], union: Sequence[Record], what: str
) -> list[Flag]:
    """The two-sample rule: does an attacker break examples that nothing in the union breaks, beyond the luck of the sample?"""
    if not attackers or not union:
        return []
    counts = [(sum(breaks_alone(attacker, union)), named(attacker)) for attacker in attackers]
    count, name = max(counts)
    n = len(attackers[0].ids)
    limit = lower_limit(count, n)
    if limit <= SOFT:
        return []
    return [
        Flag(
            code,
            "hard" if limit > HARD else "soft",
            f"{name} breaks {count} of {n} examples that no {what} breaks (surely {limit:.1%})",
        )
    ]


def named(record: Record) -> str:
    attack = record.cell.attack
    return (
        f"{attack.name} from {unpinned(str(attack.params['source']))}"
        if record.family == "transfer"
        else attack.name
    )


def breaks_alone(attacker: Record, union: Sequence[Record]) -> list[bool]:
    draws = attacker.cell.draws
    # Between two shares of `draws` answers, two standard errors of their difference at the most; one draw each is told apart as it is.
    clear = 2 * math.sqrt(0.5 / draws) if draws > 1 else 0.5
    least = [
        min(counts) / draws for counts in zip(*(other.correct for other in union), strict=True)
    ]
    shares = [count / draws for count in attacker.correct]
    return [
        share <= BREAKS_HALF and other - share > clear
        for share, other in zip(shares, least, strict=True)
    ]


def standing(record: Record) -> list[bool]:
    return [count > BREAKS_HALF * record.cell.draws for count in record.correct]


def unmoved(records: Sequence[Record]) -> list[Flag]:
    """D10: over 5% of the standing examples that no gradient attack moved. The harness keeps the clean image where no proposal had a
    larger margin, so this is also the share whose loss never rose."""
    # An attack that returns the clean image where it fails says nothing by an unmoved image.
    movers = [r for r in gradient_attacks(records) if not r.effective_traits.returns_clean]
    if not movers or not movers[0].cell.threat.eps:
        return []
    stands = [all(held) for held in zip(*(standing(record) for record in movers), strict=True)]
    still = [
        held and not any(moves)
        for held, *moves in zip(stands, *(record.distance for record in movers), strict=True)
    ]
    if sum(still) <= 0.05 * sum(stands):
        return []
    names = ", ".join(dict.fromkeys(record.cell.attack.name for record in movers))
    return [
        Flag(
            "D10",
            "hard",
            f"{sum(still)} of {sum(stands)} standing examples were not moved by {names}",
        )
    ]


def proposals(records: Sequence[Record]) -> list[Flag]:
    """V1 and V3: proposals that held NaN, or lay outside. Decision-based attacks minimise the distance, and may propose what is too far."""
    found = []
    share, name = max(
        ((fmean(s == -1 for s in r.strayed), r.cell.attack.name) for r in records),
        default=(0.0, ""),
    )
    if share:
        found.append(
            Flag(
                "V1",
                "hard" if share > INVALID else "soft",
                f"{name} proposed images that are not finite for {share:.1%} of the examples",
            )
        )
    bound = [record for record in records if record.family != "decision"]
    share, name = max(
        ((fmean(s > 0 for s in r.strayed), r.cell.attack.name) for r in bound), default=(0.0, "")
    )
    if share:
        found.append(
            Flag(
                "V3",
                "soft",
                f"{name} proposed images outside of ball or box for {share:.1%} of the examples",
            )
        )
    return found


def mixed_weights(records: Sequence[Record]) -> list[Flag]:
    """E1: one name, one file. Names that are pinned cannot mix; RobustBench's are not pinned."""
    used: dict[str, set[str]] = {}
    for record in records:
        for name, digest in record.env.weights:
            used.setdefault(name, set()).add(digest)
    mixed = sorted(name for name, digests in used.items() if len(digests) > 1)
    return (
        [Flag("E1", "hard", f"the cells used different weights for {', '.join(mixed)}")]
        if mixed
        else []
    )


def worst_against_clean(records: Sequence[Record], worst: WorstCase) -> list[Flag]:
    """W1 and W2: the clean image is among the candidates, so robust accuracy cannot lie above clean accuracy but by chance."""
    found = []
    for clean in (record for record in records if record.cell.attack.name == "none"):
        gains = [(r - c) / worst.draws for r, c in zip(worst.correct, clean.correct, strict=True)]
        error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        if fmean(gains) > 2 * error:
            found.append(
                Flag(
                    "W1",
                    "soft",
                    f"robust accuracy lies {fmean(gains):.1%} above clean accuracy (standard error {error:.1%})",
                )
            )
    found += fallen_though_certified(records, worst)
    if worst.gap > 0.05:
        fresh = worst.robust.mean
        found.append(
            Flag(
                "W2",
                "soft",
                f"the draws that chose the attack give {fresh - worst.gap:.3f}, fresh ones {fresh:.3f}: raise --select",
            )
        )
    return found


def fallen_though_certified(records: Sequence[Record], worst: WorstCase) -> list[Flag]:
    """W3, in l2, where certificates are: those of at most a share alpha of the examples may be wrong."""
    found = []
    for record in records:
        proof, threat = record.certificate, record.cell.threat
        if not proof or threat.norm != "l2":
            continue
        fallen = sum(
            sure and 2 * right < worst.draws
            for sure, right in zip(proof.beyond(float(threat.eps)), worst.correct, strict=True)
        )
        if lower_limit(fallen, len(worst.correct)) > dict(proof.rests_on).get("alpha", 0.0):
            found.append(
                Flag(
                    "W3",
                    "hard",
                    f"{fallen} of {len(worst.correct)} examples fall at eps {threat.eps} although certified beyond it",
                )
            )
    return found


def against_published(
    records: Sequence[Record], worst: WorstCase | None, published: PublishedResult
) -> list[Flag]:
    """G1 to G3: the same model must have the published clean accuracy, and robust accuracy near what the published attack leaves."""
    found = []
    for record in records:
        clean = estimate(record.correct, record.cell.draws)
        if (
            record.cell.attack.name == "none"
            and published.clean is not None
            and not clean.lo <= published.clean <= clean.hi
        ):
            found.append(
                Flag(
                    "G1",
                    "soft",
                    f"clean accuracy {clean.mean:.3f} [{clean.lo:.3f}, {clean.hi:.3f}], published {published.clean:.3f}",
                )
            )
    if worst and worst.robust.lo > published.robust:
        found.append(
            Flag(
                "G2",
                "soft",
                f"robust accuracy {worst.robust.mean:.3f}, published {published.robust:.3f} under {published.attack}",
            )
        )
    if worst and len(worst.chosen) >= ENOUGH:
        gap = round(
            worst.robust.mean - published.robust, 9
        )  # both are decimals: a gap of exactly one point is none
        if abs(gap) > APART:
            found.append(
                Flag(
                    "G3",
                    "soft",
                    f"robust accuracy lies {100 * gap:+.2f} points from the published {published.robust:.4f} at n {len(worst.chosen)}",
                )
            )
    return found
