"""Defences that change the image before the classifier sees it: what the input transformations share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Rounding = Callable[[Tensor], Tensor]


class Transformed(nn.Module):
    """`base(transform(x))` for a deterministic `transform(x, rounding)` of images (B,C,H,W) in [0,1] to such images.

    The gradient of `forward` is the true one: zero, where rounding cuts it. That is no robustness, and the surrogates, which an
    attacker may use, have the gradients that a rounding hides:
    `identity` computes the very same logits, and takes the transformation for the identity on the way back (BPDA, Athalye et al. 2018);
    `soft` rounds by `soft_round` on both ways.
    """

    def __init__(self, base: nn.Module, transform: Callable[[Tensor, Rounding], Tensor]) -> None:
        super().__init__()
        self.base = base
        self.transform = transform
        self.surrogates: dict[str, Callable[[Tensor], Tensor]] = {"identity": self.identity, "soft": self.soft}

    def purify(self, x: Tensor) -> Tensor:
        return self.transform(x, torch.round)

    def classify(self, x_hat: Tensor) -> Tensor:
        logits: Tensor = self.base(x_hat)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.purify(x))

    def identity(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            change = self.purify(x) - x
        return self.classify(x + change)

    def soft(self, x: Tensor) -> Tensor:
        return self.classify(self.transform(x, soft_round))


def soft_round(x: Tensor) -> Tensor:
    """The nearest integers, plus the cube of the distance from them: a rounding with a gradient (Shin and Song 2017)."""
    whole = x.detach().round()
    return whole + (x - whole) ** 3
