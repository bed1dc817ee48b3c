"""Defences that change the image before the classifier sees it: what the input transformations share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.target import draws

Rounding = Callable[[Tensor], Tensor]
Answer = Callable[[Tensor], Tensor]


class Transformed(nn.Module):
    """`inner(transform(x))` for a deterministic `transform(x, rounding)` of images (B,C,H,W) in [0,1] to such images.

    `inner` is a classifier or another defence. The gradient of `forward` is the true one: zero, where rounding cuts it. That is no
    robustness, and the surrogates, which an attacker may use, have the gradients that a rounding hides:
    `identity` computes the very same logits, and takes the transformation for the identity on the way back (BPDA, Athalye et al. 2018);
    `soft` rounds by `soft_round` on both ways. Where `inner` has surrogates of its own, both are also there in front of each: `identity+lse`.
    """

    def __init__(self, inner: nn.Module, transform: Callable[[Tensor, Rounding], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.transform = transform
        behind: dict[str, Answer] = {"": inner, **{f"+{name}": answer for name, answer in getattr(inner, "surrogates", {}).items()}}
        ways = {"identity": self.identity, "soft": self.soft}
        self.surrogates = {way + name: partial(behind_it, ways[way], answer) for way in ways for name, answer in behind.items()}

    def purify(self, x: Tensor) -> Tensor:
        return self.transform(x, torch.round)

    def classify(self, x_hat: Tensor) -> Tensor:
        logits: Tensor = self.inner(x_hat)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.purify(x))

    def draws(self, x: Tensor, k: int) -> Tensor:
        """`k` predictions (B,k,K) behind one transformation: they differ only where `inner` is random."""
        return draws(self.inner, self.purify(x), k)

    def identity(self, x: Tensor) -> Tensor:
        """The transformed images, whose gradient is that of `x`."""
        with torch.no_grad():
            change = self.purify(x) - x
        return x + change

    def soft(self, x: Tensor) -> Tensor:
        """The images as transformed with a rounding that has a gradient."""
        return self.transform(x, soft_round)


def behind_it(way: Callable[[Tensor], Tensor], answer: Answer, x: Tensor) -> Tensor:
    return answer(way(x))


def soft_round(x: Tensor) -> Tensor:
    """The nearest integers, plus the cube of the distance from them: a rounding with a gradient (Shin and Song 2017)."""
    whole = x.detach().round()
    return whole + (x - whole) ** 3
