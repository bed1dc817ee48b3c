"""D13: the gradient must agree with that of the smoothed margin. D14: attacks average enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bench.checks.evidence import CheckEvidence, Finding
from bench.checks.target import CheckTarget
from bench.questions.facts import Code, Knobs
from bench.questions.registry import check
from bench.results.record import Flag, Record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.judging.target import Target
    from bench.questions.spec import ThreatModel

PASSES = 0.8  # agreement with the smoothed margin's gradient
SOFT = 0.7  # below which it is hard
ALIKE = 0.05  # the least that two estimates of that gradient must have in common
NOISE = 0.1  # of the examples, on which the mean gradient may not be told from none

MOST = 4  # times as many directions, where two estimates have less in common than `ALIKE`
TRIES = 4  # points near an image, of which one where the defence is right is taken
SURROGATES = 16  # that the forecast of the calls counts on

CODE = Code(
    "D13",
    "the gradient must agree with that of the smoothed margin",
    hard=f"below {SOFT}, and no declared surrogate reaches {PASSES}",
    soft=f"below {PASSES}",
    looks="check `signal`",
)


def audit_gradient_quality(evidence: CheckEvidence) -> list[Finding]:
    """D13, and of a random gradient D14."""
    doubling_found_more = any(flag.id == "D14" for flag in evidence.flags)
    findings = []
    for answer in evidence.answers:
        findings.append(judge_gradient(answer))
        if "E.5" in dict(answer.checks):
            findings.append(judge_draws(answer, evidence.row.records, doubling_found_more))
    return findings


def judge_gradient(answer: Record) -> Finding:
    """D13: hard below 0.7, unless a declared surrogate shows the way around.

    Nothing is said where the smoothed gradient itself could not be had.
    """
    figures = dict(answer.checks)
    if figures["cos(g1,g2)"] < ALIKE:
        note = (
            "D13: inconclusive, two estimates of the smoothed margin's gradient have a cosine of "
            f"{figures['cos(g1,g2)']:.2f}"
        )
        return Finding(notes=(note,))
    agreement = figures["D13"]
    message = f"the gradient agrees to {agreement:.2f} with that of the smoothed margin"
    surrogates = {
        code.removeprefix("D13:"): value
        for code, value in figures.items()
        if code.startswith("D13:")
    }
    way_around = False
    if surrogates:
        best = max(surrogates, key=lambda name: (surrogates[name], name))
        message += f", and best of the surrogates that of {best}, to {surrogates[best]:.2f}"
        way_around = surrogates[best] >= PASSES
    if agreement >= PASSES:
        return Finding(notes=(f"D13: {message}",))
    severity = "hard" if agreement < SOFT and not way_around else "soft"
    return Finding(flags=(Flag("D13", severity, message),))


def judge_draws(answer: Record, row: Sequence[Record], doubling_found_more: bool) -> Finding:
    """D14's forecast: whether the row's attacks average enough draws.

    It is only noted where twice the draws were tried and did find more.
    """
    figures = dict(answer.checks)
    need = figures["E.5"]  # -1: no number of draws is enough
    noise = figures["U<=0"]
    draws = "any number of" if need < 0 else f"{need:.2g}"
    message = (
        f"a mean gradient takes {draws} draws for a cosine of 1/2, and "
        f"{answer.cell.attack.params['draws']} of them show none on {noise:.0%} of the examples"
    )
    averaged = [
        int(record.cell.attack.params["eot"])
        for record in row
        if record.attack_traits.averages_draws
    ]
    used = max(averaged, default=0)
    enough = 0 <= need <= used and noise <= NOISE
    if doubling_found_more or not used or enough:
        return Finding(notes=(f"D14: {message}",))
    return Finding(flags=(Flag("D14", "soft", f"{message}; the attacks average {used}"),))


def signal_calls(knobs: Knobs, stochastic: bool) -> float:
    """With as many surrogates as any defence declares."""
    differences = 4 * MOST * int(knobs["directions"])
    gradients = (SURROGATES + 1) * 3 * (int(knobs["draws"]) + 2)
    return differences + TRIES + gradients


@check(
    "signal",
    norms={"linf"},
    together=True,
    calls=signal_calls,
    audit_row=audit_gradient_quality,
    codes=(CODE,),
)
@contextlib.contextmanager
def signal(
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
    """D13, a check and no attack: what the gradients of the defence and its surrogates are worth.

    It is asked near the first `examples` images. The gradient of the margin is compared with that
    of the smoothed margin. Two estimates from differences give the latter, each along `directions`
    Gaussian directions of standard deviation eps/6. Where the two have little in common, they take
    up to four times as many. Where a gradient is random, `draws` single ones are averaged, and say
    how many it takes (D14). Athalye et al. 2018, arXiv:1802.00420, on gradients that are there and
    lead nowhere.
    """
    from bench.checks.smoothed_gradient import measure_gradient

    def measure(target: Target, survives: Tensor) -> dict[str, float]:
        return measure_gradient(target, x, y, float(threat.eps), directions, draws)

    yield CheckTarget(defence, y, classes, stochastic, measure=measure)
