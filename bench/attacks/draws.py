"""How attacks without gradients query a stochastic defence: several draws a query, all counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from bench.attacks.losses import images_per_query, margins
from bench.judging.randomness import seeded
from bench.judging.target import Target, margin


@torch.no_grad()
def draw_margins(model: Target, images: Tensor, y: Tensor, draws: int) -> Tensor:
    """The margins (B,P,draws) of independent draws on each of `P` images (B,P,C,H,W) per example.

    Positive is misclassified.
    """
    if draws == 1:
        return margins(model, images, y).unsqueeze(2)
    flat = images.flatten(0, 1)  # (B*P,C,H,W)
    labels = y.repeat_interleave(images.shape[1]).unsqueeze(1).expand(-1, draws)  # (B*P,draws)
    size = images_per_query(images, draws)
    parts = zip(flat.split(size), labels.split(size), strict=True)
    answers = [margin(model.draws(part, draws), names) for part, names in parts]
    return torch.cat(answers).view(*images.shape[:2], draws)


def same_noise(model: Target) -> Callable[[], AbstractContextManager[None]]:
    """Gives blocks in which the defence draws the same each time, if it draws from torch.

    After a block the generators are where they were before it.
    """
    return partial(seeded, model.device, int(torch.randint(2**62, ())))
