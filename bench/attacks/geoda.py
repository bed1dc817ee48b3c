"""GeoDA: where the boundary is flat, its normal says at once where the nearest misclassified point lies."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from bench.attacks.decision import GRID, STARTS, bisect, fooled, normal, reach, start
from bench.judging.norms import NORMS, free, per_example
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel


@attack(
    "geoda",
    norms={"linf", "l2"},
    access="decision",
    family="decision",
    minimum_norm=True,
    calls=lambda knobs, stochastic: knobs["queries"],
)
def geoda(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    queries: int = 20000,
    rounds: int = 10,
    rate: float = 0.6,
    spread: float = 0.1,
    frequencies: float = 1.0,
    eot: int = 1,
) -> Tensor:
    """Walks from the image itself along a normal of the boundary, estimated from labels, to the boundary, where it estimates the next one.

    Each of `rounds` normals is the mean of Gaussian directions, of root mean square length `spread` relative to the l2 distance, signed by the
    label behind each; each takes `rate`^(-2/3) times as many labels as the one before. On a stochastic defence directions are ten times as long,
    as labels next to each other tell less than chance there. They are of the lowest `frequencies` of the cosine transform: that share of each
    axis, 1 for all of them. The walk follows the norm's steepest direction along the normal; of ten lengths, up to
    twice the last distance, it takes the least that is misclassified, and bisects from there.

    Exactly `queries` queries per example, in fewer rounds where over an eighth would go to walks; on a deterministic defence an example
    leaves when it is inside the ball. On a stochastic one `queries` counts draws: start, walks and bisections believe the majority of `eot` of
    them, or of as many as leave room for labels, the normals one each. Returns the nearest point found, the one in its direction at
    distance eps, and that of the last point (3,B,C,H,W). Rahmati et al. 2020, arXiv:2003.06468.
    """
    norm, eps, values = NORMS[threat.norm], float(threat.eps), x[0].numel()
    halvings = max(1, min(20, math.ceil(2 * math.log2(values)), (queries - 1 - STARTS - GRID) // 4))
    draws = (
        max(1, min(eot, queries // (2 * (1 + STARTS + GRID + 2 * halvings))))
        if model.stochastic
        else 1
    )
    z, found, used = start(model, x, y, threat.norm, draws)
    z = bisect(model, x, y, z, threat.norm, found, halvings, draws)
    best, best_radius = z.clone(), norm.distance(z - x)
    left, back = queries - (used + halvings) * draws, (GRID + halvings) * draws
    ways, length = partial(waves, share=frequencies), spread * (10 if model.stochastic else 1)
    strides = torch.arange(1, GRID + 1, device=x.device) * (2 / GRID)
    for count in shares(left, back, rounds, rate):
        rows = (found & ((norm.distance(z - x) > eps) | model.stochastic)).nonzero().squeeze(1)
        if not len(rows):
            break
        centre, here, names = x[rows], z[rows], y[rows]
        # where a majority against the image itself was luck, the distance is zero and says nothing
        size, radius = (
            NORMS[kind].distance(here - centre).clamp_min(eps if model.stochastic else 0)
            for kind in ("l2", threat.norm)
        )
        ahead = norm.steepest(free(normal(model, here, names, length * size, count, ways), centre))
        tries = (
            centre.unsqueeze(1)
            + (radius.unsqueeze(1) * strides)[:, :, None, None, None] * ahead.unsqueeze(1)
        ).clamp(0, 1)
        wrong = fooled(model, tries, names, draws)
        nearest = tries[torch.arange(len(rows), device=x.device), wrong.int().argmax(1)]
        walked = torch.where(per_example(wrong.any(1), here), nearest, here)
        z[rows] = bisect(
            model,
            centre,
            names,
            walked,
            threat.norm,
            torch.ones_like(names, dtype=torch.bool),
            halvings,
            draws,
        )
        radius = norm.distance(z - x)
        best = torch.where(per_example(radius < best_radius, x), z, best)
        best_radius = torch.minimum(radius, best_radius)
    return torch.stack([best, *(reach(point, x, threat.norm, eps) for point in (best, z))])


def shares(queries: int, back: int, rounds: int, rate: float) -> list[int]:
    """The labels of each round, which with `back` queries for each walk make up `queries`; no rounds where there is no room for one."""
    rounds = max(1, min(rounds, queries // (8 * back)))
    labels = queries - rounds * back
    if labels < 1:
        return []
    weights = [rate ** (-2 * i / 3) for i in range(rounds)]
    counts = [max(1, int(labels * weight / sum(weights))) for weight in weights]
    return [*counts[:-1], labels - sum(counts[:-1])]


def waves(x: Tensor, count: int, share: float) -> Tensor:
    """Gaussian directions (B,count,C,H,W) of root mean square length one, of the lowest `share` of the frequencies of each axis."""
    if share >= 1:
        return torch.randn(len(x), count, *x.shape[1:], device=x.device) / math.sqrt(x[0].numel())
    rows, columns = (cosines(size, max(1, round(share * size)), x) for size in x.shape[2:])
    weights = torch.randn(len(x), count, x.shape[1], len(rows), len(columns), device=x.device)
    drawn: Tensor = rows.T @ weights @ columns
    return drawn / math.sqrt(weights[0, 0].numel())


def cosines(size: int, count: int, like: Tensor) -> Tensor:
    """The first `count` vectors (count,size) of the orthonormal cosine basis."""
    places, order = (
        torch.arange(size, device=like.device) + 0.5,
        torch.arange(count, device=like.device).unsqueeze(1),
    )
    basis = torch.cos(math.pi / size * places * order) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis
