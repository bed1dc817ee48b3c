"""Checks that need an attack of their own: what they run it against is not the defence, so their answers are in no robust accuracy.

A check is registered by `@check`. It is a context manager `(defence, x, y, threat, classes, stochastic, *, knobs)` for
one example, which gives the `Trial` that the attack named in the knob `attack` is run against and judged on, or None where nothing is to attack.
A check without that knob is given all of its examples at once, and attacks nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.checks.failure_indicators import DRAWS, POINTS, Traced, failures
from bench.checks.gradient_quality import MOST, signal
from bench.checks.gradient_quality import TRIES as LOOKS
from bench.checks.known_randomness import Frozen
from bench.checks.planted_examples import BESIDE, JUDGED, LADDER, REPEATS, TRIES, planting
from bench.checks.target import CheckTarget
from bench.questions.facts import Knobs, QuestionFacts
from bench.questions.registry import Entry, check, find_question, inner_attack
from bench.questions.spec import Spec, ThreatModel

SURROGATES = 16  # that are counted on


def passes(name: str, knobs: Mapping[str, Any], stochastic: bool) -> float:
    """The calls per example of the attack inside of a check or an attack; draws of what is not stochastic are all the same, and asked for once."""
    inside = inner_attack(Spec.of(name, knobs))
    assert inside
    calls = find_question(inside.name).facts.calls
    told = inside.params | ({"eot": 1} if "eot" in inside.params and not stochastic else {})
    return float(calls(told, stochastic)) if calls else 0.0


def planted_passes(knobs: Mapping[str, Any], stochastic: bool) -> float:
    points, corners = int(knobs["points"]), int(knobs["boundary"])
    looks = (
        points * REPEATS + corners * BESIDE + len(LADDER) * (1 + (1 + corners) * JUDGED) + JUDGED
        if stochastic
        else points + 2 * corners + 3
    )
    return passes("planted", knobs, stochastic) + looks + TRIES + 1


def indicators_passes(knobs: Mapping[str, Any], stochastic: bool) -> float:
    return passes("indicators", knobs, stochastic) + (POINTS + 2) * (DRAWS if stochastic else 1)


def signal_passes(knobs: Mapping[str, Any], stochastic: bool) -> float:
    """With as many surrogates as any defence declares."""
    return (
        4 * MOST * int(knobs["directions"])
        + LOOKS
        + (SURROGATES + 1) * 3 * (int(knobs["draws"]) + 2)
    )


def has_two_classes(inner: Entry[QuestionFacts], knobs: Knobs) -> str:
    """Why the inner attack cannot be run on a planted model, which has two classes."""
    if inner.facts.least_classes > 2:
        return f"attack={inner.name} needs three classes, and a planted model has two; give apgd, or pgd"
    losses = {"dlr", "targeted"} & set(str(knobs.get("loss", "")).split("+"))
    if losses:
        return (
            f"loss={min(losses)} needs three classes, and a planted model has two; give ce, margin "
            "or ce+margin"
        )
    return ""


def traced(inner: Entry[QuestionFacts], knobs: Knobs) -> str:
    """Why the steps of the inner attack cannot be followed."""
    if inner.facts.traced:
        return ""
    return (
        f"attack={inner.name} takes no steps that could be followed; "
        "give pgd, pgd-eot, apgd or apgd-eot"
    )


@check(
    "frozen",
    norms={"linf", "l2", "l1", "l0"},
    stochastic_only=True,
    calls=lambda knobs, stochastic: passes("frozen", knobs, False),
)
@contextlib.contextmanager
def frozen(
    defence: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    classes: int,
    stochastic: bool,
    *,
    attack: str = "pgd-eot",
) -> Iterator[CheckTarget]:
    """D15, a check and no attack: the attack `attack` on one draw of the defence's randomness for each example, judged on that very draw.

    Who knows the randomness must do at least as well as who does not; what of the robust accuracy is gone then was owed to randomness. All draws of
    a frozen defence are the same, so `eot` changes nothing. Examples are attacked one at a time. Carlini et al. 2019, arXiv:1902.06705; Liu et al.
    2024, arXiv:2404.14309.
    """
    yield CheckTarget(Frozen(defence, int(torch.randint(2**62, ()))), y, classes, stochastic=False)


@check("planted", norms={"linf"}, accepts=has_two_classes, calls=planted_passes)
@contextlib.contextmanager
def planted(
    defence: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    classes: int,
    stochastic: bool,
    *,
    attack: str = "pgd",
    examples: int = 64,
    points: int = 999,
    boundary: int = 1,
) -> Iterator[CheckTarget | None]:
    """D17, a check and no attack: the share of planted adversarial examples that the attack `attack` finds, in the first `examples` images.

    For each image the last full layer of the defence is replaced by one of two classes that separates `points` points in the ball from `boundary`
    corners of it, so that there is something to find, and the attack is run on the defence with that head. A good attack finds nearly all. For
    attacks that two classes suffice for. Examples are attacked one at a time, for each has a model of its own. Zimmermann et al. 2022,
    arXiv:2206.13991.
    """
    with planting(defence, x, float(threat.eps), classes, stochastic, points, boundary) as random:
        yield (
            None
            if random is None
            else CheckTarget(defence, torch.zeros_like(y), 2, stochastic, random)
        )


@check("indicators", norms={"linf", "l2"}, together=True, accepts=traced, calls=indicators_passes)
@contextlib.contextmanager
def indicators(
    defence: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    classes: int,
    stochastic: bool,
    *,
    attack: str = "pgd",
    examples: int = 32,
) -> Iterator[CheckTarget]:
    """D11, a check and no attack: why the attack `attack` failed where it did, by its own trace, on the first `examples` images.

    The attack, one of pgd, pgd-eot, apgd and apgd-eot, is run on the defence as ever, one example at a time, and what it meets is written down. Of
    the examples that survive are counted those whose gradient was zero or not finite at every step, whose margin changes by over a tenth under
    noise of 4/255, of which a wrong image was met and thrown away, and whose margin still rose in the last ten steps. Pintor et al. 2022,
    arXiv:2106.09947.
    """
    inside = inner_attack(Spec.of("indicators", {"attack": attack}))
    assert inside
    traced = Traced(defence, x, y, threat.norm, float(threat.eps))
    yield CheckTarget(traced, y, classes, stochastic, measure=partial(failures, traced, inside))


@check("signal", norms={"linf"}, together=True, calls=signal_passes)
@contextlib.contextmanager
def signalled(
    defence: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    classes: int,
    stochastic: bool,
    *,
    directions: int = 400,
    draws: int = 16,
    examples: int = 16,
) -> Iterator[CheckTarget]:
    """D13, a check and no attack: what the gradients of the defence and of its surrogates are worth, near the first `examples` images.

    The gradient of the margin is compared with that of the smoothed margin, which two estimates from differences along `directions` Gaussian
    directions of standard deviation eps/6 each give (up to four times as many where these two have little in common). Where a gradient is random,
    `draws` single ones are averaged, and say how many it takes (D14). Athalye et al. 2018, arXiv:1802.00420, on gradients
    that are there and lead nowhere.
    """
    yield CheckTarget(
        defence,
        y,
        classes,
        stochastic,
        measure=lambda model, stands: signal(model, x, y, float(threat.eps), directions, draws),
    )
