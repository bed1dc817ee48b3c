"""Gaussian noise as a defence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.transform import Transformed
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence


class Noisy(nn.Module):
    """Images (B,C,H,W) with Gaussian noise, fresh at every call, clipped to [0,1].

    `sigma` is the standard deviation, in pixel units of [0,1].
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not 0 < sigma <= 1:
            raise BadInput(f"defence 'noise': sigma={sigma} is not above 0 and at most 1")
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.sigma * torch.randn_like(x)).clamp(0, 1)


@defence("noise", stochastic=True)
def noise(*, classifier: str = "@standard", inner: str = "", sigma: float = 0.05) -> nn.Module:
    """Add Gaussian noise to the image, classify.

    It is one noisy look. It has no vote and no certificate: those are `smoothing`'s. Small noise
    hinders attacks that query scores or labels, and little else (Qin et al. 2021,
    arXiv 2104.11470). Attack it with pgd-eot, as its gradient is the true one, and with transfer
    from the bare classifier.
    """
    return Transformed(build_inner(classifier, inner), Noisy(sigma), random=True)
