"""The training images, kept once, and the batches of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import BadInput

CHUNK = 4096  # images that are looked at in one go, so that looking takes little memory


def pack_images(x: Tensor) -> Tensor:
    """Images (N,C,H,W) as uint8 where each value is exactly k/255; else as they are.

    `x` is float32 in [0,1]. Packed images take a quarter of the memory.
    """
    packed = torch.empty(x.shape, dtype=torch.uint8)
    for part, packed_part in zip(torch.split(x, CHUNK), torch.split(packed, CHUNK), strict=True):
        packed_part.copy_((part * 255).round())
        if not torch.equal(unpack_images(packed_part), part):
            return x
    return packed


def unpack_images(x: Tensor) -> Tensor:
    """The very float32 values in [0,1] that were packed; float images as they are."""
    if x.dtype != torch.uint8:
        return x
    # The divisor is a tensor. CUDA multiplies by the inverse of a number, which rounds otherwise.
    return x.float() / torch.full((), 255.0, device=x.device)


def check_images(x: Tensor) -> None:
    """BadInput where packed or float images are not finite, or lie outside of [0,1]."""
    if x.dtype == torch.uint8:
        return
    for part in torch.split(x, CHUNK):
        if not bool(((part >= 0) & (part <= 1)).all()):
            raise BadInput(
                "the training images hold values that are not finite, or outside of [0,1]"
            )


def batch_indices(n: int, batch: int, *, seed: int, rank: int = 0, count: int = 1) -> list[Tensor]:
    """Of one epoch, the indices (B,) int64 that process `rank` of `count` takes at every step.

    Each process has its share of `batch`, shuffled by `seed` alone. Every image is in one share
    of one step. The shares of a step differ by one image at most. The last, partial batch is kept
    unless a share would be a single image, which has no batch statistics.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return [
        torch.tensor_split(chosen, count)[rank]
        for chosen in torch.split(order, batch)
        if len(chosen) >= 2 * count
    ]
