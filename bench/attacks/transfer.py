"""Attacks on another model than the defence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attacks.gradient import PGDOptions, pgd_calls, pgd_loop
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
    calls=lambda knobs, stochastic: pgd_calls(knobs),
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
    """Momentum PGD on the classifier `source`, or on the mean logits of several, joined by `+`.

    The defence is never queried: `model` is the surrogate. At each step it is shown, with the
    probability `diversity`, the image shrunk by up to a tenth, at a random place on black. What
    fools the surrogate then fools others more often. The other knobs are those of pgd.

    Returns the last iterate of each loss and restart (losses*restarts,B,C,H,W).

    Dong et al. 2018, arXiv:1710.06081; Xie et al. 2019, arXiv:1803.06978.
    """
    if diversity:
        diverse = DiverseInputs(model, diversity)
        model = Target(diverse, classes=model.classes, device=model.device)
    options = PGDOptions(loss=loss, steps=steps, restarts=restarts, step=step, momentum=momentum)
    return pgd_loop(model, x, y, threat, options)[::3]


class DiverseInputs(nn.Module):
    """A model that sees an image (B,C,H,W), with probability `p`, shrunk and moved, on black.

    The image shrinks to 0.9 to 1 of its size.
    """

    def __init__(self, model: nn.Module, p: float) -> None:
        super().__init__()
        self.model = model
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.rand(len(x), device=x.device) < self.p  # (B,)
        scale = torch.where(chosen, 1 + torch.rand(len(x), device=x.device) / 9, 1.0)  # (B,)
        shift = 2 * torch.rand(len(x), 2, device=x.device) - 1  # (B,2)
        shift = shift * (scale - 1).unsqueeze(1)
        zoom = torch.diag_embed(scale.unsqueeze(1).expand(-1, 2))  # (B,2,2)
        theta = torch.cat([zoom, shift.unsqueeze(2)], 2).to(x.dtype)  # (B,2,3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        logits: Tensor = self.model(F.grid_sample(x, grid, align_corners=False))
        return logits
