"""GeoDA: where the boundary is flat, its normal says where the nearest misclassified point lies."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from bench.attacks.decision import GRID, STARTS, BoundaryWalk, estimate_normal
from bench.judging.norms import NORMS, free
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
    """Walks from the image along a normal of the boundary, to where it estimates the next normal.

    Each of `rounds` normals is the mean of Gaussian directions, signed by the label behind each.
    Their root mean square length is `spread` relative to the l2 distance. On a stochastic defence
    they are ten times as long, as labels next to each other tell less than chance there. Each
    normal takes `rate`^(-2/3) times as many labels as the one before. The directions are of the
    lowest `frequencies` of the cosine transform: that share of each axis, 1 for all of them.

    The walk follows the norm's steepest direction along the normal. Of ten lengths, up to twice
    the last distance, it takes the least that is misclassified, and bisects from there.

    It takes exactly `queries` queries per example, in fewer rounds where over an eighth would go
    to walks. On a deterministic defence an example leaves when it is inside the ball. On a
    stochastic one `queries` counts draws. Start, walks and bisections believe the majority of
    `eot` of them, or of as many as leave room for labels. The normals take one each.

    Returns the nearest point found, the one in its direction at distance eps, and that of the last
    point (3,B,C,H,W).

    Rahmati et al. 2020, arXiv:2003.06468.
    """
    norm = NORMS[threat.norm]
    affordable = (queries - 1 - STARTS - GRID) // 4
    halvings = max(1, min(20, math.ceil(2 * math.log2(x[0].numel())), affordable))
    draws = 1
    if model.stochastic:
        draws = max(1, min(eot, queries // (2 * (1 + STARTS + GRID + 2 * halvings))))
    walk = BoundaryWalk(model, x, y, threat, draws=draws, halvings=halvings)
    length = spread * (10 if model.stochastic else 1)
    # where a majority against the image itself was luck, the distance is zero and says nothing
    least = walk.eps if model.stochastic else 0
    strides = torch.arange(1, GRID + 1, device=x.device) * (2 / GRID)
    walk_queries = (GRID + halvings) * draws
    for count in split_queries(queries - walk.queries, walk_queries, rounds, rate):
        rows = walk.unfinished()  # (R,)
        if not len(rows):
            break
        centre = x[rows]
        points = walk.points[rows]  # (R,C,H,W)
        delta = length * NORMS["l2"].distance(points - centre).clamp_min(least)
        directions = partial(waves, share=frequencies)
        normal = estimate_normal(model, points, y[rows], delta, count, directions)
        ahead = norm.steepest(free(normal, centre))  # (R,C,H,W)
        radius = walk.distance(rows).clamp_min(least)
        lengths = radius.unsqueeze(1) * strides  # (R,GRID)
        steps = lengths[:, :, None, None, None] * ahead.unsqueeze(1)
        walk.advance(rows, (centre.unsqueeze(1) + steps).clamp(0, 1))
    return torch.stack([walk.best, walk.at_eps(walk.best), walk.at_eps(walk.points)])


def split_queries(queries: int, walk_queries: int, rounds: int, rate: float) -> list[int]:
    """The labels of each round.

    With `walk_queries` for each walk they make up `queries`. There are no rounds where there is no
    room for one.
    """
    rounds = max(1, min(rounds, queries // (8 * walk_queries)))
    labels = queries - rounds * walk_queries
    if labels < 1:
        return []
    weights = [rate ** (-2 * i / 3) for i in range(rounds)]
    counts = [max(1, int(labels * weight / sum(weights))) for weight in weights]
    return [*counts[:-1], labels - sum(counts[:-1])]


def waves(x: Tensor, count: int, share: float) -> Tensor:
    """Gaussian directions (B,count,C,H,W) of root mean square length one.

    They are of the lowest `share` of the frequencies of each axis.
    """
    batch, channels, height, width = x.shape
    if share >= 1:
        noise = torch.randn(batch, count, channels, height, width, device=x.device)
        return noise / math.sqrt(x[0].numel())
    rows = cosines(height, max(1, round(share * height)), x)  # (h,H)
    columns = cosines(width, max(1, round(share * width)), x)  # (w,W)
    weights = torch.randn(batch, count, channels, len(rows), len(columns), device=x.device)
    mixed: Tensor = rows.T @ weights @ columns
    return mixed / math.sqrt(weights[0, 0].numel())


def cosines(size: int, count: int, like: Tensor) -> Tensor:
    """The first `count` vectors (count,size) of the orthonormal cosine basis."""
    places = torch.arange(size, device=like.device) + 0.5
    order = torch.arange(count, device=like.device).unsqueeze(1)
    basis = torch.cos(math.pi / size * places * order) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis
