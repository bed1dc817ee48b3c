"""Adam for batches whose examples leave one by one."""

from __future__ import annotations

import torch
from torch import Tensor


class Adam:
    """The steps of Adam on tensors of the shape of `x` (B,C,H,W).

    torch's own moves every example of a tensor, and rounds otherwise. Kingma & Ba 2015,
    arXiv:1412.6980.
    """

    def __init__(self, x: Tensor) -> None:
        self.mean = torch.zeros_like(x)
        self.square = torch.zeros_like(x)

    def step(self, i: int, rows: Tensor, grad: Tensor, rate: float) -> Tensor:
        """The i-th step, counted from 1, of the examples `rows` (R,) along `grad` (R,C,H,W)."""
        self.mean[rows] = 0.9 * self.mean[rows] + 0.1 * grad
        self.square[rows] = 0.999 * self.square[rows] + 0.001 * grad**2
        mean = self.mean[rows] / (1 - 0.9**i)
        deviation = (self.square[rows] / (1 - 0.999**i)).sqrt() + 1e-8
        return rate * mean / deviation
