"""The step sizes of APGD.

Croce & Hein 2020, arXiv:2003.01690; those of its form for l1: Croce & Hein 2021, arXiv:2103.01208.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.judging.norms import NORMS, per_example, to_ball

ALPHA = 0.75  # the weight of the new step, against one in the direction of the last
SHARE = 0.2  # in l1: the part of the coordinates that the first steps move


class Halving:
    """Step sizes (R,) for linf and l2: twice the radius, halved at some checkpoints.

    A step is halved if too few steps since the last checkpoint have raised the loss. It is halved
    too if the last checkpoint did not halve it and the highest loss is still the same. Where it
    is halved, the ascent goes back to its best iterate.
    """

    def __init__(self, x: Tensor, norm: str, radius: float, steps: int, rho: float) -> None:
        self.x = x
        self.norm = norm
        self.radius = radius
        self.rho = rho
        self.checkpoints = checkpoints(steps)
        self.last_checkpoint = 0
        self.size = x.new_full((len(x),), 2 * radius)
        self.halved = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.last_best_loss = x.new_full((len(x),), torch.nan)

    def move(self, i: int, rows: Tensor, x_adv: Tensor, previous: Tensor, grad: Tensor) -> Tensor:
        """The iterates (N,C,H,W) after the i-th step of `rows` (N,)."""
        x = self.x[rows]
        size = per_example(self.size[rows], grad)
        ahead = to_ball(x_adv + size * NORMS[self.norm].steepest(grad), x, self.norm, self.radius)
        if i == 1:
            return ahead
        with_momentum = x_adv + ALPHA * (ahead - x_adv) + (1 - ALPHA) * (x_adv - previous)
        return to_ball(with_momentum, x, self.norm, self.radius)

    def check(
        self, i: int, rows: Tensor, rises: Tensor, best_loss: Tensor, best_images: Tensor
    ) -> Tensor:
        """The rows that go back to their best iterate after step `i`."""
        if i not in self.checkpoints:
            return rows[:0]
        few_rises = rises[rows] < self.rho * (i - self.last_checkpoint)
        unchanged = ~self.halved[rows] & (best_loss[rows] == self.last_best_loss[rows])
        self.halved[rows] = few_rises | unchanged
        self.last_best_loss = best_loss.clone()
        self.last_checkpoint = i
        rises.zero_()
        back = rows[self.halved[rows]]
        self.size[back] /= 2
        return back


class Sparsity:
    """Step sizes (R,) for l1, and how many coordinates the best iterate has changed (R,).

    A step moves that number over 1.5. Where the number falls by over 5% between two checkpoints,
    the step is the radius again and the ascent goes back to its best iterate. Elsewhere the step
    shrinks, to a tenth of the radius at least.
    """

    def __init__(self, x: Tensor, x_adv: Tensor, radius: float, steps: int, fresh: bool) -> None:
        self.x = x
        self.radius = radius
        self.every = -(-steps // 25)
        self.size = x.new_full((len(x),), radius)
        changed = (x_adv != x).flatten(1).sum(1)
        first = 1.5 * SHARE * x[0].numel()
        self.changed = torch.where((changed == 0) | fresh, first, changed)

    def move(self, i: int, rows: Tensor, x_adv: Tensor, previous: Tensor, grad: Tensor) -> Tensor:
        """The iterates (N,C,H,W) after the i-th step of `rows` (N,)."""
        x = self.x[rows]
        flat = grad.flatten(1)
        count = (self.changed[rows] / 1.5).round().long().clamp(1, flat.shape[1])
        ordered = flat.abs().sort(dim=1, descending=True)[0]
        level = ordered.gather(1, count.unsqueeze(1) - 1)
        step = torch.where(flat.abs() >= level, flat.sign(), 0)
        step *= self.size[rows].unsqueeze(1) / step.abs().sum(1, keepdim=True).clamp_min(1)
        moved = project_l1_in_box(x_adv + step.view_as(x), x, self.radius)
        return to_ball(moved, x, "l1", self.radius)

    def check(
        self, i: int, rows: Tensor, rises: Tensor, best_loss: Tensor, best_images: Tensor
    ) -> Tensor:
        """The rows that go back to their best iterate after step `i`."""
        if i == 0 or i % self.every:
            return rows[:0]
        changed = (best_images[rows] != self.x[rows]).flatten(1).sum(1).to(self.changed)
        sparser = 20 * changed < 19 * self.changed[rows]
        shorter = (self.size[rows] / 1.5).clamp_min(self.radius / 10)
        self.size[rows] = torch.where(sparser, self.radius, shorter)
        self.changed[rows] = changed
        return rows[sparser]


def project_l1_in_box(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The point nearest to `x_adv` of those in the l1 ball around `x` and in the box.

    It is right up to rounding. Every change shrinks by the same amount, to no less than zero, and
    is then cut at the box. The amount at which their sum is eps lies between two bends, at which a
    change leaves the edge of the box or becomes zero. Croce & Hein 2021, arXiv:2103.01208.
    """
    delta = (x_adv - x).flatten(1)  # (B,D)
    size = delta.abs()
    room = torch.where(delta > 0, 1 - x.flatten(1), x.flatten(1))
    bends, order = torch.cat([size, (size - room).clamp_min(0)], 1).sort(dim=1, descending=True)
    moving = torch.where(order < size.shape[1], 1.0, -1.0).cumsum(1)  # (B,2D)
    growth = (moving[:, :-1] * (bends[:, :-1] - bends[:, 1:])).cumsum(1)
    total = torch.cat([torch.zeros_like(size[:, :1]), growth], 1)  # (B,2D), the sum at each bend
    at = (total <= eps).sum(1, keepdim=True) - 1
    level = bends.gather(1, at) - (eps - total.gather(1, at)) / moving.gather(1, at).clamp_min(1)
    fits = torch.minimum(size, room).sum(1, keepdim=True) <= eps
    level = torch.where(fits, 0.0, level.clamp_min(0))
    change = torch.minimum((size - level).clamp_min(0), room) * delta.flatten(1).sign()
    return x + change.view_as(x)


def checkpoints(steps: int) -> set[int]:
    """The steps w_j = ceil(p_j * steps) with p_0 = 0 and p_1 = 0.22.

    p_(j+1) - p_j is the last difference less 0.03, and at least 0.06.
    """
    shares = [0, 22]  # in whole percent, which floats would round up past
    gap = 22
    while shares[-1] <= 100:
        gap = max(gap - 3, 6)
        shares.append(shares[-1] + gap)
    return {-(-share * steps // 100) for share in shares[:-1]}
