"""The few-pixel attack: differential evolution over positions and values, all images and the whole population in one batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.attacks.losses import margins, rows_at_once
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

TRIED = 4  # members of the last population that a stochastic defence is to be judged on


@attack(
    "onepixel",
    norms={"l0"},
    access="score",
    family="score",
    calls=lambda knobs, stochastic: knobs["popsize"] * (knobs["steps"] + 1),
)
def onepixel(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    popsize: int = 400,
    scale: float = 0.5,
) -> Tensor:
    """Differential evolution of `popsize` sets of floor(eps) pixels, each a position and its new values, for `steps` generations.

    A child takes one pixel from one member plus `scale` times the difference of two others, the rest from its parent, and takes that one's
    place if its margin is higher; with one pixel this is the published rule. Each generation asks `popsize` queries per example, and so
    does the first population; on a deterministic defence an example leaves when it is fooled. Returns the best member, on a stochastic
    defence the best four (4,B,C,H,W). Su et al. 2019, arXiv:1710.08864.

    Ours, not that of torchattacks, which evolves image by image, member by member, in Python.
    """
    pixels, channels = math.floor(threat.eps), x.shape[1]
    if not pixels:
        return x
    todo = torch.arange(len(x), device=x.device)
    members = torch.rand(len(x), popsize, pixels, 2 + channels, device=x.device)
    fitness = fit(model, x, y, members)
    for _ in range(steps):
        if not model.stochastic:
            todo = todo[fitness[todo].amax(1) <= 0]
            if not len(todo):
                break
        held = members[todo]
        picks = torch.randint(popsize, (3, len(todo), popsize, 1, 1), device=x.device)
        one, two, three = (held.gather(1, pick.expand_as(held)) for pick in picks)
        child = one + scale * (two - three)
        # A position outside wraps around; a value outside is the corner of the box, where the strongest pixels lie.
        child[..., :2] %= 1
        child[..., 2:] = child[..., 2:].clamp(0, 1)
        swapped = torch.randint(
            pixels, (len(todo), popsize, 1, 1), device=x.device
        ) == torch.arange(pixels, device=x.device).view(-1, 1)
        child = torch.where(swapped, child, held)
        gap = fit(model, x[todo], y[todo], child)
        better = gap > fitness[todo]
        members[todo] = torch.where(better[:, :, None, None], child, held)
        fitness[todo] = torch.where(better, gap, fitness[todo])
    top = fitness.topk(min(TRIED, popsize) if model.stochastic else 1, dim=1)[1]
    chosen = members.gather(1, top[:, :, None, None].expand(-1, -1, *members.shape[2:]))
    return paint(x, chosen).transpose(0, 1).contiguous()


def fit(model: Target, x: Tensor, y: Tensor, members: Tensor) -> Tensor:
    """The margin (B,P) of each member's image."""
    group = max(
        1, rows_at_once(x) // members.shape[1]
    )  # images of a few examples at a time: the population of a batch may not fit in memory
    parts = zip(*(torch.split(one, group) for one in (x, y, members)), strict=True)
    return torch.cat(
        [margins(model, paint(images, sets), labels) for images, labels, sets in parts]
    )


def paint(x: Tensor, members: Tensor) -> Tensor:
    """The images (B,P,C,H,W) of members (B,P,pixels,2+C): row and column in [0,1), then the value of each channel."""
    height, width = x.shape[2:]
    row = (members[..., 0] * height).long().clamp(0, height - 1)
    column = (members[..., 1] * width).long().clamp(0, width - 1)
    where = (row * width + column).unsqueeze(2).expand(-1, -1, x.shape[1], -1)
    flat = x.flatten(2).unsqueeze(1).expand(-1, members.shape[1], -1, -1)
    return flat.scatter(3, where, members[..., 2:].transpose(2, 3)).view(
        *flat.shape[:3], height, width
    )
