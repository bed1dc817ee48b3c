"""White-box attacks that look for the nearest misclassified point, and report how far it lies.

On a deterministic defence an example leaves when its point is found (`deepfool`) or lies inside the ball (`cw`), and the point is then
drawn towards the image as long as it stays misclassified. Each attack also gives the point in the same direction at distance eps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.attacks.decision import bisect, reach
from bench.attacks.losses import finite, gradient, margins
from bench.judging.norms import NORMS, free, per_example
from bench.judging.target import Target, margin
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

HALVINGS = 10  # queries with which a point is drawn towards the image


@attack(
    "deepfool",
    norms={"linf", "l2"},
    access="white-box",
    family="gradient",
    minimum_norm=True,
    calls=lambda knobs, stochastic: knobs["steps"] * (1 + 2 * knobs["targets"]) + 1 + HALVINGS,
)
def deepfool(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 50,
    targets: int = 9,
    overshoot: float = 0.02,
) -> Tensor:
    """Steps to the nearest plane between the label and another class, each class being linearised where the walk has arrived.

    The `targets` wrong classes with the highest logits are looked at; the walk goes `overshoot` beyond the planes, relative to its length,
    and takes no part in coordinates that the box blocks. On a stochastic defence every example takes all of the steps, each to the plane
    of one draw, and the point found is the mean of the second half of them. Returns the point found, and the one in its direction at
    distance eps (2,B,C,H,W). Moosavi-Dezfooli et al. 2016, arXiv:1511.04599.
    """
    norm = NORMS[threat.norm]
    z, found, trail = x.clone(), torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(x)
    todo = torch.arange(len(x), device=x.device)
    for i in range(steps):
        here, centre = z[todo], x[todo]
        gaps, slopes, wrong = planes(model, here, y[todo], targets)
        slopes = torch.stack([free(slope, here) for slope in slopes.unbind(1)], 1)
        ways = torch.stack([norm.steepest(slope) for slope in slopes.unbind(1)], 1)
        lengths = (-gaps / (slopes * ways).flatten(2).sum(2)).nan_to_num(
            torch.inf, torch.inf, -torch.inf
        )
        length, nearest = lengths.min(1)  # the most violated plane where the point is misclassified
        step = (
            per_example(torch.where(length.isfinite(), length, 0), x)
            * ways[torch.arange(len(todo), device=x.device), nearest]
        )
        walked = (centre + (1 + overshoot) * ((here - centre) / (1 + overshoot) + step)).clamp(0, 1)
        if model.stochastic:
            z = walked
            trail += walked / (steps - steps // 2) if i >= steps // 2 else 0
            continue
        found[todo[wrong]] = True
        z[todo[~wrong]] = walked[~wrong]
        todo = todo[~wrong]
        if not len(todo):
            break
    if len(todo) and not model.stochastic:
        found[todo] = margins(model, z[todo].unsqueeze(1), y[todo]).squeeze(1) > 0
    return both(model, x, y, trail if model.stochastic else z, threat, found)


def planes(model: Target, x: Tensor, y: Tensor, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of the `targets` highest wrong classes less that of the label (B,T), their gradients (B,T,C,H,W), and who is misclassified (B,)."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        ranked = logits.detach().nan_to_num(nan=-torch.inf).scatter(1, y.unsqueeze(1), -torch.inf)
        classes = ranked.topk(min(targets, logits.shape[1] - 1), dim=1)[1]
        gaps = logits.gather(1, classes) - logits.gather(1, y.unsqueeze(1))
        slopes = [
            torch.autograd.grad(gap.sum(), leaf, retain_graph=True, allow_unused=True)[0]
            if gaps.requires_grad
            else None
            for gap in gaps.unbind(1)
        ]
    found = torch.stack(
        [torch.zeros_like(x) if slope is None else finite(slope) for slope in slopes], 1
    )
    return gaps.detach(), found, margin(logits.detach(), y) > 0


@attack(
    "cw",
    norms={"l2"},
    access="white-box",
    family="gradient",
    minimum_norm=True,
    calls=lambda knobs, stochastic: (
        3 * knobs["steps"] * knobs["searches"] * (knobs["eot"] if stochastic else 1) + 1 + HALVINGS
    ),
)
def cw(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 1000,
    searches: int = 9,
    constant: float = 0.001,
    rate: float = 0.1,
    confidence: float = 0.0,
    eot: int = 4,
) -> Tensor:
    """Adam on the squared distance plus a constant times what the margin lacks to `confidence`, over images written as tanh.

    Each example has a constant of its own: ten times `constant` as long as a search of `steps` steps finds nothing, then halfway between
    the largest that found nothing and the least that found something, for `searches` searches. In each the learning rate decays from
    `rate` to zero, as Adam would circle the boundary otherwise, and which allows to begin with longer steps than the paper's. On a
    stochastic defence each step asks `eot` draws, and what counts is the running mean of their margins over about ten steps. Returns the
    nearest point found, and that one and the last point at distance eps in their directions (3,B,C,H,W).
    Carlini and Wagner 2017, arXiv:1608.04644.
    """
    eps, distance, draws = float(threat.eps), NORMS["l2"].distance, eot if model.stochastic else 1
    first = torch.atanh((2 * x - 1) * (1 - 1e-3))
    best, last, radius = x.clone(), x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    if not model.stochastic:
        radius[margins(model, x.unsqueeze(1), y).squeeze(1) > 0] = 0.0
    weight, low, high = (
        torch.full_like(radius, constant),
        torch.zeros_like(radius),
        torch.full_like(radius, torch.inf),
    )
    for _ in range(searches):
        rows = ((radius > eps) | model.stochastic).nonzero().squeeze(1)
        hit, smooth = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(radius)
        w, mean, square = first.clone(), torch.zeros_like(x), torch.zeros_like(x)
        for i in range(1, steps + 1):
            if not len(rows):
                break
            bent = w[rows].tanh()
            here = (bent + 1) / 2
            slope, _, gap = gradient(model, here, y[rows], margin, draws)
            smooth[rows] = gap = (
                0.9 * smooth[rows] + 0.1 * gap if model.stochastic and i > 1 else gap
            )
            length = distance(here - x[rows])
            wrong = (gap > 0) & (gap >= confidence)
            nearer = wrong & (length < radius[rows])
            best[rows[nearer]], radius[rows[nearer]] = here[nearer], length[nearer]
            hit[rows[wrong]] = (
                i > steps // 2
            )  # Adam's first steps are as long for a constant that is too small
            last[rows] = here
            pull = 2 * (here - x[rows]) - per_example(weight[rows] * (gap < confidence), x) * slope
            grad = pull * (1 - bent**2) / 2
            mean[rows] = 0.9 * mean[rows] + 0.1 * grad
            square[rows] = 0.999 * square[rows] + 0.001 * grad**2
            pace = rate * (1 + math.cos(math.pi * (i - 1) / steps)) / 2
            w[rows] -= (
                pace * (mean[rows] / (1 - 0.9**i)) / ((square[rows] / (1 - 0.999**i)).sqrt() + 1e-8)
            )
            rows = rows[(radius[rows] > eps) | model.stochastic]
        high, low = (
            torch.where(hit, torch.minimum(high, weight), high),
            torch.where(hit, low, weight),
        )
        weight = torch.where(high.isfinite(), (low + high) / 2, 10 * weight)
    found = radius.isfinite() & (
        confidence <= 0
    )  # drawn towards the image, a point would lose its confidence
    return torch.cat(
        [both(model, x, y, best, threat, found), reach(last, x, threat.norm, eps).unsqueeze(0)]
    )


def both(
    model: Target, x: Tensor, y: Tensor, z: Tensor, threat: ThreatModel, found: Tensor
) -> Tensor:
    """The points, drawn towards the image where they are `found` and the defence is deterministic, and those in their direction at distance eps."""
    if not model.stochastic:
        z = bisect(model, x, y, z, threat.norm, found, HALVINGS)
    return torch.stack([z, reach(z, x, threat.norm, float(threat.eps))])
