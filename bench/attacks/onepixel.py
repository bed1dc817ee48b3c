"""The few-pixel attack: differential evolution over positions and values.

All images and the whole population are one batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.attacks.losses import margins, rows_per_query
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

CANDIDATES = 4  # members of the last population that a stochastic defence is judged on


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
    """Differential evolution of sets of floor(eps) pixels, each a position and its new values.

    `popsize` sets evolve for `steps` generations. A child takes one pixel from one member plus
    `scale` times the difference of two others, and the rest from its parent. It takes the parent's
    place if its margin is higher. With one pixel this is the published rule.

    Each generation takes `popsize` queries per example, and so does the first population. On a
    deterministic defence an example leaves when it is fooled. Returns the best member; on a
    stochastic defence the best four (4,B,C,H,W).

    Su et al. 2019, arXiv:1710.08864.

    This is not the attack of torchattacks, which evolves image by image, member by member, in
    Python.
    """
    pixels = math.floor(threat.eps)
    if not pixels:
        return x
    rows = torch.arange(len(x), device=x.device)  # (R,), which are not fooled
    members = torch.rand(len(x), popsize, pixels, 2 + x.shape[1], device=x.device)
    fitness = population_margins(model, x, y, members)  # (B,popsize)
    for _ in range(steps):
        if not model.stochastic:
            rows = rows[fitness[rows].amax(1) <= 0]
            if not len(rows):
                break
        parents = members[rows]  # (R,popsize,pixels,2+C)
        children = breed(parents, scale)
        children_fitness = population_margins(model, x[rows], y[rows], children)
        better = children_fitness > fitness[rows]
        members[rows] = torch.where(better[:, :, None, None], children, parents)
        fitness[rows] = torch.where(better, children_fitness, fitness[rows])
    top = fitness.topk(min(CANDIDATES, popsize) if model.stochastic else 1, dim=1)[1]
    best = members.gather(1, top[:, :, None, None].expand(-1, -1, *members.shape[2:]))
    return paint(x, best).transpose(0, 1).contiguous()


def breed(parents: Tensor, scale: float) -> Tensor:
    """A child for each of the parents (B,P,pixels,2+C), in which one pixel is new."""
    batch, popsize, pixels = parents.shape[:3]
    device = parents.device
    picks = torch.randint(popsize, (3, batch, popsize, 1, 1), device=device)
    base, plus, minus = [parents.gather(1, pick.expand_as(parents)) for pick in picks]
    mutants = base + scale * (plus - minus)
    # A position outside wraps around. A value outside is the corner of the box, where the
    # strongest pixels lie.
    mutants[..., :2] %= 1
    mutants[..., 2:] = mutants[..., 2:].clamp(0, 1)
    changed = torch.randint(pixels, (batch, popsize, 1, 1), device=device)
    is_changed = changed == torch.arange(pixels, device=device).view(-1, 1)  # (B,P,pixels,1)
    return torch.where(is_changed, mutants, parents)


def population_margins(model: Target, x: Tensor, y: Tensor, members: Tensor) -> Tensor:
    """The margin (B,P) of each member's image."""
    # images of a few examples at a time: the population of a batch may not fit in memory
    size = max(1, rows_per_query(x) // members.shape[1])
    parts = zip(x.split(size), y.split(size), members.split(size), strict=True)
    return torch.cat(
        [margins(model, paint(images, sets), labels) for images, labels, sets in parts]
    )


def paint(x: Tensor, members: Tensor) -> Tensor:
    """The images (B,P,C,H,W) of members (B,P,pixels,2+C).

    A pixel is its row and its column in [0,1), then the value of each channel.
    """
    height, width = x.shape[2:]
    row = (members[..., 0] * height).long().clamp(0, height - 1)
    column = (members[..., 1] * width).long().clamp(0, width - 1)
    places = (row * width + column).unsqueeze(2).expand(-1, -1, x.shape[1], -1)  # (B,P,C,pixels)
    flat = x.flatten(2).unsqueeze(1).expand(-1, members.shape[1], -1, -1)  # (B,P,C,H*W)
    painted = flat.scatter(3, places, members[..., 2:].transpose(2, 3))
    return painted.view(*flat.shape[:3], height, width)
