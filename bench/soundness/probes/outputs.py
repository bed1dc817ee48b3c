"""Probes of what a defence answers with: not finite, probabilities, few values, or steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.judging.randomness import judging_stream
from bench.judging.target import abstained
from bench.results.record import Flag
from bench.soundness.codes import P7_TOLERANCE, P12_FEW, P12_TIED, P13_NUDGE, P13_SHARE
from bench.soundness.probes.gradients import has_surrogate, random_neighbours, resolution_of


@torch.no_grad()
def probe_finite_logits(defence: nn.Module, x: Tensor) -> list[Flag]:
    """P6: logits must be finite on the images, on noise, and on images of one grey."""
    grey = [torch.full_like(x[:1], value) for value in (0.0, 0.5, 1.0)]
    logits = defence(torch.cat([x, torch.rand_like(x), *grey]))
    nan = float(logits.isnan().any(1).float().mean())
    infinite = float(logits.isinf().any(1).float().mean())
    flags = []
    if nan:
        flags.append(Flag("P6", "hard", f"logits hold NaN on {nan:.1%} of legal images"))
    if infinite:
        severity = "soft" if has_surrogate(defence) else "hard"
        message = f"logits are infinite on {infinite:.1%} of legal images"
        flags.append(Flag("P6", severity, message))
    return flags


@torch.no_grad()
def probe_outputs(defence: nn.Module, x: Tensor, eps: float, surrogate: bool) -> list[Flag]:
    """P7, P12 and P13 on images x (n,C,H,W) in [0,1].

    With a `surrogate` declared, an attacker knows of steps in the images, and P13 is soft.
    """
    neighbours = random_neighbours(x, eps)
    logits = informative_logits(defence(torch.cat([x, neighbours])))
    if not len(logits):  # P6 says so
        return []
    flags = probe_probabilities(logits)
    coarse = probe_few_values(logits)
    flags += coarse or probe_steps(defence, neighbours, eps, surrogate)
    return flags


def informative_logits(logits: Tensor) -> Tensor:
    """The rows of the logits (n,K) that are finite and no abstention."""
    return logits[logits.isfinite().all(1) & ~abstained(logits)]


def probe_probabilities(logits: Tensor) -> list[Flag]:
    """P7, by AutoAttack's rule: all outputs lie within [0,1], and their sum is 1."""
    in_range = logits.min() > -P7_TOLERANCE and logits.max() < 1 + P7_TOLERANCE
    if not in_range or (logits.sum(1) - 1).abs().max() > P7_TOLERANCE:
        return []
    message = (
        "the outputs are probabilities, not logits: where they are near 0 and 1 no loss has a "
        "gradient"
    )
    return [Flag("P7", "soft", message)]


def probe_few_values(logits: Tensor) -> list[Flag]:
    """P12, of outputs (n,K): the class with the fewest distinct values, and ties of the top two.

    A class whose values are all the same does not count.
    """
    counts = [len(column.unique()) for column in logits.T]
    least = min((count for count in counts if count > 1), default=len(logits))
    top = logits.topk(2, dim=1).values
    tied = float((top[:, 0] == top[:, 1]).float().mean())
    if least >= P12_FEW * len(logits) and tied <= P12_TIED:
        return []
    message = (
        f"{len(logits)} outputs have {least} distinct values of a logit, and {tied:.1%} tie: "
        "scores say little more than labels"
    )
    return [Flag("P12", "soft", message)]


def probe_steps(defence: nn.Module, x: Tensor, eps: float, surrogate: bool) -> list[Flag]:
    """P13: answers that a nudge of every pixel leaves to the last bit, and a move by eps does not.

    All answers are under the same noise. `x` are points near the images, for pixels of few bits
    may lie on the very edge of a step.
    """
    nudge = max(P13_NUDGE, resolution_of(defence))
    if eps <= nudge:
        return []
    direction = 2.0 * torch.randint_like(x, 2) - 1
    seed = int(torch.randint(2**62, ()))

    def answer(size: float) -> Tensor:
        with judging_stream(x.device, seed):
            logits: Tensor = defence((x + size * direction).clamp(0, 1))
        return logits

    here = answer(0.0)
    near = answer(nudge)
    far = answer(eps)
    stuck = (near == here).all(1) & (far != here).any(1)
    share = float(stuck.float().mean())
    if share <= P13_SHARE:
        return []
    message = (
        f"on {share:.1%} of images a change of {nudge:g} in every pixel leaves the answer as "
        "it is, and one of eps does not: it moves in steps"
    )
    return [Flag("P13", "soft" if surrogate else "hard", message)]
