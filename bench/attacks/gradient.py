"""Gradient attacks for every norm: one loop, with the norm, the loss, the momentum and the number of draws as parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.attacks.losses import gradient, loss_named
from bench.norms import NORMS, per_example, to_ball
from bench.registry import attack
from bench.spec import ThreatModel
from bench.target import Target

ALL = {"linf", "l2", "l1", "l0"}


@attack("fgsm", norms=ALL, access="white-box", family="gradient")
def fgsm(model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, loss: str = "ce") -> Tensor:
    """One step of length eps along the steepest direction of the norm, from the image itself.

    In l1 and l0 this is the best perturbation of the linearised model. Goodfellow et al. 2015, arXiv:1412.6572.
    """
    eps = float(threat.eps)
    return NORMS[threat.norm].ascend(x, gradient(model, x, y, loss_named(loss), 1)[0], x, eps, eps)


@attack("pgd", norms=ALL, access="white-box", family="gradient")
def pgd(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, loss: str = "ce", steps: int = 40, restarts: int = 1, step: float = 0.5, momentum: float = 0.0,
    from_x: bool = False,
) -> Tensor:  # fmt: skip
    """Projected gradient ascent from random starts, one draw per step, with a step size that decays to zero.

    `step` is the first step's length relative to eps; `from_x` starts the first restart at the image itself. Returns the last, the
    highest-loss and the highest-margin iterate of each restart (3*restarts,B,C,H,W). Madry et al. 2018, arXiv:1706.06083.
    """
    return climb(model, x, y, threat, loss=loss, steps=steps, restarts=restarts, step=step, momentum=momentum, from_x=from_x, eot=1)


@attack("pgd-eot", norms=ALL, access="white-box", family="gradient", needs_stochastic=True)
def pgd_eot(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, loss: str = "ce", steps: int = 40, restarts: int = 1, step: float = 0.5, momentum: float = 0.0,
    from_x: bool = False, eot: int = 20,
) -> Tensor:  # fmt: skip
    """PGD on the mean loss over `eot` draws per step, evaluated as one batch.

    Knobs and candidates as of pgd. Athalye et al. 2018, arXiv:1707.07397.
    """
    return climb(model, x, y, threat, loss=loss, steps=steps, restarts=restarts, step=step, momentum=momentum, from_x=from_x, eot=eot)


def climb(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, loss: str, steps: int, restarts: int, step: float, momentum: float, from_x: bool, eot: int
) -> Tensor:
    """The candidates of `restarts` runs of projected gradient ascent, (3*restarts,B,C,H,W)."""
    norm, eps, measure = NORMS[threat.norm], float(threat.eps), loss_named(loss)
    candidates = []
    for restart in range(restarts):
        x_adv = x if from_x and restart == 0 else to_ball(x + norm.random_start(x, eps), x, threat.norm, eps)
        steepest_loss = strongest = x_adv
        best_loss = best_gap = torch.full((len(x),), -torch.inf, device=x.device)
        heading = torch.zeros_like(x)
        for i in range(steps):
            grad, value, gap = gradient(model, x_adv, y, measure, eot)
            steepest_loss = torch.where(per_example(value > best_loss, x), x_adv, steepest_loss)
            strongest = torch.where(per_example(gap > best_gap, x), x_adv, strongest)
            best_loss, best_gap = torch.maximum(value, best_loss), torch.maximum(gap, best_gap)
            heading = momentum * heading + unit(grad) if momentum else grad
            x_adv = norm.ascend(x_adv, heading, x, eps, step * eps * (1 + math.cos(math.pi * i / steps)) / 2)
        candidates += [x_adv, steepest_loss, strongest]
    return torch.stack(candidates)


def unit(grad: Tensor) -> Tensor:
    """Scaled to a mean size of one per example, so that momentum weighs every step alike (Dong et al. 2018)."""
    top = grad.abs().flatten(1).amax(1)
    scaled = grad / per_example(top, grad).clamp_min(torch.finfo(grad.dtype).tiny)
    return scaled / per_example(scaled.abs().flatten(1).mean(1), grad).clamp_min(1e-12)
