"""The rearrangement attack: pixels take the values of other pixels of the same image.

All images and all proposals of a round are one batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.attacks.draws import draw_margins
from bench.attacks.losses import rows_per_query
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

CANDIDATES = 4  # rounds whose winners a stochastic defence is judged on


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
    """Rounds of `samples` proposals that copy a patch of the image to random places.

    A patch is copied pixel by pixel, and an image holds floor(eps) copies. A proposal replaces a
    random number of the copies by the pixels of one rectangle. The best proposal of a round is
    kept if it beats the last.

    It takes 1 + steps*samples queries per example. On a deterministic defence an example leaves
    when it is fooled. On a stochastic one each query is the mean margin of `eot` draws, and the
    winners of the last four rounds are returned (4,B,C,H,W).

    Pomponi et al. 2022, arXiv:2202.02236.

    This is not the attack of torchattacks, which goes image by image, query by query, in Python. It
    draws patches of sizes that no budget bounds: its first round alone may change 100 pixels. It
    takes all of its randomness from numpy.
    """
    pixels = math.floor(threat.eps)
    if not pixels:
        return x
    draws = eot if model.stochastic else 1
    # (2,B,pixels), where to and where from: at first each copy is of itself
    copies = torch.zeros(2, len(x), pixels, dtype=torch.long, device=x.device)
    best_margin = copy_margins(model, x, y, copies.unsqueeze(2), draws).squeeze(1)  # (B,)
    rows = torch.arange(len(x), device=x.device)  # (R,), which are not fooled
    winners: list[Tensor] = []
    for _ in range(steps):
        if not model.stochastic:
            rows = rows[best_margin[rows] <= 0]
            if not len(rows):
                break
        proposals = propose(copies[:, rows], samples, *x.shape[2:])  # (2,R,samples,pixels)
        margins, first = copy_margins(model, x[rows], y[rows], proposals, draws).max(1)
        winner = proposals[:, torch.arange(len(rows), device=x.device), first]  # (2,R,pixels)
        better = margins > best_margin[rows]
        copies[:, rows[better]] = winner[:, better]
        best_margin[rows[better]] = margins[better]
        if model.stochastic:
            winners = [*winners[1 - CANDIDATES :], winner]
    return torch.cat(
        [paste(x, places.unsqueeze(2)).transpose(0, 1) for places in winners or [copies]]
    )


def propose(copies: Tensor, count: int, height: int, width: int) -> Tensor:
    """Copies (2,B,count,pixels), of which a random number is replaced in each.

    The new ones go from a rectangle, row by row, to places drawn at random.
    """
    batch, pixels = copies.shape[1:]
    device = copies.device

    def draw_below(limit: Tensor) -> Tensor:
        """Whole numbers (B,count,1) from 0 to limit - 1."""
        return (torch.rand(batch, count, 1, device=device) * limit).long()

    size = 1 + draw_below(torch.tensor(pixels, device=device))
    least = -(-size // height)  # narrower, the rectangle would be taller than the image
    rect_width = least + draw_below(size.clamp_max(width) - least + 1)
    rect_height = -(-size // rect_width)
    order = torch.arange(pixels, device=device)
    row = draw_below(height - rect_height + 1) + order // rect_width
    column = draw_below(width - rect_width + 1) + order % rect_width
    # pixels beyond `size` may lie outside of the image, and are not used
    source = (row * width + column).clamp_max(height * width - 1)
    goal = torch.randint(height * width, (batch, count, pixels), device=device)
    # which of the present copies gives way to which new one
    turn = (order + draw_below(torch.tensor(pixels, device=device))) % pixels
    new = torch.stack([goal, source]).gather(3, turn.expand(2, -1, -1, -1))
    return torch.where(turn < size, new, copies.unsqueeze(2))


def copy_margins(model: Target, x: Tensor, y: Tensor, copies: Tensor, draws: int) -> Tensor:
    """The mean margin (B,P) of the images that the copies (2,B,P,pixels) make."""
    # images of a few examples at a time: all proposals may not fit in memory
    size = max(1, rows_per_query(x) // (copies.shape[2] * draws))
    parts = zip(x.split(size), y.split(size), copies.split(size, 1), strict=True)
    means = [
        draw_margins(model, paste(images, places), labels, draws).mean(2)
        for images, labels, places in parts
    ]
    return torch.cat(means)


def paste(x: Tensor, copies: Tensor) -> Tensor:
    """The images (B,P,C,H,W) in which some pixels have the values of others in `x`.

    Pixels `copies[0]` have those of pixels `copies[1]`, both (B,P,pixels).
    """
    goal, source = copies.unsqueeze(3).expand(-1, -1, -1, x.shape[1], -1)  # (B,P,C,pixels)
    flat = x.flatten(2).unsqueeze(1).expand(-1, copies.shape[2], -1, -1)  # (B,P,C,H*W)
    return flat.scatter(3, goal, flat.gather(3, source)).view(*flat.shape[:3], *x.shape[2:])
