"""Attacks that see logits but no gradients: estimated gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.attacks.adam import Adam
from bench.attacks.best import BestImages
from bench.attacks.draws import draw_margins, same_noise
from bench.attacks.losses import rows_per_query, zero_nonfinite
from bench.judging.norms import NORMS, to_ball
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel


def estimate_calls(knobs: Mapping[str, Any], stochastic: bool) -> int:
    """The queries per example of a walk along estimated gradients."""
    draws = int(knobs["eot"]) if stochastic else 1
    return int(knobs["steps"]) * (2 * int(knobs["samples"]) + 1) * draws


@attack(
    "spsa",
    norms={"linf", "l2"},
    access="score",
    family="score",
    calls=estimate_calls,
    added_later={"eot", "common"},
)
def spsa(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    samples: int = 128,
    delta: float = 0.01,
    step: float = 0.32,
    eot: int = 1,
    common: bool = False,
) -> Tensor:
    """Adam on the margin, with gradients estimated from pairs of random-sign directions.

    A step takes `samples` antithetic pairs of directions of size `delta`. `step` is Adam's
    learning rate relative to eps; in l2, relative to eps over the square root of the number of
    values. Each step takes 2*samples + 1 queries per example. On a deterministic defence an
    example leaves when it is fooled.

    On a stochastic defence every query is the mean margin of `eot` draws of its own, each of them
    counted. One draw each and more pairs tell more about the gradient than more draws of fewer
    pairs. The two points of a pair meet noise of their own, since who sees scores alone does not
    choose the defence's noise. A `delta` of 0.05 makes up for most of that. With `common` they
    meet the same noise, and their difference is the image's alone. No deployed defence grants that.

    Returns the last and the best iterate (2,B,C,H,W).

    Uesato et al. 2018, arXiv:1802.05666.

    This is not the attack of torchattacks, which gives all images of a batch the same directions.
    There an example's result depends on its neighbours. It also queries outside of the box, goes
    on after success, and is linf only.
    """
    scale = x[0].numel() ** -0.5 if threat.norm == "l2" else 1.0
    rate = float(threat.eps) * step * scale
    adam = Adam(x)

    def move(i: int, rows: Tensor, grad: Tensor) -> Tensor:
        return adam.step(i, rows, grad, rate)

    options = EstimateOptions(steps, samples, delta, eot, common, random_signs)
    return walk(model, x, y, threat, options, move)


@attack(
    "nes",
    norms={"linf", "l2"},
    access="score",
    family="score",
    calls=estimate_calls,
    added_later={"common"},
)
def nes(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 200,
    samples: int = 25,
    delta: float = 0.01,
    step: float = 1.0,
    momentum: float = 0.9,
    eot: int = 1,
    common: bool = False,
) -> Tensor:
    """Momentum ascent of the margin, with gradients estimated from pairs of Gaussian directions.

    A step takes `samples` antithetic pairs of directions of deviation `delta`. In linf it follows
    the sign of the running mean of the estimates, in l2 the direction of that mean. `step` is the
    first step's length relative to eps; it decays to zero along a cosine. Queries, `eot`,
    `common`, who leaves, and the candidates are those of spsa.

    Ilyas et al. 2018, arXiv:1804.08598.
    """
    eps = float(threat.eps)
    momentum_buffer = torch.zeros_like(x)  # (B,C,H,W)

    def move(i: int, rows: Tensor, grad: Tensor) -> Tensor:
        momentum_buffer[rows] = momentum * momentum_buffer[rows] + (1 - momentum) * grad
        size = eps * step * (1 + math.cos(math.pi * (i - 1) / steps)) / 2
        return size * NORMS[threat.norm].steepest(momentum_buffer[rows])

    options = EstimateOptions(steps, samples, delta, eot, common, gaussians)
    return walk(model, x, y, threat, options, move)


@dataclass(frozen=True)
class EstimateOptions:
    """The knobs of a walk along estimated gradients.

    `directions(x, count)` -> (B,count,C,H,W) are of unit variance.
    """

    steps: int
    samples: int
    delta: float
    eot: int
    common: bool
    directions: Callable[[Tensor, int], Tensor]


def walk(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    options: EstimateOptions,
    move: Callable[[int, Tensor, Tensor], Tensor],
) -> Tensor:
    """The last and the best iterate (2,B,C,H,W) of ascent from the image on estimated gradients.

    `move(i, rows, grad)` is what the i-th step, counted from 1, adds to the examples `rows`.
    """
    draws = options.eot if model.stochastic else 1
    x_adv = x.clone()  # (B,C,H,W)
    best = BestImages(x)
    rows = torch.arange(len(x), device=x.device)  # (R,), which are not fooled
    for i in range(1, options.steps + 1):
        images = x_adv[rows]  # (R,C,H,W)
        margins = draw_margins(model, images.unsqueeze(1), y[rows], draws).mean(2).squeeze(1)
        grad, nearby_margins = estimate_gradient(model, images, y[rows], options)
        if model.stochastic:  # the mean of 2*samples draws nearby says more than one draw here
            margins = nearby_margins
        best.record(rows, images, margins)
        moved = images + move(i, rows, grad)
        x_adv[rows] = to_ball(moved, x[rows], threat.norm, float(threat.eps))
        if not model.stochastic:
            fooled = margins > 0
            x_adv[rows[fooled]] = images[fooled]
            rows = rows[~fooled]
            if not len(rows):
                break
    return torch.stack([x_adv, best.images])


def estimate_gradient(
    model: Target, x: Tensor, y: Tensor, options: EstimateOptions
) -> tuple[Tensor, Tensor]:
    """The antithetic estimate (B,C,H,W) of the margin's gradient at `x`.

    Gives also the mean margin (B,) of the points that were queried.
    """
    grad = torch.zeros_like(x)
    total = torch.zeros(len(x), device=x.device)
    done = 0
    while done < options.samples:
        count = min(options.samples - done, max(1, rows_per_query(x) // (2 * len(x))))
        directions = options.directions(x, count)  # (B,count,C,H,W)
        ahead, behind = pair_margins(model, x, y, directions, options)  # (B,count)
        grad += ((ahead - behind)[:, :, None, None, None] * directions).sum(1)
        total += (ahead + behind).sum(1)
        done += count
    estimate = zero_nonfinite(grad / (2 * options.delta * options.samples))
    return estimate, total / (2 * options.samples)


def pair_margins(
    model: Target, x: Tensor, y: Tensor, directions: Tensor, options: EstimateOptions
) -> list[Tensor]:
    """The mean margins (B,P) ahead of `x` and behind it, along the directions (B,P,C,H,W).

    With `common` both points of a pair meet the same noise.
    """
    draws = options.eot if model.stochastic else 1
    noise = same_noise(model) if options.common and model.stochastic else nullcontext
    margins = []
    for side in (1, -1):
        points = (x.unsqueeze(1) + side * options.delta * directions).clamp(0, 1)
        with noise():
            margins.append(draw_margins(model, points, y, draws).mean(2))
    return margins


def random_signs(x: Tensor, count: int) -> Tensor:
    """Random signs (B,count,C,H,W)."""
    shape = (len(x), count, *x.shape[1:])
    bits = torch.randint(2, shape, device=x.device, dtype=torch.int8)
    return bits.to(x.dtype) * 2 - 1


def gaussians(x: Tensor, count: int) -> Tensor:
    """Gaussian directions (B,count,C,H,W)."""
    return torch.randn(len(x), count, *x.shape[1:], device=x.device, dtype=x.dtype)
