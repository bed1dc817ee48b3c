"""Defences that change the image before the classifier sees it: what the input transformations share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.judging.target import predict_draws
from carso.model import split_batch

Answer = Callable[[Tensor], Tensor]
Way = Callable[[Tensor], Tensor]


class Transformed(nn.Module):
    """`inner(transform(x))` for a `transform` of images (B,C,H,W) in [0,1] to such images; where it is `random`, fresh for each example and call.

    `inner` is a classifier or another defence. The gradient of `forward` is the true one. Where rounding makes that zero, `soft` is the
    transformation with a rounding that has a gradient. That a gradient is hidden is no robustness, and the surrogates show it:
    `identity` computes the very same logits, and takes the transformation for the identity on the way back (BPDA, Athalye et al. 2018; also
    there without `soft`, where asked for); `soft` is soft on both ways. Where `inner` has surrogates of its own, they are also there behind
    each of these, `identity+lse`; without `soft`, they are there behind the transformation itself, `exact+lse`.
    """

    def __init__(
        self,
        inner: nn.Module,
        transform: nn.Module,
        *,
        soft: Way | None = None,
        identity: bool = False,
        random: bool = False,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.transform = transform
        self.random = random
        answers: dict[str, Answer] = getattr(inner, "surrogates", {})
        ways: dict[str, Way] = {"identity": self.identity} if soft or identity else {}
        if soft:
            ways["soft"] = soft
        self.surrogates: dict[str, Answer] = {
            way: partial(behind_it, ways[way], inner) for way in ways
        }
        if not soft:
            ways["exact"] = self.purify
        self.surrogates |= {
            f"{way}+{name}": partial(behind_it, ways[way], answer)
            for way in ways
            for name, answer in answers.items()
        }

    def purify(self, x: Tensor) -> Tensor:
        """The transformed images, one draw of each where it is random."""
        x_hat: Tensor = self.transform(x)
        return x_hat

    def classify(self, x_hat: Tensor) -> Tensor:
        logits: Tensor = self.inner(x_hat)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.purify(x))

    def draws(self, x: Tensor, k: int) -> Tensor:
        """`k` predictions (B,k,K): behind one transformation where that is not random, else one for each, in flat batches of bounded size."""
        if not self.random:
            return predict_draws(self.inner, self.purify(x), k)
        several: Tensor = torch.cat(
            [self(part) for part in split_batch(x.repeat_interleave(k, 0))]
        ).unflatten(0, (len(x), k))
        return several

    def identity(self, x: Tensor) -> Tensor:
        """The transformed images, whose gradient is that of `x`."""
        with torch.no_grad():
            change = self.purify(x) - x
        return x + change


def behind_it(way: Way, answer: Answer, x: Tensor) -> Tensor:
    return answer(way(x))


def soft_round(x: Tensor) -> Tensor:
    """The nearest integers, plus the cube of the distance from them: a rounding with a gradient (Shin and Song 2017)."""
    whole = x.detach().round()
    return whole + (x - whole) ** 3


def mirrored(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Of the positions -before..size-1+after, those within the image that they mirror: c b a | a b c | c b a, however far."""
    place = torch.arange(-before, size + after, device=device) % (2 * size)
    return torch.minimum(place, 2 * size - 1 - place)


def inside(x: Tensor) -> Tensor:
    """Means of values in [0,1] whose rounding errors left it, back in it; their gradient is kept."""
    return x + (x.clamp(0, 1) - x).detach()
