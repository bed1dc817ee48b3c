"""Attacks that see logits but no gradients: estimated gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks.losses import finite, margins, rows_at_once
from bench.norms import to_ball
from bench.registry import attack
from bench.spec import ThreatModel
from bench.target import Target


@attack("spsa", norms={"linf", "l2"}, access="score", family="score", calls=lambda knobs, stochastic: knobs["steps"] * (2 * knobs["samples"] + 1))
def spsa(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, steps: int = 100, samples: int = 128, delta: float = 0.01, step: float = 0.32
) -> Tensor:
    """Adam on the margin, with gradients estimated from `samples` antithetic pairs of random-sign directions of size `delta`.

    `step` is Adam's learning rate relative to eps (in l2, relative to eps over the square root of the number of values). Each step asks
    2*samples + 1 queries per example; on a deterministic defence an example leaves when it is fooled. On a stochastic one every query
    is a draw of its own and their mean is what the estimate sees. Returns the last and the best iterate (2,B,C,H,W).
    Uesato et al. 2018, arXiv:1802.05666.

    Ours, not that of torchattacks, which gives all images of a batch the same directions, so that an example's result depends on its
    neighbours, asks queries outside of the box, goes on after success, and is linf only.
    """
    rate = float(threat.eps) * step * (x[0].numel() ** -0.5 if threat.norm == "l2" else 1.0)
    x_adv, best = x.clone(), x.clone()
    best_gap = torch.full((len(x),), -torch.inf, device=x.device)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    todo = torch.arange(len(x), device=x.device)
    for i in range(1, steps + 1):
        here, names = x_adv[todo], y[todo]
        gap = margins(model, here.unsqueeze(1), names).squeeze(1)
        grad, around = estimate(model, here, names, samples, delta)
        if model.stochastic:
            gap = around  # the mean of 2*samples draws next to the iterate says more than one draw on it
        better = gap > best_gap[todo]
        best[todo[better]], best_gap[todo[better]] = here[better], gap[better]
        mean[todo] = 0.9 * mean[todo] + 0.1 * grad
        square[todo] = 0.999 * square[todo] + 0.001 * grad**2
        moved = here + rate * (mean[todo] / (1 - 0.9**i)) / ((square[todo] / (1 - 0.999**i)).sqrt() + 1e-8)
        x_adv[todo] = to_ball(moved, x[todo], threat.norm, float(threat.eps))
        if not model.stochastic:
            fooled = gap > 0
            x_adv[todo[fooled]] = here[fooled]
            todo = todo[~fooled]
            if not len(todo):
                break
    return torch.stack([x_adv, best])


def estimate(model: Target, x: Tensor, y: Tensor, samples: int, delta: float) -> tuple[Tensor, Tensor]:
    """The SPSA estimate (B,C,H,W) of the margin's gradient at `x`, and the mean margin (B,) of the points that it asked about."""
    grad, total, done = torch.zeros_like(x), torch.zeros(len(x), device=x.device), 0
    while done < samples:
        count = min(samples - done, max(1, rows_at_once(x) // (2 * len(x))))
        signs = torch.randint(2, (len(x), count, *x.shape[1:]), device=x.device, dtype=torch.int8).to(x.dtype) * 2 - 1
        ahead, behind = (margins(model, (x.unsqueeze(1) + way * delta * signs).clamp(0, 1), y) for way in (1, -1))
        grad += ((ahead - behind)[:, :, None, None, None] * signs).sum(1)
        total += (ahead + behind).sum(1)
        done += count
    return finite(grad / (2 * delta * samples)), total / (2 * samples)
