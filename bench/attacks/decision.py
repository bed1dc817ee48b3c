"""Attacks that see the predicted label only.

They walk along the boundary towards the image until they are inside the ball. A stochastic defence
answers each query with the labels of `eot` draws, each of them counted, and the attacks believe the
majority.

They are not those of foolbox. Its Boundary and HopSkipJump attacks raise for the whole batch where
one answer changes between two calls, as a stochastic defence's do. They raise too where one image
has no adversarial start. Its Boundary attack knows l2 only. Its HopSkipJump normalises the
estimated gradient over the whole batch, so that the steps of each example shrink with the number
of its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.attacks.draws import draw_margins
from bench.attacks.losses import margins, rows_per_query
from bench.judging.norms import NORMS, per_example
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

BISECTIONS = 10  # queries from the start to the boundary in `boundary`
GRID = 10  # step sizes that `hopskipjump` tries at once, each half the one before
STARTS = 10  # noise images tried where no other image of the batch will do
START_QUERIES = 1 + STARTS + BISECTIONS  # the most that `boundary` queries before its walk


@attack(
    "boundary",
    norms={"linf", "l2"},
    access="decision",
    family="decision",
    minimum_norm=True,
    calls=lambda knobs, stochastic: (
        (2 * knobs["steps"] + START_QUERIES) * (knobs["eot"] if stochastic else 1)
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
    """A random walk on the misclassified side: a step on the sphere, then one towards the image.

    The sphere is that around the image. Each step is kept if the point is still misclassified.
    `spherical` and `source` are the first lengths of the two steps, relative to the distance. Each
    length adapts to its own success rate. In linf the sphere is that of linf, and the steps on it
    set squares of pixels to its corners. `spherical` is then their share of the pixels.

    It takes at most 2*steps queries per example, and 11 to 21 more to find the start. On a
    deterministic defence an example leaves when it is inside the ball. On a stochastic one each
    query is the majority of `eot` draws, each of them counted.

    Returns the point found, and the one in its direction at distance eps (2,B,C,H,W).

    Brendel et al. 2018, arXiv:1712.04248.
    """
    draws = eot if model.stochastic else 1
    walk = BoundaryWalk(model, x, y, threat, draws=draws, halvings=BISECTIONS)
    random_step = step_on_l2_sphere if threat.norm == "l2" else step_on_linf_sphere
    orthogonal = torch.full((len(x),), spherical, device=x.device)
    inward = torch.full((len(x),), source, device=x.device)
    for _ in range(steps):
        rows = walk.unfinished()  # (R,)
        if not len(rows):
            break
        centre = x[rows]
        points = walk.points[rows]  # (R,C,H,W)
        radius = per_example(walk.distance(rows), points)

        moved = random_step(points - centre, radius, orthogonal[rows])
        points, kept = keep_wrong(model, (centre + moved).clamp(0, 1), points, y[rows], draws)
        orthogonal[rows] = (orthogonal[rows] * (0.1 * (kept - 0.35)).exp()).clamp(1e-6, 1)

        shorter = radius * (1 - per_example(inward[rows], points))
        nearer = centre + project_to_radius(points - centre, shorter, threat.norm)
        points, kept = keep_wrong(model, nearer, points, y[rows], draws)
        inward[rows] = (inward[rows] * (0.1 * (kept - 0.175)).exp()).clamp(1e-6, 0.5)
        walk.points[rows] = points
    return torch.stack([walk.points, walk.at_eps(walk.points)])


def step_on_l2_sphere(delta: Tensor, radius: Tensor, length: Tensor) -> Tensor:
    """A random step on the l2 sphere, of `length` (B,) relative to its radius (B,1,1,1)."""
    away = delta / radius.clamp_min(1e-12)
    noise = torch.randn_like(delta)
    noise = noise - per_example((noise * away).flatten(1).sum(1), delta) * away
    moved = away + per_example(length, delta) * NORMS["l2"].steepest(noise)
    return radius * NORMS["l2"].steepest(moved)


def step_on_linf_sphere(delta: Tensor, radius: Tensor, share: Tensor) -> Tensor:
    """A random step on the linf sphere, of a square with `share` (B,) of the pixels.

    The square goes to plus or minus the radius (B,1,1,1), channel by channel.
    """
    batch, channels, height, width = delta.shape
    device = delta.device
    side = (share * height * width).sqrt().round().clamp(1, min(height, width)).view(-1, 1)
    top = (torch.rand(batch, 1, device=device) * (height - side + 1)).floor()  # (B,1)
    left = (torch.rand(batch, 1, device=device) * (width - side + 1)).floor()
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    in_rows = ((rows >= top) & (rows < top + side)).view(-1, 1, height, 1)
    in_columns = ((columns >= left) & (columns < left + side)).view(-1, 1, 1, width)
    sign = torch.randint(2, (batch, channels, 1, 1), device=device) * 2 - 1
    return torch.where(in_rows & in_columns, sign * radius, delta)


def project_to_radius(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The perturbation projected onto the ball of each example's own `radius` (B,1,1,1)."""
    if norm == "linf":
        return delta.clamp(-radius, radius)
    length = per_example(NORMS[norm].distance(delta), delta).clamp_min(1e-12)
    return delta * (radius / length).clamp_max(1)


def move_to_eps(points: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """The point at distance eps in the direction of each point (B,C,H,W).

    A point on the boundary is wrong by no more than rounding, or half of the time.
    """
    delta = points - x
    scale = eps / NORMS[norm].distance(delta).clamp_min(1e-12)
    return (x + delta * per_example(scale, x)).clamp(0, 1)


def keep_wrong(
    model: Target, proposal: Tensor, points: Tensor, y: Tensor, draws: int
) -> tuple[Tensor, Tensor]:
    """The proposal where it is misclassified, else the points; and whether it is, as 0 and 1."""
    wrong = is_misclassified(model, proposal.unsqueeze(1), y, draws).squeeze(1)
    return torch.where(per_example(wrong, points), proposal, points), wrong.to(points.dtype)


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
    """Steps along an estimated normal of the boundary, each followed by a bisection back to it.

    The normal is estimated from labels. The i-th estimate takes `initial`*sqrt(i) queries, 10000
    at most. The step size is the largest of ten, each half the one before, that stays
    misclassified.

    It takes exactly `queries` queries per example. On a deterministic defence an example leaves
    when it is inside the ball. On a stochastic one `queries` counts draws. Start, steps and
    bisections believe the majority of `eot` of them, or of as many as leave room for a step. The
    estimate takes one each.

    Returns the nearest point found, the one in its direction at distance eps, and the last point
    (3,B,C,H,W).

    Chen et al. 2020, arXiv:1904.02144.
    """
    values = x[0].numel()
    halvings = min(20, math.ceil(math.log2(values) * (2 if threat.norm == "linf" else 1.5)))
    draws = 1
    if model.stochastic:
        draws = max(1, min(eot, queries // (START_QUERIES + GRID + 2 * halvings)))
    walk = BoundaryWalk(model, x, y, threat, draws=draws, halvings=halvings)
    step_queries = (GRID + halvings) * draws
    counts = plan_estimates(queries - walk.queries, step_queries, initial)
    for i, count in enumerate(counts, 1):
        rows = walk.unfinished()  # (R,)
        if not len(rows):
            break
        radius = walk.distance(rows)  # (R,)
        delta = radius / values if i > 1 else torch.full_like(radius, 0.1)
        directions = partial(unit_directions, norm=threat.norm)
        normal = estimate_normal(model, walk.points[rows], y[rows], delta, count, directions)
        uphill = NORMS[threat.norm].steepest(normal)  # (R,C,H,W)
        halves = 0.5 ** torch.arange(GRID, device=x.device)
        lengths = (radius / math.sqrt(i)).unsqueeze(1) * halves  # (R,GRID)
        steps = lengths[:, :, None, None, None] * uphill.unsqueeze(1)
        walk.advance(rows, (walk.points[rows].unsqueeze(1) + steps).clamp(0, 1))
    return torch.stack([walk.best, walk.at_eps(walk.best), walk.points])


def plan_estimates(queries: int, step_queries: int, initial: int) -> list[int]:
    """The labels of each estimate of `hopskipjump`.

    Together with `step_queries` for each step they make up `queries`.
    """
    counts: list[int] = []
    left = queries
    while left > step_queries:
        count = min(int(initial * math.sqrt(len(counts) + 1)), 10000, left - step_queries)
        left -= count + step_queries
        if left <= step_queries + initial // 2:  # too little for one more: give it to this one
            count += left
            left = 0
        counts.append(count)
    return counts


class BoundaryWalk:
    """A walk on the misclassified side: the points, and the nearest one of each example.

    It begins at a misclassified point, drawn to the boundary by `halvings` bisections. A query is
    the majority of `draws` draws. `queries` are those that the start took, in draws.
    """

    def __init__(
        self,
        model: Target,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        *,
        draws: int,
        halvings: int,
    ) -> None:
        self.model = model
        self.x = x  # (B,C,H,W)
        self.y = y  # (B,)
        self.norm = threat.norm
        self.eps = float(threat.eps)
        self.draws = draws
        self.halvings = halvings
        points, self.has_point, used = find_start(model, x, y, threat.norm, draws)
        self.points = self.bisect(x, y, points, self.has_point)  # (B,C,H,W)
        self.queries = (used + halvings) * draws
        self.best = self.points.clone()  # (B,C,H,W)
        self.best_radius = NORMS[self.norm].distance(self.points - x)  # (B,)

    def bisect(self, x: Tensor, y: Tensor, points: Tensor, active: Tensor) -> Tensor:
        return bisect(
            self.model,
            x,
            y,
            points,
            norm=self.norm,
            active=active,
            halvings=self.halvings,
            draws=self.draws,
        )

    def distance(self, rows: Tensor) -> Tensor:
        return NORMS[self.norm].distance(self.points[rows] - self.x[rows])

    def unfinished(self) -> Tensor:
        """The examples (R,) that have a point outside of the ball; a stochastic defence's stay."""
        outside = NORMS[self.norm].distance(self.points - self.x) > self.eps
        return (self.has_point & (outside | self.model.stochastic)).nonzero().squeeze(1)

    def advance(self, rows: Tensor, tries: Tensor) -> None:
        """Go to the first misclassified one of `tries` (R,P,C,H,W), then back to the boundary.

        Where none is misclassified, the walk stays where it is.
        """
        points = self.points[rows]
        wrong = is_misclassified(self.model, tries, self.y[rows], self.draws)  # (R,P)
        first = tries[torch.arange(len(rows), device=rows.device), wrong.int().argmax(1)]
        stepped = torch.where(per_example(wrong.any(1), points), first, points)
        everyone = torch.ones_like(rows, dtype=torch.bool)
        self.points[rows] = self.bisect(self.x[rows], self.y[rows], stepped, everyone)
        radius = NORMS[self.norm].distance(self.points - self.x)
        nearer = per_example(radius < self.best_radius, self.x)
        self.best = torch.where(nearer, self.points, self.best)
        self.best_radius = torch.minimum(radius, self.best_radius)

    def at_eps(self, points: Tensor) -> Tensor:
        return move_to_eps(points, self.x, self.norm, self.eps)


def estimate_normal(
    model: Target,
    points: Tensor,
    y: Tensor,
    delta: Tensor,
    count: int,
    directions: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """The direction (B,C,H,W) in which misclassification becomes more likely.

    It takes `count` labels at `delta` (B,) times random directions. `directions(points, some)` ->
    (B,some,C,H,W) draws them.
    """
    signed_sum = torch.zeros_like(points)
    plain_sum = torch.zeros_like(points)
    sign_sum = torch.zeros_like(delta)
    size = delta[:, None, None, None, None]
    done = 0
    while done < count:
        some = min(count - done, max(1, rows_per_query(points) // len(points)))
        here = points.unsqueeze(1)
        queried = (here + size * directions(points, some)).clamp(0, 1)  # (B,some,C,H,W)
        moved = (queried - here) / (delta + 1e-8)[:, None, None, None, None]
        sign = (margins(model, queried, y) >= 0).to(points.dtype) * 2 - 1  # (B,some)
        signed_sum += (sign[:, :, None, None, None] * moved).sum(1)
        plain_sum += moved.sum(1)
        sign_sum += sign.sum(1)
        done += some
    mean_sign = sign_sum / count
    # a constant label says nothing about a baseline
    baseline = torch.where(mean_sign.abs() == 1, 0, mean_sign)
    return signed_sum - per_example(baseline, points) * plain_sum


def unit_directions(x: Tensor, count: int, norm: str) -> Tensor:
    """Directions (B,count,C,H,W) of length one, uniform for l2, else of uniform values."""
    shape = (len(x), count, *x.shape[1:])
    if norm == "l2":
        directions = torch.randn(shape, device=x.device)
    else:
        directions = 2 * torch.rand(shape, device=x.device) - 1
    length: Tensor = directions.flatten(2).norm(dim=2).clamp_min(1e-12)
    return directions / length[:, :, None, None, None]


def is_misclassified(model: Target, images: Tensor, y: Tensor, draws: int) -> Tensor:
    """Whether the labels of over half of the `draws` are wrong (B,P), for images (B,P,C,H,W).

    An answer without a label counts as wrong.
    """
    return (draw_margins(model, images, y, draws) < 0).sum(2) * 2 < draws


def find_start(
    model: Target, x: Tensor, y: Tensor, norm: str, draws: int = 1
) -> tuple[Tensor, Tensor, int]:
    """A misclassified point for each example; the image itself where none is found.

    It is the image itself, the nearest image of the batch with another label, or noise (uniform,
    or black and white). Returns the points (B,C,H,W), whether there is one (B,), and the queries
    per example, of `draws` draws each, that it took.
    """
    with torch.no_grad():
        answers = model.draws(x, draws) if draws > 1 else model(x).unsqueeze(1)
        votes = answers.sum(1)  # (B,K)
    # (B,B): the images that would be misclassified if they had the label of the row
    usable = votes.T[y] * 2 < draws
    wrong = usable.diagonal()
    distance = torch.stack([NORMS[norm].distance(x - image) for image in x])  # (B,B)
    least, nearest = distance.masked_fill(~usable, torch.inf).min(1)
    has_point = wrong | least.isfinite()
    points = torch.where(per_example(wrong | ~least.isfinite(), x), x, x[nearest])
    used = 1
    while used <= STARTS and not has_point.all():
        rows = (~has_point).nonzero().squeeze(1)
        noise = torch.rand_like(x[rows])
        if used % 2:
            noise = noise.round()
        wrong = is_misclassified(model, noise.unsqueeze(1), y[rows], draws).squeeze(1)
        points[rows[wrong]] = noise[wrong]
        has_point[rows[wrong]] = True
        used += 1
    return points, has_point, used


def bisect(
    model: Target,
    x: Tensor,
    y: Tensor,
    points: Tensor,
    *,
    norm: str,
    active: Tensor,
    halvings: int,
    draws: int = 1,
) -> Tensor:
    """The nearest misclassified points (B,C,H,W) on the paths from `points` to `x`.

    The paths are those of the norm's projections. Each example that is `active` (B,) takes
    `halvings` queries, of `draws` draws each.
    """
    rows = active.nonzero().squeeze(1)  # (R,)
    if not len(rows):
        return points.clone()
    centre = x[rows]
    labels = y[rows]
    delta = points[rows] - centre
    high = per_example(NORMS[norm].distance(delta), x)  # (R,1,1,1)
    low = torch.zeros_like(high)
    nearest = points[rows]
    for _ in range(halvings):
        middle = (low + high) / 2
        guess = centre + project_to_radius(delta, middle, norm)
        wrong = per_example(
            is_misclassified(model, guess.unsqueeze(1), labels, draws).squeeze(1), x
        )
        nearest = torch.where(wrong, guess, nearest)
        high = torch.where(wrong, middle, high)
        low = torch.where(wrong, low, middle)
    bisected = points.clone()
    bisected[rows] = nearest
    return bisected
