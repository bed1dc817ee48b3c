"""Attacks on another model than the defence."""

from __future__ import annotations

from torch import Tensor

from bench.attacks.gradient import climb, passes
from bench.attacks.losses import LOSSES
from bench.registry import attack
from bench.spec import ThreatModel
from bench.target import Target


@attack(
    "transfer",
    norms={"linf", "l2", "l1", "l0"},
    access="transfer",
    family="transfer",
    choices={"loss": LOSSES},
    calls=lambda knobs, stochastic: passes(knobs),
)
def transfer(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    source: str = "@standard",
    loss: str = "ce+margin",
    steps: int = 40,
    restarts: int = 1,
    step: float = 2.0,
    momentum: float = 1.0,
) -> Tensor:
    """Momentum PGD on the classifier `source`; the defence is never asked.

    `model` is the surrogate; the other knobs are those of pgd. Returns the last iterate of each loss and restart
    (losses*restarts,B,C,H,W). Dong et al. 2018, arXiv:1710.06081.
    """
    return climb(model, x, y, threat, loss=loss, steps=steps, restarts=restarts, step=step, wide=1.0, momentum=momentum)[::3]
