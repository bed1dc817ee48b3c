"""D11, D13 to D15 and D17: what the records of checks, which are no attacks on the defence, say of the attacks on it. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from bench.questions.spec import Spec
from bench.results.record import Flag, Record
from bench.results.worst_case import WorstCase
from bench.soundness.audits import figures
from bench.soundness.audits.curves import paired

FOUND, CHANCE, VALID = (
    0.95,
    0.15,
    0.9,
)  # of planted examples: found at least; by random points at most; of all examples, planted at least
BEATEN = 0.1  # by which the same attack finds more where nothing stands before the classifier

MEANING = {
    **figures.MEANING,
    "D15": "an attacker who knows the randomness must do at least as well",
    "D17": "an attack must find adversarial examples that were planted",
}


def controls(record: Record, others: Iterable[Record]) -> list[Record]:
    """Of the records `others`, those of the same check on the bare classifier of this one."""

    def asked(one: Record) -> tuple[object, ...]:
        return (
            one.cell.attack,
            one.cell.dataset,
            one.cell.threat,
            one.env.data,
            one.cell.defence.params.get("classifier"),
        )

    return [
        one
        for one in others
        if one.defence_traits.bare and one is not record and asked(one) == asked(record)
    ]


def audit(
    checks: Sequence[Record],
    worst: WorstCase | None,
    row: Sequence[Record],
    others: Iterable[Record],
) -> tuple[list[Flag], list[str]]:
    """The flags that the checks of a row raise, and in words what they found.

    Attacks that the row did not meet do not speak for its number, nor against it; and where one of them finds what was planted, it does not count
    that others do not. `row` are the row's records, `others` those of all rows; controls are among them.
    """
    others = list(others)
    flags, told = known(checks, worst, row)
    for doubts, says in measured(checks, row):
        flags += doubts
        told += says
    held = [(one, *sought(one, controls(one, others))) for one in checks if one.planted]
    asked = {but_for_the_loss(one.cell.attack) for one in row}
    ours = [but_for_the_loss(inside(one)) in asked for one, _, _ in held]
    good = any(
        believable(one) and mine and not doubts
        for (one, doubts, _), mine in zip(held, ours, strict=True)
    )
    for (_, doubts, says), mine in zip(held, ours, strict=True):
        flags += doubts if mine and not good else []
        told += [
            *says,
            *(
                f"{flag.id}: {flag.message}{'' if mine else ', and the row did not meet it'}"
                for flag in doubts
                if good or not mine
            ),
        ]
    return flags, told


def measured(
    checks: Sequence[Record], row: Sequence[Record]
) -> Iterator[tuple[list[Flag], list[str]]]:
    """What the figures of checks say: D11, D13, and D14 as the draws foretell it.

    D11 is of the very attacks that the row met; where one of them shows no failure, or leaves too few to ask why, others do not count.
    """
    for one in checks:
        if one.cell.attack.name == "signal":
            yield figures.gradient(one)
            yield figures.draws(one, row)
    asked = {str(one.cell.attack) for one in row}
    traced = [
        (one, *figures.failing(one, inside(one).name))
        for one in checks
        if one.cell.attack.name == "indicators"
    ]
    met = [str(inside(one)) in asked for one, _, _ in traced]
    good = any(mine and not doubts for (_, doubts, _), mine in zip(traced, met, strict=True))
    for (_, doubts, says), mine in zip(traced, met, strict=True):
        rest = [
            f"{flag.id}: {flag.message}{'' if mine else ', and the row did not meet it'}"
            for flag in doubts
            if good or not mine
        ]
        yield (doubts if mine and not good else []), [*says, *rest]


def inside(record: Record) -> Spec:
    """The attack inside of a check or another attack, with all of its knobs; the record's own where that holds none."""
    attack = record.cell.attack
    return Spec.parse(str(attack.params["attack"])) if "attack" in attack.params else attack


def but_for_the_loss(attack: Spec) -> tuple[str, frozenset[tuple[str, str]]]:
    """What must be the same for one attack to speak for another: all but the loss, which two classes limit."""
    told = Spec.parse(str(attack))  # values as text, as those of the attack inside of a check are
    return told.name, frozenset(
        (knob, str(value)) for knob, value in told.items if knob not in ("loss", "targets")
    )


def known(
    checks: Sequence[Record], worst: WorstCase | None, row: Sequence[Record]
) -> tuple[list[Flag], list[str]]:
    """D15: what stands against an attacker who knows the randomness, on the same examples.

    Beside the same attack where it does not know it, if the row met that, for a short attack that stays above the row's strongest says nothing of
    the randomness; else beside the robust accuracy.
    """
    held = [
        one
        for one in checks
        if one.cell.attack.name == "frozen" and worst and len(one.ids) == len(worst.chosen)
    ]
    if not held or worst is None:
        return [], []
    least = min(held, key=lambda one: one.accuracy)
    stands = [count / least.cell.draws for count in least.correct]
    same = next(
        (one for one in row if str(one.cell.attack) == str(inside(least)) and one.ids == least.ids),
        None,
    )
    unknown = [
        count / (same.cell.draws if same else worst.draws)
        for count in (same.correct if same else worst.correct)
    ]
    gain, error = paired(stands, unknown)
    says = f"{fmean(stands):.3f} stand where {inside(least).name} knows the randomness, "
    says += (
        f"{fmean(unknown):.3f} where it does not"
        if same
        else f"robust accuracy is {fmean(unknown):.3f}"
    )
    if gain > 2 * error:
        return [
            Flag(
                "D15",
                "hard",
                f"{says}: the attack on known randomness is the weaker one, by {gain:.3f}",
            )
        ], []
    return [], [f"D15: {says}; owed to randomness: {round(-gain, 3) + 0.0:+.3f}"]


def sought(record: Record, compared: Sequence[Record]) -> tuple[list[Flag], list[str]]:
    """D17: how many planted examples the attack finds, beside what it finds where nothing stands before the classifier."""
    assert record.planted
    _, found, chance = record.planted.rates
    says = f"{inside(record).name} finds {found:.1%} of {sum(record.planted.valid)} planted examples, random points {chance:.1%}"
    if not believable(record):
        return [], [f"D17: {says}, of {len(record.ids)} that were to be planted: this says nothing"]
    if found >= FOUND:
        return [], [f"D17: {says}"]
    best = max(
        (one.planted.rates[1] for one in compared if one.planted and believable(one)), default=None
    )
    bare = "" if best is None else f", and {best:.1%} on the bare classifier"
    return [
        Flag(
            "D17",
            "hard" if best is not None and round(best - found, 9) > BEATEN else "soft",
            says + bare,
        )
    ], []


def believable(record: Record) -> bool:
    """Whether enough examples were planted, and so that chance does not find them."""
    valid, _, chance = record.planted.rates if record.planted else (0.0, 0.0, 1.0)
    return valid >= VALID and chance <= CHANCE
