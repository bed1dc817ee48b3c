"""The rearrangement attack: pixels take the values of other pixels of the same image, all images and all proposals of a round in one batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.attacks.draws import draw_margins
from bench.attacks.losses import rows_at_once
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

TRIED = 4  # rounds whose winners a stochastic defence is to be judged on


@attack(
    "pixle",
    norms={"l0"},
    access="score",
    family="score",
    calls=lambda knobs, stochastic: (
        (1 + knobs["steps"] * knobs["samples"]) * (knobs["eot"] if stochastic else 1)
    ),
)
def pixle(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    samples: int = 50,
    eot: int = 4,
) -> Tensor:
    """Rounds of `samples` proposals that copy a patch of the image, pixel by pixel, to random places; the best one is kept if it beats the last.

    An image holds floor(eps) copies; a proposal replaces a random number of them by the pixels of one rectangle. Asks 1 + steps*samples
    queries per example; on a deterministic defence an example leaves when it is fooled. On a stochastic one each query is the mean margin
    of `eot` draws, and the winners of the last four rounds are returned (4,B,C,H,W). Pomponi et al. 2022, arXiv:2202.02236.

    Ours, not that of torchattacks, which goes image by image, query by query, in Python, draws patches of sizes that no budget bounds
    (its first round alone may change 100 pixels), and takes all of its randomness from numpy.
    """
    pixels, draws = math.floor(threat.eps), eot if model.stochastic else 1
    if not pixels:
        return x
    places = torch.zeros(
        2, len(x), pixels, dtype=torch.long, device=x.device
    )  # where to, where from: at first each copy is of itself
    best_gap = fit(model, x, y, places.unsqueeze(2), draws).squeeze(1)
    todo = torch.arange(len(x), device=x.device)
    winners: list[Tensor] = []
    for _ in range(steps):
        if not model.stochastic:
            todo = todo[best_gap[todo] <= 0]
            if not len(todo):
                break
        tried = propose(places[:, todo], samples, *x.shape[2:])
        gaps, first = fit(model, x[todo], y[todo], tried, draws).max(1)
        winner = tried[:, torch.arange(len(todo), device=x.device), first]
        better = gaps > best_gap[todo]
        places[:, todo[better]], best_gap[todo[better]] = winner[:, better], gaps[better]
        winners = [*winners[1 - TRIED :], winner] if model.stochastic else []
    return torch.cat([copy(x, one.unsqueeze(2)).transpose(0, 1) for one in winners or [places]])


def propose(places: Tensor, count: int, height: int, width: int) -> Tensor:
    """Copies (2,B,count,pixels), a random number of them replaced in each: from a rectangle, row by row, to places drawn at random."""
    batch, pixels, at = places.shape[1], places.shape[2], places.device

    def below(limit: Tensor) -> Tensor:
        return (torch.rand(batch, count, 1, device=at) * limit).long()  # 0 to limit - 1

    size = 1 + below(torch.tensor(pixels, device=at))
    least = -(-size // height)  # narrower, the rectangle would be taller than the image
    wide = least + below(size.clamp_max(width) - least + 1)
    tall = -(-size // wide)
    order = torch.arange(pixels, device=at)
    row, column = below(height - tall + 1) + order // wide, below(width - wide + 1) + order % wide
    source = (row * width + column).clamp_max(
        height * width - 1
    )  # those beyond `size` may lie outside, and are not used
    goal = torch.randint(height * width, (batch, count, pixels), device=at)
    turn = (
        order + below(torch.tensor(pixels, device=at))
    ) % pixels  # which of the held copies gives way to which new one
    new = torch.stack([goal, source]).gather(3, turn.expand(2, -1, -1, -1))
    return torch.where(turn < size, new, places.unsqueeze(2))


def fit(model: Target, x: Tensor, y: Tensor, places: Tensor, draws: int) -> Tensor:
    """The mean margin (B,P) of the images that the copies (2,B,P,pixels) make."""
    group = max(
        1, rows_at_once(x) // (places.shape[2] * draws)
    )  # images of a few examples at a time: all proposals may not fit in memory
    parts = zip(
        torch.split(x, group), torch.split(y, group), torch.split(places, group, 1), strict=True
    )
    return torch.cat(
        [
            draw_margins(model, copy(images, some), labels, draws).mean(2)
            for images, labels, some in parts
        ]
    )


def copy(x: Tensor, places: Tensor) -> Tensor:
    """The images (B,P,C,H,W) in which pixels `places[0]` have the values that pixels `places[1]` have in `x`, both (B,P,pixels)."""
    goal, source = (one.unsqueeze(2).expand(-1, -1, x.shape[1], -1) for one in places)
    flat = x.flatten(2).unsqueeze(1).expand(-1, places.shape[2], -1, -1)
    return flat.scatter(3, goal, flat.gather(3, source)).view(*flat.shape[:3], *x.shape[2:])
