"""Attacks that see logits but no gradients: estimated gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from bench.attacks.draws import draw_margins, same_noise
from bench.attacks.losses import finite, rows_at_once
from bench.judging.norms import NORMS, to_ball
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel


def calls(knobs: Mapping[str, Any], stochastic: bool) -> int:
    """The queries per example of a walk along estimated gradients."""
    return (
        int(knobs["steps"])
        * (2 * int(knobs["samples"]) + 1)
        * (int(knobs["eot"]) if stochastic else 1)
    )


@attack(
    "spsa",
    norms={"linf", "l2"},
    access="score",
    family="score",
    calls=calls,
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
    """Adam on the margin, with gradients estimated from `samples` antithetic pairs of random-sign directions of size `delta`.

    `step` is Adam's learning rate relative to eps (in l2, relative to eps over the square root of the number of values). Each step asks
    2*samples + 1 queries per example; on a deterministic defence an example leaves when it is fooled. On a stochastic one every query
    is the mean margin of `eot` draws of its own, each of them counted; one draw each and more pairs tell more about the gradient than
    more draws of fewer pairs. The two points of a pair meet noise of their own, for who sees scores alone does not choose the defence's noise: a
    `delta` of 0.05 makes up for most of that. With `common` they meet the same noise, which no deployed defence grants, and their difference
    is the image's alone. Returns the last and the best iterate (2,B,C,H,W). Uesato et al. 2018, arXiv:1802.05666.

    Ours, not that of torchattacks, which gives all images of a batch the same directions, so that an example's result depends on its
    neighbours, asks queries outside of the box, goes on after success, and is linf only.
    """
    rate = float(threat.eps) * step * (x[0].numel() ** -0.5 if threat.norm == "l2" else 1.0)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)

    def adam(i: int, rows: Tensor, grad: Tensor) -> Tensor:
        mean[rows] = 0.9 * mean[rows] + 0.1 * grad
        square[rows] = 0.999 * square[rows] + 0.001 * grad**2
        return rate * (mean[rows] / (1 - 0.9**i)) / ((square[rows] / (1 - 0.999**i)).sqrt() + 1e-8)

    return walk(model, x, y, threat, adam, signs, steps, samples, delta, eot, common)


@attack(
    "nes", norms={"linf", "l2"}, access="score", family="score", calls=calls, added_later={"common"}
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
    """Momentum ascent of the margin, with gradients estimated from `samples` antithetic pairs of Gaussian directions of deviation `delta`.

    In linf a step follows the sign of the running mean of the estimates, in l2 its direction; `step` is the first one's length relative to
    eps, and decays to zero along a cosine. Queries, `eot`, `common`, who leaves, and the candidates are those of spsa.
    Ilyas et al. 2018, arXiv:1804.08598.
    """
    norm, eps = NORMS[threat.norm], float(threat.eps)
    heading = torch.zeros_like(x)

    def ahead(i: int, rows: Tensor, grad: Tensor) -> Tensor:
        heading[rows] = momentum * heading[rows] + (1 - momentum) * grad
        return (
            eps
            * step
            * (1 + math.cos(math.pi * (i - 1) / steps))
            / 2
            * norm.steepest(heading[rows])
        )

    return walk(model, x, y, threat, ahead, gaussians, steps, samples, delta, eot, common)


def walk(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    move: Callable[[int, Tensor, Tensor], Tensor],
    directions: Callable[[Tensor, int], Tensor],
    steps: int,
    samples: int,
    delta: float,
    eot: int,
    common: bool,
) -> Tensor:
    """The last and the best iterate (2,B,C,H,W) of ascent from the image along estimated gradients.

    `move(i, rows, grad)` is what the i-th step, counted from 1, adds to the examples `rows`.
    """
    draws = eot if model.stochastic else 1
    x_adv, best = x.clone(), x.clone()
    best_gap = torch.full((len(x),), -torch.inf, device=x.device)
    todo = torch.arange(len(x), device=x.device)
    for i in range(1, steps + 1):
        here, names = x_adv[todo], y[todo]
        gap = draw_margins(model, here.unsqueeze(1), names, draws).mean(2).squeeze(1)
        grad, around = estimate(model, here, names, samples, delta, directions, draws, common)
        if model.stochastic:
            gap = around  # the mean of 2*samples draws next to the iterate says more than one draw on it
        better = gap > best_gap[todo]
        best[todo[better]], best_gap[todo[better]] = here[better], gap[better]
        x_adv[todo] = to_ball(here + move(i, todo, grad), x[todo], threat.norm, float(threat.eps))
        if not model.stochastic:
            fooled = gap > 0
            x_adv[todo[fooled]] = here[fooled]
            todo = todo[~fooled]
            if not len(todo):
                break
    return torch.stack([x_adv, best])


def estimate(
    model: Target,
    x: Tensor,
    y: Tensor,
    samples: int,
    delta: float,
    directions: Callable[[Tensor, int], Tensor],
    draws: int,
    common: bool = False,
) -> tuple[Tensor, Tensor]:
    """The antithetic estimate (B,C,H,W) of the margin's gradient at `x`, and the mean margin (B,) of the points that it asked about.

    `directions(x, count)` -> (B,count,C,H,W), of unit variance; each point is asked `draws` times, with `common` both of a pair under the same noise.
    """
    grad, total, done = torch.zeros_like(x), torch.zeros(len(x), device=x.device), 0
    while done < samples:
        count = min(samples - done, max(1, rows_at_once(x) // (2 * len(x))))
        ways = directions(x, count)
        noise, gaps = same_noise(model) if common and model.stochastic else nullcontext, []
        for side in (1, -1):
            with noise():
                gaps.append(
                    draw_margins(
                        model, (x.unsqueeze(1) + side * delta * ways).clamp(0, 1), y, draws
                    ).mean(2)
                )
        ahead, behind = gaps
        grad += ((ahead - behind)[:, :, None, None, None] * ways).sum(1)
        total += (ahead + behind).sum(1)
        done += count
    return finite(grad / (2 * delta * samples)), total / (2 * samples)


def signs(x: Tensor, count: int) -> Tensor:
    """Random signs (B,count,C,H,W)."""
    return (
        torch.randint(2, (len(x), count, *x.shape[1:]), device=x.device, dtype=torch.int8).to(
            x.dtype
        )
        * 2
        - 1
    )


def gaussians(x: Tensor, count: int) -> Tensor:
    """Gaussian directions (B,count,C,H,W)."""
    return torch.randn(len(x), count, *x.shape[1:], device=x.device, dtype=x.dtype)
