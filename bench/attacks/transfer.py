"""Attacks on another model than the defence."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks.gradient import climb
from bench.registry import attack
from bench.spec import ThreatModel
from bench.target import Target


@attack("transfer", norms={"linf", "l2", "l1", "l0"}, access="transfer", family="transfer")
def transfer(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, source: str = "@standard", steps: int = 40, restarts: int = 1, step: float = 0.5, momentum: float = 1.0
) -> Tensor:
    """Momentum PGD on the classifier `source`, with cross-entropy and with the margin; the defence is never asked.

    `model` is the surrogate. Returns the last iterate of each run (2*restarts,B,C,H,W). Dong et al. 2018, arXiv:1710.06081.
    """
    runs = [climb(model, x, y, threat, loss=loss, steps=steps, restarts=restarts, step=step, momentum=momentum, from_x=False, eot=1) for loss in ("ce", "margin")]
    return torch.cat([run[::3] for run in runs])
