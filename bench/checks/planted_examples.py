"""D17: an attack must find adversarial examples that were planted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from bench.checks.evidence import CheckEvidence, Finding, keep_decisive, running_attack
from bench.checks.target import CheckTarget
from bench.questions.facts import Code, Knobs, QuestionFacts
from bench.questions.registry import Entry, check, inner_calls
from bench.questions.spec import Spec
from bench.results.record import Flag, Record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.questions.spec import ThreatModel

FOUND = 0.95  # of the planted examples, that a good attack finds
CHANCE = 0.15  # of the planted examples, that random points find at most
VALID = 0.9  # of all examples, in which one could be planted at least
BEATEN = 0.1  # of the planted examples, that the attack finds more of on the bare classifier

CLOSE = 0.999  # how far the boundary is moved from the middle towards the planted example
# The rest is for a stochastic defence. How far from the mean of the inner points the boundary goes:
LADDER = (CLOSE, 0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
INNER_DRAWS = 4
CORNER_DRAWS = 16
JUDGED_DRAWS = 11  # of which a planted example must win more than `SURE`, and a find the majority
SURE = 0.8
RANDOM_POINTS = 200

CODE = Code(
    "D17",
    "an attack must find adversarial examples that were planted",
    hard=f"under {FOUND:.0%}, and over {100 * BEATEN:.0f} points less than on the bare classifier",
    soft=f"under {FOUND:.0%}",
    looks="check `planted`",
)


def audit_planted(evidence: CheckEvidence) -> list[Finding]:
    """D17: how many planted examples each attack finds."""
    attacks_met = {without_loss(record.cell.attack) for record in evidence.row.records}
    findings = []
    for answer in evidence.answers:
        if answer.planted:
            was_met = without_loss(running_attack(answer)) in attacks_met
            findings.append(judge_attack(answer, evidence.row.controls, was_met))
    return keep_decisive(findings)


def judge_attack(answer: Record, everywhere: Iterable[Record], was_met: bool) -> Finding:
    """What the attack finds, and what it finds where nothing stands before the classifier."""
    assert answer.planted
    _, share, chance = answer.planted.rates
    message = (
        f"{running_attack(answer).name} finds {share:.1%} of {sum(answer.planted.valid)} planted "
        f"examples, random points {chance:.1%}"
    )
    if not is_believable(answer):
        total = len(answer.ids)
        note = f"D17: {message}, of {total} that were to be planted: this says nothing"
        return Finding(notes=(note,), was_met=was_met)
    if share >= FOUND:
        return Finding(notes=(f"D17: {message}",), was_met=was_met, passed=True)
    controls = [
        control.planted.rates[1]
        for control in everywhere
        if control.planted and is_control(control, answer) and is_believable(control)
    ]
    severity = "soft"
    if controls:
        best = max(controls)
        message += f", and {best:.1%} on the bare classifier"
        if round(best - share, 9) > BEATEN:
            severity = "hard"
    return Finding(flags=(Flag("D17", severity, message),), was_met=was_met)


def is_believable(answer: Record) -> bool:
    """Whether enough examples were planted, and so that chance does not find them."""
    if not answer.planted:
        return False
    valid, _, chance = answer.planted.rates
    return valid >= VALID and chance <= CHANCE


def is_control(control: Record, answer: Record) -> bool:
    """Whether `control` is the same check on the bare classifier of the other one."""
    classifier = control.cell.defence.params.get("classifier")
    return (
        control is not answer
        and control.defence_traits.bare
        and classifier is not None
        and classifier == answer.cell.defence.params.get("classifier")
        and control.cell.attack == answer.cell.attack
        and control.cell.dataset == answer.cell.dataset
        and control.cell.threat == answer.cell.threat
        and control.env.data == answer.env.data
    )


def without_loss(attack: Spec) -> tuple[str, frozenset[tuple[str, str]]]:
    """What must be the same for one attack to speak for another: all but the loss.

    Two classes limit the losses. Values are compared as text, as they stand in a check's knob.
    """
    as_text = Spec.parse(str(attack))
    knobs = [(k, str(value)) for k, value in as_text.items if k not in ("loss", "targets")]
    return as_text.name, frozenset(knobs)


def refuse_many_classes(inner: Entry[QuestionFacts], knobs: Knobs) -> str:
    """Why the inner attack cannot be run on a planted model, which has two classes."""
    if inner.facts.least_classes > 2:
        return (
            f"attack={inner.name} needs three classes, and a planted model has two; "
            "give apgd, or pgd"
        )
    losses = {"dlr", "targeted"} & set(str(knobs.get("loss", "")).split("+"))
    if losses:
        return (
            f"loss={min(losses)} needs three classes, and a planted model has two; give ce, margin "
            "or ce+margin"
        )
    return ""


def planted_calls(knobs: Knobs, stochastic: bool) -> float:
    points = int(knobs["points"])
    corners = int(knobs["boundary"])
    if stochastic:
        rung = 1 + (1 + corners) * JUDGED_DRAWS
        looks = points * INNER_DRAWS + corners * CORNER_DRAWS + len(LADDER) * rung + JUDGED_DRAWS
    else:
        looks = points + 2 * corners + 3
    return inner_calls(knobs, stochastic) + looks + RANDOM_POINTS + 1


@check(
    "planted",
    norms={"linf"},
    accepts=refuse_many_classes,
    calls=planted_calls,
    audit_row=audit_planted,
    codes=(CODE,),
)
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
    """D17, a check and no attack: the share of planted adversarial examples that `attack` finds.

    It is asked on the first `examples` images. For each image the last full layer of the defence is
    replaced by one of two classes. That layer separates `points` points in the ball from `boundary`
    corners of the ball, so that there is something to find. The attack is run on the defence with
    that layer, and a good attack finds nearly all. For attacks that two classes suffice for.
    Examples are attacked one at a time, for each has a model of its own. Zimmermann et al. 2022,
    arXiv:2206.13991.
    """
    import torch

    from bench.checks.planted_head import PlantOptions, plant, planted_head

    options = PlantOptions(float(threat.eps), classes, stochastic, points, boundary)
    head = plant(defence, x, options)
    if head is None:
        yield None
        return
    with planted_head(head):
        yield CheckTarget(defence, torch.zeros_like(y), 2, stochastic, head.found_by_chance)
