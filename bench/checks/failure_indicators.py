"""D11: an attack must not have failed for a reason that its own trace shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.checks.evidence import CheckEvidence, Finding, keep_decisive, running_attack
from bench.checks.target import CheckTarget
from bench.questions.facts import Code, Knobs, QuestionFacts
from bench.questions.registry import Entry, check, inner_attack, inner_calls
from bench.questions.spec import Spec
from bench.results.record import Flag, Record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.judging.target import Target
    from bench.questions.spec import ThreatModel

FEWEST = 5  # surviving examples below which nothing is said
OFTEN = 0.1  # of the surviving examples, on which an indicator may fire

RADIUS = 8 / 255  # the points of `unstable` lie within half of it in every pixel
POINTS = 100
UNSTABLE = 0.1  # relative change of the margin
LAST = 10  # steps
RISES = 0.05  # what the best margin so far may gain in the last steps, of all that it gained
DRAWS = 16  # of a stochastic defence, whose mean is compared, or whose majority judges

INDICATORS = {
    "unavailable": "no gradient",
    "unstable": "predictions unstable under small noise",
    "silent": "a success thrown away",
    "incomplete": "still rising at the end",
}

CODE = Code(
    "D11",
    "an attack must not have failed for a reason that its own trace shows",
    soft=f"an indicator fires on over {OFTEN:.0%} of the examples that survive, of {FEWEST} at "
    "least",
    looks="check `indicators`",
)


def audit_indicators(evidence: CheckEvidence) -> list[Finding]:
    """D11: of the very attacks that the row met.

    Where one of them shows no failure, or leaves too few examples to ask why, others do not count.
    """
    attacks_met = {str(record.cell.attack) for record in evidence.row.records}
    findings = []
    for answer in evidence.answers:
        was_met = str(running_attack(answer)) in attacks_met
        findings.append(explain_failure(answer, was_met))
    return keep_decisive(findings)


def explain_failure(answer: Record, was_met: bool) -> Finding:
    """On how many of the examples that the attack leaves each indicator fires."""
    attack = running_attack(answer).name
    figures = dict(answer.checks)
    surviving = int(figures.get("D11:survive", 0))
    if surviving < FEWEST:
        note = f"D11: {attack} leaves {surviving} of {len(answer.ids)} examples: too few to say why"
        return Finding(notes=(note,), was_met=was_met, passed=True)
    counts = {name: int(figures[f"D11:{name}"]) for name in INDICATORS}
    often = {name: count for name, count in counts.items() if count > OFTEN * surviving}
    fires = [f"{INDICATORS[name]} on {count}" for name, count in (often or counts).items() if count]
    message = (
        f"of {surviving} examples that {attack} leaves, "
        f"{', '.join(fires) or 'no indicator of its failure fires'}"
    )
    if often:
        return Finding(flags=(Flag("D11", "soft", message),), was_met=was_met)
    return Finding(notes=(f"D11: {message}",), was_met=was_met, passed=True)


def refuse_untraced(inner: Entry[QuestionFacts], knobs: Knobs) -> str:
    """Why the steps of the inner attack cannot be followed."""
    if inner.facts.traced:
        return ""
    return (
        f"attack={inner.name} takes no steps that could be followed; "
        "give pgd, pgd-eot, apgd or apgd-eot"
    )


def indicators_calls(knobs: Knobs, stochastic: bool) -> float:
    draws = DRAWS if stochastic else 1
    return inner_calls(knobs, stochastic) + (POINTS + 2) * draws


@check(
    "indicators",
    norms={"linf", "l2"},
    together=True,
    accepts=refuse_untraced,
    calls=indicators_calls,
    audit_row=audit_indicators,
    codes=(CODE,),
)
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
    """D11, a check and no attack: why the attack `attack` failed where it did, by its own trace.

    It is asked on the first `examples` images. The attack is one of pgd, pgd-eot, apgd and
    apgd-eot. It is run on the defence as ever, one example at a time, and what it meets is written
    down. Four indicators are counted on the examples that survive: the gradient was zero or not
    finite at every step; the margin changes by over a tenth under noise of 4/255; a wrong image was
    met and thrown away; the margin still rose in the last ten steps. Pintor et al. 2022,
    arXiv:2106.09947.
    """
    from bench.checks.attack_trace import Traced, failures

    inner = inner_attack(Spec.of("indicators", {"attack": attack}))
    assert inner
    traced = Traced(defence, x, y, threat.norm, float(threat.eps))

    def measure(target: Target, survives: Tensor) -> dict[str, float]:
        return failures(traced, inner, target, survives)

    yield CheckTarget(traced, y, classes, stochastic, measure=measure)
