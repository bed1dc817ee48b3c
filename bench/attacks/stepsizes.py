"""The step sizes of APGD (Croce & Hein 2020, arXiv:2003.01690) and those of its form for l1 (Croce & Hein 2021, arXiv:2103.01208)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.judging.norms import NORMS, per_example, to_ball

ALPHA = 0.75  # the weight of the new step, against one in the direction of the last
SHARE = 0.2  # in l1: the part of the coordinates that the first steps move


class Halving:
    """Step sizes (R,) for linf and l2: twice the radius, halved at each checkpoint at which too few steps since the last one have raised the loss,
    or at which the last one did not halve it and the highest loss is still the same. Where it is halved, the ascent goes back to its best iterate.
    """

    def __init__(self, x: Tensor, norm: str, radius: float, steps: int, rho: float) -> None:
        self.x, self.norm, self.radius, self.rho, self.last = x, norm, radius, rho, 0
        self.marks = checkpoints(steps)
        self.size = x.new_full((len(x),), 2 * radius)
        self.halved = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.held = x.new_full((len(x),), torch.nan)

    def move(self, i: int, left: Tensor, here: Tensor, before: Tensor, grad: Tensor) -> Tensor:
        x, size = self.x[left], per_example(self.size[left], grad)
        z = to_ball(here + size * NORMS[self.norm].steepest(grad), x, self.norm, self.radius)
        return (
            z
            if i == 1
            else to_ball(
                here + ALPHA * (z - here) + (1 - ALPHA) * (here - before), x, self.norm, self.radius
            )
        )

    def check(self, i: int, left: Tensor, rises: Tensor, best_loss: Tensor, best: Tensor) -> Tensor:
        """The rows that go back to their best iterate after step `i`."""
        if i not in self.marks:
            return left[:0]
        few = rises[left] < self.rho * (i - self.last)
        stands = ~self.halved[left] & (best_loss[left] == self.held[left])
        self.halved[left] = few | stands
        self.held, self.last = best_loss.clone(), i
        rises.zero_()
        back = left[self.halved[left]]
        self.size[back] /= 2
        return back


class Sparsity:
    """Step sizes (R,) for l1, and how many coordinates the best iterate has changed (R,): a step moves that number over 1.5.

    Where it falls by over 5% between two checkpoints, the step is the radius again and the ascent goes back to its best iterate; elsewhere the
    step shrinks, to a tenth of the radius at least.
    """

    def __init__(self, x: Tensor, here: Tensor, radius: float, steps: int, fresh: bool) -> None:
        self.x, self.radius, self.every = x, radius, -(-steps // 25)
        self.size = x.new_full((len(x),), radius)
        changed = (here != x).flatten(1).sum(1)
        self.changed = torch.where((changed == 0) | fresh, 1.5 * SHARE * x[0].numel(), changed)

    def move(self, i: int, left: Tensor, here: Tensor, before: Tensor, grad: Tensor) -> Tensor:
        x, flat = self.x[left], grad.flatten(1)
        count = (self.changed[left] / 1.5).round().long().clamp(1, flat.shape[1])
        level = flat.abs().sort(dim=1, descending=True)[0].gather(1, count.unsqueeze(1) - 1)
        step = torch.where(flat.abs() >= level, flat.sign(), 0)
        step *= self.size[left].unsqueeze(1) / step.abs().sum(1, keepdim=True).clamp_min(1)
        return to_ball(meet(here + step.view_as(x), x, self.radius), x, "l1", self.radius)

    def check(self, i: int, left: Tensor, rises: Tensor, best_loss: Tensor, best: Tensor) -> Tensor:
        """The rows that go back to their best iterate after step `i`."""
        if i == 0 or i % self.every:
            return left[:0]
        changed = (best[left] != self.x[left]).flatten(1).sum(1).to(self.changed)
        sparser = 20 * changed < 19 * self.changed[left]
        self.size[left] = torch.where(
            sparser, self.radius, (self.size[left] / 1.5).clamp_min(self.radius / 10)
        )
        self.changed[left] = changed
        return left[sparser]


def meet(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The point nearest to `x_adv` of those that lie both in the l1 ball around `x` and in the box, up to rounding.

    Every change shrinks by the same amount, to no less than zero, and is then cut at the box: the amount at which their sum is eps lies between
    two of the points where a change leaves the edge of the box or becomes zero (Croce & Hein 2021).
    """
    delta = (x_adv - x).flatten(1)
    size, room = delta.abs(), torch.where(delta > 0, 1 - x.flatten(1), x.flatten(1))
    bends, order = torch.cat([size, (size - room).clamp_min(0)], 1).sort(dim=1, descending=True)
    moving = torch.where(order < size.shape[1], 1.0, -1.0).cumsum(1)
    total = torch.cat(
        [
            torch.zeros_like(size[:, :1]),
            (moving[:, :-1] * (bends[:, :-1] - bends[:, 1:])).cumsum(1),
        ],
        1,
    )
    at = (total <= eps).sum(1, keepdim=True) - 1
    level = bends.gather(1, at) - (eps - total.gather(1, at)) / moving.gather(1, at).clamp_min(1)
    level = torch.where(
        torch.minimum(size, room).sum(1, keepdim=True) <= eps, 0.0, level.clamp_min(0)
    )
    return x + (torch.minimum((size - level).clamp_min(0), room) * delta.flatten(1).sign()).view_as(
        x
    )


def checkpoints(steps: int) -> set[int]:
    """The steps w_j = ceil(p_j * steps) with p_0 = 0, p_1 = 0.22, and p_(j+1) - p_j the last difference less 0.03, and at least 0.06."""
    shares, gap = [0, 22], 22  # in whole percent, which floats would round up past
    while shares[-1] <= 100:
        gap = max(gap - 3, 6)
        shares.append(shares[-1] + gap)
    return {-(-share * steps // 100) for share in shares[:-1]}
