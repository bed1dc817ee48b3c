"""Gaussian blur as a defence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.transform import Transformed, clip_to_box, mirror_positions
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence

REACH = 4  # standard deviations, beyond which the weights are left out


class Blur(nn.Module):
    """Images (B,C,H,W) in [0,1] under a Gaussian of standard deviation `sigma` pixels.

    It is applied along each side in turn. Beyond an edge lies the mirror image.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not 0 < sigma <= 10:
            raise BadInput(f"defence 'gaussian': sigma={sigma} is not above 0 and at most 10")
        self.reach = int(REACH * sigma + 0.5)
        weights = torch.exp(-((torch.arange(-self.reach, self.reach + 1) / sigma) ** 2) / 2)
        self.weights: Tensor
        self.register_buffer("weights", weights / weights.sum())

    def forward(self, x: Tensor) -> Tensor:
        rows = self.blur_matrix(x.shape[2], x)
        columns = self.blur_matrix(x.shape[3], x)
        return clip_to_box(rows @ x @ columns.T)

    def blur_matrix(self, size: int, x: Tensor) -> Tensor:
        """The blur of `size` pixels as a matrix (size,size), with the mirror images folded in."""
        positions = mirror_positions(size, self.reach, self.reach, x.device)
        pixels = positions.unfold(0, size, 1).T  # (to, offset): the pixel seen there
        weights = self.weights.to(x.dtype).expand(size, -1)
        return x.new_zeros(size, size).scatter_add(1, pixels, weights)


@defence("gaussian")
def gaussian(*, classifier: str = "@standard", inner: str = "", sigma: float = 0.5) -> nn.Module:
    """Blur the image by a Gaussian of `sigma` pixels, classify.

    It is a fixed linear filter, known and differentiable. It defends no better than one more
    convolution before the classifier, and is the control for filters that claim more. Attack it
    with PGD and AutoAttack, as its gradient is the true one. Xu, Evans and Qi (2018),
    arXiv 1704.01155, treat smoothing filters as defences.
    """
    return Transformed(build_inner(classifier, inner), Blur(sigma))
