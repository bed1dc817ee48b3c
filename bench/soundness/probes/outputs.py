"""Probes of what a defence answers with, and of what it sees of its images: probabilities, a few values, or steps where there should be slopes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.judging.randomness import seeded
from bench.judging.target import abstained
from bench.results.record import Flag

FEW = 0.1  # P12: distinct values of a logit, relative to the number of outputs: 100 in 1000
TIED = 0.01  # P12: of the outputs, whose two largest logits are the same
NUDGE, STUCK = (
    1e-4,
    0.5,
)  # P13: a change of every pixel, and the share of images whose answer it leaves as it is to the last bit


@torch.no_grad()
def outputs(defence: nn.Module, x: Tensor, eps: float, surrogate: bool) -> list[Flag]:
    """P7, P12 and P13 on images x (n,C,H,W) in [0,1]; with a `surrogate` declared, steps in the images are known to the attacker, and soft."""
    beside = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    logits = defence(torch.cat([x, beside]))
    logits = logits[logits.isfinite().all(1) & ~abstained(logits)]
    if not len(logits):  # P6 says so
        return []
    coarse = few_values(logits)
    return [
        *probabilities(logits),
        *coarse,
        *([] if coarse else steps(defence, beside, eps, surrogate)),
    ]


def probabilities(logits: Tensor) -> list[Flag]:
    """P7, by AutoAttack's rule: within [0,1], and their sum is 1, each to 1e-5."""
    inside = logits.min() > -1e-5 and logits.max() < 1 + 1e-5
    if not inside or (logits.sum(1) - 1).abs().max() > 1e-5:
        return []
    return [
        Flag(
            "P7",
            "soft",
            "the outputs are probabilities, not logits: where they are near 0 and 1 no loss has a gradient",
        )
    ]


def few_values(logits: Tensor) -> list[Flag]:
    """P12, of outputs (n,K): the class with the fewest distinct values that are not all the same, and ties of the two largest."""
    counts = [len(column.unique()) for column in logits.T]
    least = min((count for count in counts if count > 1), default=len(logits))
    top = logits.topk(2, dim=1).values
    tied = float((top[:, 0] == top[:, 1]).float().mean())
    if least >= FEW * len(logits) and tied <= TIED:
        return []
    says = f"{len(logits)} outputs have {least} distinct values of a logit, and {tied:.1%} tie: scores say little more than labels"
    return [Flag("P12", "soft", says)]


def steps(defence: nn.Module, x: Tensor, eps: float, surrogate: bool) -> list[Flag]:
    """P13: answers that stay to the last bit where every pixel moves a little, and differ where it moves by eps; under the same noise.

    Of points beside the images, for pixels of few bits may lie on the very edge of a step.
    """
    if eps <= NUDGE:
        return []
    way, seed = 2.0 * torch.randint_like(x, 2) - 1, int(torch.randint(2**62, ()))

    def answer(size: float) -> Tensor:
        with seeded(x.device, seed):
            logits: Tensor = defence((x + size * way).clamp(0, 1))
        return logits

    here, near, far = answer(0.0), answer(NUDGE), answer(eps)
    stuck = (near == here).all(1)
    share = float((stuck & (far != here).any(1)).float().mean())
    if share <= STUCK:
        return []
    says = f"on {share:.1%} of images a change of {NUDGE:g} in every pixel leaves the answer as it is, and one of eps does not: it moves in steps"
    return [Flag("P13", "soft" if surrogate else "hard", says)]
