"""Attacks that see the predicted label only. They walk along the boundary towards the image until they are inside the ball.

Ours, not those of foolbox: its Boundary and HopSkipJump attacks raise for the whole batch where one answer changes between two calls,
as a stochastic defence's do, or where one image has no adversarial start; its Boundary attack knows l2 only, and its HopSkipJump
normalises the estimated gradient over the whole batch, so that the steps of each example shrink with the number of its neighbours.
A stochastic defence answers each query with the labels of `eot` draws, each of them counted, and they believe the majority.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.attacks.draws import draw_margins
from bench.attacks.losses import margins, rows_at_once
from bench.judging.norms import NORMS, per_example
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

BISECTIONS = 10  # queries from the start to the boundary in `boundary`
GRID = 10  # step sizes that `hopskipjump` tries at once, each half the one before
STARTS = 10  # noise images tried where no other image of the batch will do
MEETING = 1 + STARTS + BISECTIONS  # the most queries that `boundary` asks before its walk


@attack(
    "boundary",
    norms={"linf", "l2"},
    access="decision",
    family="decision",
    minimum_norm=True,
    calls=lambda knobs, stochastic: (
        (2 * knobs["steps"] + MEETING) * (knobs["eot"] if stochastic else 1)
    ),
    added_later={"eot"},
)
def boundary(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 25000,
    spherical: float = 0.01,
    source: float = 0.01,
    eot: int = 1,
) -> Tensor:
    """A random walk on the misclassified side: a step on the sphere around the image, then one towards it, each kept if still misclassified.

    `spherical` and `source` are the first lengths of the two, relative to the distance; each adapts to its own success rate. At most
    2*steps queries per example, 11 to 21 more to find the start; on a deterministic defence an example leaves when it is inside
    the ball. On a stochastic one each query is the majority of `eot` draws, each of them counted. In linf the sphere is that of linf, and
    the steps on it set squares of pixels to its corners, `spherical` being their share.
    Returns the point found, and the one in its direction at distance eps (2,B,C,H,W). Brendel et al. 2018, arXiv:1712.04248.
    """
    norm, eps, draws = NORMS[threat.norm], float(threat.eps), eot if model.stochastic else 1
    z, found, _ = start(model, x, y, threat.norm, draws)
    z = bisect(model, x, y, z, threat.norm, found, BISECTIONS, draws)
    around, inward = (
        torch.full((len(x),), first, device=x.device) for first in (spherical, source)
    )
    for _ in range(steps):
        rows = (found & ((norm.distance(z - x) > eps) | model.stochastic)).nonzero().squeeze(1)
        if not len(rows):
            break
        centre, here = x[rows], z[rows]
        radius = per_example(norm.distance(here - centre), here)
        moved = (turn if threat.norm == "l2" else patch)(here - centre, radius, around[rows])
        here, kept = keep(model, (centre + moved).clamp(0, 1), here, y[rows], draws)
        around[rows] = (around[rows] * (0.1 * (kept - 0.35)).exp()).clamp(1e-6, 1)
        nearer = shrink(here - centre, radius * (1 - per_example(inward[rows], here)), threat.norm)
        here, kept = keep(model, centre + nearer, here, y[rows], draws)
        inward[rows] = (inward[rows] * (0.1 * (kept - 0.175)).exp()).clamp(1e-6, 0.5)
        z[rows] = here
    return torch.stack([z, reach(z, x, threat.norm, eps)])


def turn(delta: Tensor, radius: Tensor, length: Tensor) -> Tensor:
    """A random step on the l2 sphere, of `length` (B,) relative to its radius (B,1,1,1)."""
    away = delta / radius.clamp_min(1e-12)
    noise = torch.randn_like(delta)
    noise = noise - per_example((noise * away).flatten(1).sum(1), delta) * away
    moved = away + per_example(length, delta) * NORMS["l2"].steepest(noise)
    return radius * NORMS["l2"].steepest(moved)


def patch(delta: Tensor, radius: Tensor, share: Tensor) -> Tensor:
    """A random step on the linf sphere: a square with `share` (B,) of the pixels goes to plus or minus the radius, channel by channel."""
    batch, channels, height, width = delta.shape
    side = (share * height * width).sqrt().round().clamp(1, min(height, width)).view(-1, 1)
    top, left = (
        (torch.rand(batch, 1, device=delta.device) * (size - side + 1)).floor()
        for size in (height, width)
    )
    rows, columns = (torch.arange(size, device=delta.device) for size in (height, width))
    mask = ((rows >= top) & (rows < top + side)).view(-1, 1, height, 1) & (
        (columns >= left) & (columns < left + side)
    ).view(-1, 1, 1, width)
    sign = torch.randint(2, (batch, channels, 1, 1), device=delta.device) * 2 - 1
    return torch.where(mask, sign * radius, delta)


def shrink(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The perturbation projected onto the ball of each example's own `radius` (B,1,1,1)."""
    if norm == "linf":
        return delta.clamp(-radius, radius)
    return delta * (
        radius / per_example(NORMS[norm].distance(delta), delta).clamp_min(1e-12)
    ).clamp_max(1)


def reach(z: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """The point at distance eps in the direction of `z`: a point on the boundary is wrong by no more than rounding, or half of the time."""
    delta = z - x
    return (x + delta * per_example(eps / NORMS[norm].distance(delta).clamp_min(1e-12), x)).clamp(
        0, 1
    )


def keep(
    model: Target, proposal: Tensor, here: Tensor, y: Tensor, draws: int
) -> tuple[Tensor, Tensor]:
    """The proposal where it is misclassified, and whether it is, as 0 and 1."""
    wrong = fooled(model, proposal.unsqueeze(1), y, draws).squeeze(1)
    return torch.where(per_example(wrong, here), proposal, here), wrong.to(here.dtype)


@attack(
    "hopskipjump",
    norms={"linf", "l2"},
    access="decision",
    family="decision",
    minimum_norm=True,
    calls=lambda knobs, stochastic: knobs["queries"],
    added_later={"eot"},
)
def hopskipjump(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    queries: int = 25000,
    initial: int = 100,
    eot: int = 1,
) -> Tensor:
    """Steps along a normal of the boundary estimated from labels, each followed by a bisection back to it.

    The i-th estimate asks `initial`*sqrt(i) queries, 10000 at most; the step size is the largest of ten, each half the one before, that
    stays misclassified. Exactly `queries` queries per example; on a deterministic defence an example leaves when it is inside the ball.
    On a stochastic one `queries` counts draws: start, steps and bisections believe the majority of `eot` of them, or of
    as many as leave room for a step, the estimate one each.
    Returns the nearest point found, the one in its direction at distance eps, and the last point (3,B,C,H,W).
    Chen et al. 2020, arXiv:1904.02144.
    """
    norm, eps, values = NORMS[threat.norm], float(threat.eps), x[0].numel()
    halvings = min(20, math.ceil(math.log2(values) * (2 if threat.norm == "linf" else 1.5)))
    draws = max(1, min(eot, queries // (MEETING + GRID + 2 * halvings))) if model.stochastic else 1
    z, found, used = start(model, x, y, threat.norm, draws)
    z = bisect(model, x, y, z, threat.norm, found, halvings, draws)
    left, i, back = queries - (used + halvings) * draws, 0, (GRID + halvings) * draws
    best, best_radius, ways = z.clone(), norm.distance(z - x), partial(sphere, norm=threat.norm)
    while left > back:
        i += 1
        count = min(int(initial * math.sqrt(i)), 10000, left - back)
        left -= count + back
        if left <= back + initial // 2:  # too little for one more estimate: give it to this one
            count, left = count + left, 0
        rows = (found & ((norm.distance(z - x) > eps) | model.stochastic)).nonzero().squeeze(1)
        if not len(rows):
            break
        centre, here, names = x[rows], z[rows], y[rows]
        radius = norm.distance(here - centre)
        uphill = norm.steepest(
            normal(
                model,
                here,
                names,
                radius / values if i > 1 else torch.full_like(radius, 0.1),
                count,
                ways,
            )
        )
        lengths = (radius / math.sqrt(i)).unsqueeze(1) * 0.5 ** torch.arange(GRID, device=x.device)
        tries = (here.unsqueeze(1) + lengths[:, :, None, None, None] * uphill.unsqueeze(1)).clamp(
            0, 1
        )
        wrong = fooled(model, tries, names, draws)
        first = wrong.int().argmax(1)  # the largest step that stays misclassified
        stepped = torch.where(
            per_example(wrong.any(1), here),
            tries[torch.arange(len(rows), device=x.device), first],
            here,
        )
        z[rows] = bisect(
            model,
            centre,
            names,
            stepped,
            threat.norm,
            torch.ones_like(names, dtype=torch.bool),
            halvings,
            draws,
        )
        radius = norm.distance(z - x)
        best = torch.where(per_example(radius < best_radius, x), z, best)
        best_radius = torch.minimum(radius, best_radius)
    return torch.stack([best, reach(best, x, threat.norm, eps), z])


def normal(
    model: Target,
    here: Tensor,
    y: Tensor,
    delta: Tensor,
    count: int,
    ways: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """The direction (B,C,H,W) in which misclassification becomes more likely, from `count` labels at `delta` (B,) times random directions.

    `ways(here, some)` -> (B,some,C,H,W) draws them.
    """
    total, labels, directions, done = (
        torch.zeros_like(here),
        torch.zeros_like(delta),
        torch.zeros_like(here),
        0,
    )
    while done < count:
        some = min(count - done, max(1, rows_at_once(here) // len(here)))
        asked = (here.unsqueeze(1) + delta[:, None, None, None, None] * ways(here, some)).clamp(
            0, 1
        )
        way = (asked - here.unsqueeze(1)) / (delta + 1e-8)[:, None, None, None, None]
        sign = (margins(model, asked, y) >= 0).to(here.dtype) * 2 - 1
        total += (sign[:, :, None, None, None] * way).sum(1)
        labels += sign.sum(1)
        directions += way.sum(1)
        done += some
    share = labels / count
    baseline = torch.where(
        share.abs() == 1, 0, share
    )  # a constant label says nothing about a baseline
    return total - per_example(baseline, here) * directions


def sphere(x: Tensor, count: int, norm: str) -> Tensor:
    """Directions (B,count,C,H,W) of length one, uniform for l2, else of uniform values."""
    shape = (len(x), count, *x.shape[1:])
    way = (
        torch.randn(shape, device=x.device)
        if norm == "l2"
        else 2 * torch.rand(shape, device=x.device) - 1
    )
    length: Tensor = way.flatten(2).norm(dim=2).clamp_min(1e-12)
    return way / length[:, :, None, None, None]


def fooled(model: Target, images: Tensor, y: Tensor, draws: int) -> Tensor:
    """Whether the labels of over half of the `draws` are wrong (B,P), of images (B,P,C,H,W); an answer without a label counts as wrong."""
    return (draw_margins(model, images, y, draws) < 0).sum(2) * 2 < draws


def start(
    model: Target, x: Tensor, y: Tensor, norm: str, draws: int = 1
) -> tuple[Tensor, Tensor, int]:
    """A misclassified point for each example: itself, the nearest image of the batch with another label, or noise (uniform, or black and white).

    Returns the points (B,C,H,W), whether there is one (B,), and the queries per example, of `draws` draws each, that it took. Without one
    it is the image.
    """
    with torch.no_grad():
        votes = (model.draws(x, draws) if draws > 1 else model(x).unsqueeze(1)).sum(1)
    passes = (
        votes.T[y] * 2 < draws
    )  # (B,B): the images that would be misclassified if they had the label of the row
    wrong = passes.diagonal()
    distance = torch.stack([NORMS[norm].distance(x - one) for one in x]).masked_fill(
        ~passes, torch.inf
    )
    least, nearest = distance.min(1)
    found = wrong | least.isfinite()
    z = torch.where(per_example(wrong | ~least.isfinite(), x), x, x[nearest])
    used = 1
    while used <= STARTS and not found.all():
        rows = (~found).nonzero().squeeze(1)
        guess = torch.rand_like(x[rows])
        guess = guess.round() if used % 2 else guess
        wrong = fooled(model, guess.unsqueeze(1), y[rows], draws).squeeze(1)
        z[rows[wrong]] = guess[wrong]
        found[rows[wrong]] = True
        used += 1
    return z, found, used


def bisect(
    model: Target,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    norm: str,
    active: Tensor,
    halvings: int,
    draws: int = 1,
) -> Tensor:
    """The nearest misclassified point on the path from `z` to `x` along the norm's projections.

    It asks `halvings` queries, of `draws` draws each, per example that is `active`.
    """
    rows = active.nonzero().squeeze(1)
    centre, names = x[rows], y[rows]
    delta = z[rows] - centre
    high = per_example(NORMS[norm].distance(delta), x)
    low, nearest = torch.zeros_like(high), z[rows]
    for _ in range(halvings if len(rows) else 0):
        middle = (low + high) / 2
        guess = centre + shrink(delta, middle, norm)
        wrong = per_example(fooled(model, guess.unsqueeze(1), names, draws).squeeze(1), x)
        nearest = torch.where(wrong, guess, nearest)
        high, low = torch.where(wrong, middle, high), torch.where(wrong, low, middle)
    out = z.clone()
    out[rows] = nearest
    return out
