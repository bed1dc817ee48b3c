"""D11, D13 and D14's predictor: what the figures of the checks `indicators` and `signal` say. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from bench.results.record import Flag, Record
from bench.soundness.audits.curves import more_effort

FEW, OFTEN = (
    5,
    0.1,
)  # surviving examples below which nothing is said; the share of them on which an indicator may fire
PASSES, SOFTLY = 0.8, 0.7  # agreement with the smoothed margin's gradient
ALIKE = 0.05  # the least that two estimates of that gradient must have in common
NOISE = 0.1  # of the examples, those on which the mean gradient may not be told from none

MEANING = {
    "D11": "an attack must not have failed for a reason that its own trace shows",
    "D13": "the gradient must agree with that of the smoothed margin",
}
FIRES = {
    "unavailable": "no gradient",
    "unstable": "predictions unstable under small noise",
    "silent": "a success thrown away",
    "incomplete": "still rising at the end",
}


def failing(record: Record, attack: str) -> tuple[list[Flag], list[str]]:
    """D11: on how many of the examples that `attack` leaves each indicator fires."""
    found = dict(record.checks)
    left = int(found.get("D11:survive", 0))
    if left < FEW:
        return [], [
            f"D11: {attack} leaves {left} of {len(record.ids)} examples: too few to say why"
        ]
    counts = {name: int(found[f"D11:{name}"]) for name in FIRES}
    often = {name: count for name, count in counts.items() if count > OFTEN * left}
    fires = ", ".join(
        f"{FIRES[name]} on {count}" for name, count in (often or counts).items() if count
    )
    says = (
        f"of {left} examples that {attack} leaves, {fires or 'no indicator of its failure fires'}"
    )
    return ([Flag("D11", "soft", says)], []) if often else ([], [f"D11: {says}"])


def gradient(record: Record) -> tuple[list[Flag], list[str]]:
    """D13: hard below 0.7, unless a declared surrogate shows the way round; nothing where the smoothed gradient itself could not be had."""
    found = dict(record.checks)
    if found["cos(g1,g2)"] < ALIKE:
        return [], [
            f"D13: inconclusive, two estimates of the smoothed margin's gradient have a cosine of {found['cos(g1,g2)']:.2f}"
        ]
    declared = {
        code.partition(":")[2]: value for code, value in found.items() if code.startswith("D13:")
    }
    best = max(declared, key=lambda name: (declared[name], name), default="")
    says = f"the gradient agrees to {found['D13']:.2f} with that of the smoothed margin"
    says += f", and best of the surrogates that of {best}, to {declared[best]:.2f}" if best else ""
    if found["D13"] >= PASSES:
        return [], [f"D13: {says}"]
    hard = found["D13"] < SOFTLY and not (best and declared[best] >= PASSES)
    return [Flag("D13", "hard" if hard else "soft", says)], []


def draws(record: Record, row: Sequence[Record]) -> tuple[list[Flag], list[str]]:
    """D14's predictor: whether the row's attacks average enough draws. Only told where twice the draws were tried and did find more."""
    found = dict(record.checks)
    if "E.5" not in found:
        return [], []
    need, noise = found["E.5"], found["U<=0"]
    says = f"a mean gradient takes {'any number of' if need < 0 else f'{need:.2g}'} draws for a cosine of 1/2"
    says += f", and {record.cell.attack.params['draws']} of them show none on {noise:.0%} of the examples"
    used = max(
        (int(one.cell.attack.params["eot"]) for one in row if one.attack_traits.averages_draws),
        default=0,
    )
    doubled = any(flag.id == "D14" for flag in more_effort(row))
    if doubled or not used or (0 <= need <= used and noise <= NOISE):
        return [], [f"D14: {says}"]
    return [Flag("D14", "soft", f"{says}; the attacks average {used}")], []
