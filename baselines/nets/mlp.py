"""A perceptron without any notion of neighbouring pixels: an architecture to transfer from."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Images (B,C,H,W) in [0,1] to logits (B,K).

    Named layers: `fc1`, `fc2` (hidden each), `logits` (K).
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(shape[0], 1, 1))
        self.register_buffer("std", torch.ones(shape[0], 1, 1))
        self.fc1 = nn.Linear(math.prod(shape), hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.logits = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(((x - self.mean) / self.std).flatten(1)))
        logits: Tensor = self.logits(F.relu(self.fc2(h)))
        return logits
