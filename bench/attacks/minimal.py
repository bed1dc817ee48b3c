"""White-box attacks that look for the nearest misclassified point, and report how far it lies.

On a deterministic defence an example leaves when its point is found (`deepfool`) or lies inside the
ball (`cw`). The point is then drawn towards the image as long as it stays misclassified. Each
attack also gives the point in the same direction at distance eps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attacks.adam import Adam
from bench.attacks.decision import bisect, move_to_eps
from bench.attacks.losses import margins, mean_gradient, zero_nonfinite
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
    """Steps to the nearest plane between the label and another class.

    Each class is linearised where the walk has arrived. The `targets` wrong classes with the
    highest logits are looked at. The walk goes `overshoot` beyond the planes, relative to its
    length, and takes no part in coordinates that the box blocks.

    On a stochastic defence every example takes all of the steps, each to the plane of one draw.
    The point found is the mean of the second half of the steps.

    Returns the point found, and the one in its direction at distance eps (2,B,C,H,W).

    Moosavi-Dezfooli et al. 2016, arXiv:1511.04599.
    """
    points = x.clone()  # (B,C,H,W)
    mean = torch.zeros_like(x)  # of the second half of the steps
    fooled = torch.zeros_like(y, dtype=torch.bool)
    rows = torch.arange(len(x), device=x.device)  # (R,), which are not misclassified yet
    for i in range(steps):
        planes = linearise(model, points[rows], y[rows], targets)
        step = step_to_plane(planes, points[rows], threat.norm)
        before = (points[rows] - x[rows]) / (1 + overshoot)
        walked = (x[rows] + (1 + overshoot) * (before + step)).clamp(0, 1)
        if model.stochastic:
            points = walked
            if i >= steps // 2:
                mean += walked / (steps - steps // 2)
            continue
        fooled[rows[planes.wrong]] = True
        points[rows[~planes.wrong]] = walked[~planes.wrong]
        rows = rows[~planes.wrong]
        if not len(rows):
            break
    if model.stochastic:
        return nearest_and_at_eps(model, x, y, mean, threat, fooled)
    if len(rows):
        fooled[rows] = margins(model, points[rows].unsqueeze(1), y[rows]).squeeze(1) > 0
    return nearest_and_at_eps(model, x, y, points, threat, fooled)


@dataclass(frozen=True)
class Planes:
    """The linearised boundaries between the label and the T highest wrong classes."""

    gaps: Tensor  # (B,T), the wrong class's logit less that of the label
    grads: Tensor  # (B,T,C,H,W), of the gaps
    wrong: Tensor  # (B,), who is misclassified


def linearise(model: Target, x: Tensor, y: Tensor, targets: int) -> Planes:
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)  # (B,K)
        ranked = logits.detach().nan_to_num(nan=-torch.inf).scatter(1, y.unsqueeze(1), -torch.inf)
        classes = ranked.topk(min(targets, logits.shape[1] - 1), dim=1)[1]  # (B,T)
        gaps = logits.gather(1, classes) - logits.gather(1, y.unsqueeze(1))  # (B,T)
        grads = [gradient_or_zero(gap, leaf) for gap in gaps.unbind(1)]
    return Planes(gaps.detach(), torch.stack(grads, 1), margin(logits.detach(), y) > 0)


def gradient_or_zero(gap: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of `gap` (B,); zero where it is not finite or the graph ends before `leaf`."""
    if not gap.requires_grad:
        return torch.zeros_like(leaf)
    (grad,) = torch.autograd.grad(gap.sum(), leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else zero_nonfinite(grad)


def step_to_plane(planes: Planes, points: Tensor, norm: str) -> Tensor:
    """The shortest step (B,C,H,W) from the points onto one of their planes; zero without one.

    Where the point is misclassified, it leads to the most violated plane.
    """
    grads = [free(grad, points) for grad in planes.grads.unbind(1)]
    directions = torch.stack([NORMS[norm].steepest(grad) for grad in grads], 1)  # (B,T,C,H,W)
    rates = (torch.stack(grads, 1) * directions).flatten(2).sum(2)  # (B,T)
    lengths = (-planes.gaps / rates).nan_to_num(torch.inf, torch.inf, -torch.inf)
    length, nearest = lengths.min(1)  # (B,)
    direction = directions[torch.arange(len(points), device=points.device), nearest]
    return per_example(torch.where(length.isfinite(), length, 0), points) * direction


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
    """Adam on the squared distance plus a constant times what the margin lacks to `confidence`.

    The images are written as tanh. Each example has a constant of its own. It begins at `constant`
    and is ten times as large after each search of `steps` steps that finds nothing. Then it lies
    halfway between the largest that found nothing and the least that found something. There are
    `searches` searches.

    In each search the learning rate decays from `rate` to zero, as Adam would circle the boundary
    otherwise. That allows to begin with longer steps than the paper's. On a stochastic defence
    each step takes `eot` draws. What counts there is the running mean of their margins over about
    ten steps.

    Returns the nearest point found, and that one and the last point at distance eps in their
    directions (3,B,C,H,W).

    Carlini and Wagner 2017, arXiv:1608.04644.
    """
    search = CarliniWagner(model, x, y, float(threat.eps), confidence, eot)
    weight = torch.full_like(search.radius, constant)  # (B,), the constant of each example
    low = torch.zeros_like(weight)  # the largest constant that found nothing
    high = torch.full_like(weight, torch.inf)  # the least constant that found something
    for _ in range(searches):
        hit = search.run(weight, steps, rate)  # (B,)
        high = torch.where(hit, torch.minimum(high, weight), high)
        low = torch.where(hit, low, weight)
        weight = torch.where(high.isfinite(), (low + high) / 2, 10 * weight)
    # drawn towards the image, a point would lose its confidence
    fooled = search.radius.isfinite() & (confidence <= 0)
    nearest = nearest_and_at_eps(model, x, y, search.best, threat, fooled)
    last = move_to_eps(search.last, x, threat.norm, search.eps)
    return torch.cat([nearest, last.unsqueeze(0)])


class CarliniWagner:
    """The searches of `cw`, and what they have found: the best points and their distances."""

    def __init__(
        self, model: Target, x: Tensor, y: Tensor, eps: float, confidence: float, eot: int
    ) -> None:
        self.model = model
        self.x = x  # (B,C,H,W)
        self.y = y  # (B,)
        self.eps = eps
        self.confidence = confidence
        self.draws = eot if model.stochastic else 1
        self.best = x.clone()  # (B,C,H,W), the nearest misclassified points
        self.last = x.clone()  # (B,C,H,W)
        self.radius = torch.full((len(x),), torch.inf, device=x.device)  # of the best points
        if not model.stochastic:
            self.radius[margins(model, x.unsqueeze(1), y).squeeze(1) > 0] = 0.0

    def run(self, weight: Tensor, steps: int, rate: float) -> Tensor:
        """One search from the images with the constants `weight` (B,); which it fooled (B,)."""
        hit = torch.zeros_like(self.y, dtype=torch.bool)
        running_margin = torch.zeros_like(self.radius)
        w = torch.atanh((2 * self.x - 1) * (1 - 1e-3))  # (B,C,H,W), the images are (tanh(w)+1)/2
        adam = Adam(self.x)
        rows = self.unfinished(torch.arange(len(self.x), device=self.x.device))  # (R,)
        for i in range(1, steps + 1):
            if not len(rows):
                break
            tanh = w[rows].tanh()
            points = (tanh + 1) / 2  # (R,C,H,W)
            margin_grad, _, new = mean_gradient(
                self.model, points, self.y[rows], margin, self.draws
            )
            if self.model.stochastic and i > 1:
                new = 0.9 * running_margin[rows] + 0.1 * new
            running_margin[rows] = new
            wrong = (new > 0) & (new >= self.confidence)  # (R,)
            self.record(rows, points, wrong)
            # Adam's first steps are as long for a constant that is too small
            hit[rows[wrong]] = i > steps // 2

            pull = per_example(weight[rows] * (new < self.confidence), self.x) * margin_grad
            grad = (2 * (points - self.x[rows]) - pull) * (1 - tanh**2) / 2
            decayed = rate * (1 + math.cos(math.pi * (i - 1) / steps)) / 2
            w[rows] -= adam.step(i, rows, grad, decayed)
            rows = self.unfinished(rows)
        return hit

    def record(self, rows: Tensor, points: Tensor, wrong: Tensor) -> None:
        distance = NORMS["l2"].distance(points - self.x[rows])  # (R,)
        nearer = wrong & (distance < self.radius[rows])
        self.best[rows[nearer]] = points[nearer]
        self.radius[rows[nearer]] = distance[nearer]
        self.last[rows] = points

    def unfinished(self, rows: Tensor) -> Tensor:
        """Of the rows those without a point inside the ball; all on a stochastic defence."""
        return rows[(self.radius[rows] > self.eps) | self.model.stochastic]


def nearest_and_at_eps(
    model: Target, x: Tensor, y: Tensor, points: Tensor, threat: ThreatModel, fooled: Tensor
) -> Tensor:
    """The points (B,C,H,W), and those in their directions at distance eps (2,B,C,H,W).

    On a deterministic defence the points that are `fooled` (B,) are drawn towards the image first.
    """
    if not model.stochastic:
        points = bisect(model, x, y, points, norm=threat.norm, active=fooled, halvings=HALVINGS)
    return torch.stack([points, move_to_eps(points, x, threat.norm, float(threat.eps))])
