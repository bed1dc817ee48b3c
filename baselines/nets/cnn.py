"""A small convolutional network for small grey images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cnn(nn.Module):
    """Images (B,C,H,W) in [0,1] to logits (B,K); H and W are multiples of 2, and of 4 from 20 on.

    Named layers in order of execution, at `width` w: `conv1` (w,H,W), `conv2` (2w,H/2,W/2), `conv3`
    (2w,H/2,W/2), `fc` (hidden), `logits` (K). Nothing is pooled over the whole image: the few
    pixels of a digit count where they are.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, *, width: int = 16, hidden: int = 64
    ) -> None:
        super().__init__()
        channels, height, image_width = shape
        self.pool = 2 if min(height, image_width) >= 20 else 1
        shrink = 2 * self.pool
        if height % shrink or image_width % shrink:
            raise ValueError(f"images of {height}x{image_width} pixels do not halve evenly")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.fc = nn.Linear(2 * width * (height // shrink) * (image_width // shrink), hidden)
        self.logits = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv1((x - self.mean) / self.std))
        h = F.relu(self.conv2(h))
        h = F.relu(self.conv3(h))
        if self.pool > 1:
            h = F.max_pool2d(h, self.pool)
        logits: Tensor = self.logits(F.relu(self.fc(h.flatten(1))))
        return logits
