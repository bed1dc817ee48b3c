"""How attacks without gradients ask a stochastic defence: several draws per query, each of them counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from bench.attacks.losses import at_once, margins
from bench.judging.randomness import seeded
from bench.judging.target import Target, margin


@torch.no_grad()
def draw_margins(model: Target, images: Tensor, y: Tensor, draws: int) -> Tensor:
    """The margins (B,P,draws) of independent draws on each of `P` images (B,P,C,H,W) per example; positive is misclassified."""
    if draws == 1:
        return margins(model, images, y).unsqueeze(2)
    flat, labels = images.flatten(0, 1), y.repeat_interleave(images.shape[1])
    group = at_once(images, draws)
    parts = [
        margin(model.draws(some, draws), names.unsqueeze(1).expand(-1, draws))
        for some, names in zip(torch.split(flat, group), torch.split(labels, group), strict=True)
    ]
    return torch.cat(parts).view(*images.shape[:2], draws)


def same_noise(model: Target) -> Callable[[], AbstractContextManager[None]]:
    """Blocks in which the defence draws the same each time, if it draws from torch, and after which the generators are where they were."""
    return partial(seeded, model.device, int(torch.randint(2**62, ())))
