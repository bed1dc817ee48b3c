"""Random points of the ball: the floor that every attack must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks.losses import margins
from bench.norms import NORMS, per_example, to_ball
from bench.registry import attack
from bench.spec import ThreatModel
from bench.target import Target


@attack("noise", norms={"linf", "l2", "l1", "l0"}, access="score", family="noise", calls=lambda knobs, stochastic: knobs["tries"])
def noise(model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, tries: int = 500) -> Tensor:
    """The best of `tries` random perturbations, by turns uniform in the ball and at one of its corners; `tries` queries per example.

    A corner is the step of length eps along a random gradient. Carlini et al. 2019, arXiv:1902.06705, ask for this baseline.
    """
    norm, eps = NORMS[threat.norm], float(threat.eps)
    best, best_gap = x, torch.full((len(x),), -torch.inf, device=x.device)
    for i in range(tries):
        x_try = norm.ascend(x, torch.randn_like(x), x, eps, eps) if i % 2 else to_ball(x + norm.random_start(x, eps), x, threat.norm, eps)
        gap = margins(model, x_try.unsqueeze(1), y).squeeze(1)
        best = torch.where(per_example(gap > best_gap, x), x_try, best)
        best_gap = torch.maximum(gap, best_gap)
    return best
