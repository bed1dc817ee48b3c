"""The training images, kept once, and the batches of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 4096  # images that are looked at in one go, so that looking takes no memory to speak of


def packed(x: Tensor) -> Tensor:
    """Images (N,C,H,W), float32 in [0,1], as uint8 where each value is exactly k/255, a quarter of the memory; else as they are."""
    small = torch.empty(x.shape, dtype=torch.uint8)
    for part, into in zip(torch.split(x, CHUNK), torch.split(small, CHUNK), strict=True):
        into.copy_((part * 255).round())
        if not torch.equal(pixels(into), part):
            return x
    return small


def pixels(x: Tensor) -> Tensor:
    """float32 in [0,1] of packed images: the very values that were packed."""
    # The divisor is a tensor, because CUDA multiplies by the inverse of a number, which rounds otherwise.
    return x.float() / torch.full((), 255.0, device=x.device) if x.dtype == torch.uint8 else x


def check(x: Tensor) -> None:
    """ValueError where packed or float images are not finite, or outside of [0,1]."""
    if x.dtype != torch.uint8 and not all(
        bool(((part >= 0) & (part <= 1)).all()) for part in torch.split(x, CHUNK)
    ):
        raise ValueError("the training images hold values that are not finite, or outside of [0,1]")


def batches(n: int, batch: int, *, seed: int, rank: int = 0, count: int = 1) -> list[Tensor]:
    """Of one epoch, the indices (B,) int64 that process `rank` of `count` takes at every step: its share of `batch`, shuffled by `seed` alone.

    Every image is in one share of one step; the shares of a step differ by one image at most. The last, partial batch is kept unless a share
    would be a single image, of which there are no batch statistics.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return [
        torch.tensor_split(chosen, count)[rank]
        for chosen in torch.split(order, batch)
        if len(chosen) >= 2 * count
    ]
