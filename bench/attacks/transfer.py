"""Attacks on another model than the defence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attacks.gradient import climb, passes
from bench.attacks.losses import LOSSES
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel


@attack(
    "transfer",
    norms={"linf", "l2", "l1", "l0"},
    access="transfer",
    family="transfer",
    choices={"loss": LOSSES},
    calls=lambda knobs, stochastic: passes(knobs),
    added_later={"diversity"},
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
    diversity: float = 0.0,
) -> Tensor:
    """Momentum PGD on the classifier `source`, or the mean logits of several, joined by `+`; the defence is never asked.

    `model` is the surrogate. `diversity` is the probability with which the surrogate is shown an image shrunk by up to a tenth, at a random place
    on black, at each step: what fools it then fools others more often. The other knobs are those of pgd. Returns the last iterate of each loss and
    restart (losses*restarts,B,C,H,W). Dong et al. 2018, arXiv:1710.06081; Xie et al. 2019, arXiv:1803.06978.
    """
    if diversity:
        model = Target(Diverse(model, diversity), classes=model.classes, device=model.device)
    return climb(
        model,
        x,
        y,
        threat,
        loss=loss,
        steps=steps,
        restarts=restarts,
        step=step,
        wide=1.0,
        momentum=momentum,
    )[::3]


class Diverse(nn.Module):
    """A model that sees each image (B,C,H,W), with probability `p`, shrunk to 0.9 to 1 of its size and moved, the rest black."""

    def __init__(self, model: nn.Module, p: float) -> None:
        super().__init__()
        self.model, self.p = model, p

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.where(
            torch.rand(len(x), device=x.device) < self.p,
            1 + torch.rand(len(x), device=x.device) / 9,
            1.0,
        )
        shift = (2 * torch.rand(len(x), 2, device=x.device) - 1) * (scale - 1).unsqueeze(1)
        theta = torch.cat(
            [torch.diag_embed(scale.unsqueeze(1).expand(-1, 2)), shift.unsqueeze(2)], 2
        ).to(x.dtype)
        logits: Tensor = self.model(
            F.grid_sample(
                x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False
            )
        )
        return logits
