"""D15: an attacker who knows the randomness of a defence must do at least as well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING

from bench.checks.evidence import CheckEvidence, Finding, running_attack
from bench.checks.target import CheckTarget
from bench.questions.facts import Code
from bench.questions.registry import check, inner_calls
from bench.results.record import Flag, Record
from bench.results.statistics import paired_difference
from bench.results.worst_case import WorstCase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.questions.spec import ThreatModel

STANDARD_ERRORS = 2  # of the paired difference

CODE = Code(
    "D15",
    "an attacker who knows the randomness must do at least as well",
    hard="the same attack leaves more when it knows it (where the row did not meet that: more than "
    f"the robust accuracy), beyond {STANDARD_ERRORS} paired standard errors: the attack is at "
    "fault",
    looks="check `frozen`",
)


def audit_known_randomness(evidence: CheckEvidence) -> list[Finding]:
    """D15: what stands against an attacker who knows the randomness, on the same examples.

    It is compared with the same attack where that does not know the randomness, if the row met
    that. A short attack that stays above the row's strongest says nothing of the randomness. Else
    it is compared with the robust accuracy.
    """
    worst = evidence.row.worst
    if worst is None:
        return []
    answers = [record for record in evidence.answers if len(record.ids) == len(worst.chosen)]
    if not answers:
        return []
    known = min(answers, key=lambda record: record.accuracy)
    same = same_attack(known, evidence.row.records)
    known_shares = [count / known.cell.draws for count in known.correct]
    unknown_shares = unknown_randomness_shares(same, worst)
    gain, error = paired_difference(known_shares, unknown_shares)
    message = (
        f"{fmean(known_shares):.3f} stand where {running_attack(known).name} knows the randomness, "
    )
    if same:
        message += f"{fmean(unknown_shares):.3f} where it does not"
    else:
        message += f"robust accuracy is {fmean(unknown_shares):.3f}"
    if gain > STANDARD_ERRORS * error:
        message += f": the attack on known randomness is the weaker one, by {gain:.3f}"
        return [Finding(flags=(Flag("D15", "hard", message),))]
    owed = round(-gain, 3) + 0.0  # which turns -0.0 into 0.0
    return [Finding(notes=(f"D15: {message}; owed to randomness: {owed:+.3f}",))]


def same_attack(known: Record, row: tuple[Record, ...]) -> Record | None:
    """The row's answer to the attack inside the check, on the same examples."""
    name = str(running_attack(known))
    for record in row:
        if str(record.cell.attack) == name and record.ids == known.ids:
            return record
    return None


def unknown_randomness_shares(same: Record | None, worst: WorstCase) -> list[float]:
    """Per example, what the same attack leaves, else what the worst case leaves."""
    if same:
        return [count / same.cell.draws for count in same.correct]
    return [count / worst.draws for count in worst.correct]


@check(
    "frozen",
    norms={"linf", "l2", "l1", "l0"},
    stochastic_only=True,
    calls=lambda knobs, stochastic: inner_calls(knobs, False),
    audit_row=audit_known_randomness,
    codes=(CODE,),
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
    """D15, a check and no attack: the attack `attack` on one known draw of the randomness.

    Each example has a draw of its own, and the attack is judged on that very draw. Who knows the
    randomness must do at least as well as who does not. What is then gone of the robust accuracy
    was owed to randomness. All draws of a frozen defence are the same, so `eot` changes nothing.
    Examples are attacked one at a time. Carlini et al. 2019, arXiv:1902.06705; Liu et al. 2024,
    arXiv:2404.14309.
    """
    import torch

    from bench.checks.frozen_defence import Frozen

    seed = int(torch.randint(2**62, ()))
    yield CheckTarget(Frozen(defence, seed), y, classes, stochastic=False)
