"""The best image of each example so far."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.judging.norms import per_example


class BestImages:
    """For each of R rows the image with the highest value so far, such as a loss or a margin.

    A row without any value has the image with which it began, and the value -inf.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()  # (R,C,H,W)
        self.values = images.new_full((len(images),), -torch.inf)  # (R,)

    def record(self, rows: Tensor, images: Tensor, values: Tensor) -> Tensor:
        """Keep the images (N,C,H,W) of `rows` (N,) whose values (N,) are higher; gives which."""
        values = values.to(self.values)  # a defence may answer in another precision
        higher = values > self.values[rows]  # (N,)
        update_where(higher, self.values, rows, values)
        update_where(higher, self.images, rows, images)
        return higher


def update_where(mask: Tensor, target: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write `values` (N,...) into the `rows` (N,) of `target` (R,...) where `mask` (N,) is true."""
    target[rows] = torch.where(per_example(mask, values), values, target[rows])
