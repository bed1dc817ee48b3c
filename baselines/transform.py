"""Defences that change the image before the classifier sees it: what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from bench.judging.target import predict_draws
from carso.model import split_batch

Answer = Callable[[Tensor], Tensor]  # images (B,C,H,W) -> logits (B,K)
Transform = Callable[[Tensor], Tensor]  # images (B,C,H,W) -> such images
Compose = Callable[[Transform, Answer, Tensor], Tensor]


class Transformed(nn.Module):
    """`inner(transform(x))` for a `transform` of images (B,C,H,W) in [0,1] to such images.

    `inner` is a classifier or another defence. `random`: the transform is fresh for each example
    and call. The gradient of `forward` is the true one. Where rounding makes that zero, `soft` is
    the transformation with a rounding that has a gradient.

    A hidden gradient is no robustness, and the surrogates show it. `identity` computes the very
    same logits, and takes the transformation for the identity on the way back (BPDA, Athalye et
    al. 2018). It is there with `soft`, or where asked for. `soft` is soft on both ways. The
    surrogates of `inner` are there behind each of these, as `identity+lse`. Without `soft` they
    are there behind the transformation itself, as `exact+lse`.
    """

    def __init__(
        self,
        inner: nn.Module,
        transform: nn.Module,
        *,
        soft: Transform | None = None,
        identity: bool = False,
        random: bool = False,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.transform = transform
        self.random = random
        transforms: dict[str, Transform] = {}
        if soft or identity:
            transforms["identity"] = self.identity
        if soft:
            transforms["soft"] = soft
        self.surrogates: dict[str, Answer] = compose_surrogates(transforms, {"": inner})
        if not soft:
            transforms["exact"] = self.purify
        self.surrogates |= compose_surrogates(transforms, inner_surrogates(inner))

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
        """`k` predictions (B,k,K), in flat batches of bounded size.

        They stand behind one transformation where that is not random, else each behind its own.
        """
        if not self.random:
            return predict_draws(self.inner, self.purify(x), k)
        batches = split_batch(x.repeat_interleave(k, 0))
        logits: Tensor = torch.cat([self(batch) for batch in batches]).unflatten(0, (len(x), k))
        return logits

    def identity(self, x: Tensor) -> Tensor:
        return with_identity_gradient(self.purify, x)


def inner_surrogates(inner: nn.Module) -> dict[str, Answer]:
    """The surrogates of an inner defence, by names such as `+lse`; none of a classifier."""
    surrogates: Mapping[str, Answer] = getattr(inner, "surrogates", {})
    return {f"+{name}": answer for name, answer in surrogates.items()}


def answer_behind(transform: Transform, answer: Answer, x: Tensor) -> Tensor:
    return answer(transform(x))


def compose_surrogates(
    transforms: Mapping[str, Transform],
    answers: Mapping[str, Answer],
    compose: Compose = answer_behind,
) -> dict[str, Answer]:
    """Every answer behind every transform, by the name of the transform and that of the answer."""
    return {
        transform_name + name: partial(compose, transform, answer)
        for transform_name, transform in transforms.items()
        for name, answer in answers.items()
    }


def with_identity_gradient(transform: Transform, x: Tensor) -> Tensor:
    """The transformed images, whose gradient is that of `x` (BPDA)."""
    with torch.no_grad():
        change = transform(x) - x
    return x + change


def soft_round(x: Tensor) -> Tensor:
    """The nearest integers, plus the cube of the distance from them.

    It is a rounding with a gradient (Shin and Song 2017).
    """
    whole = x.detach().round()
    return whole + (x - whole) ** 3


def mirror_positions(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Of the positions -before..size-1+after, those within the image that they mirror.

    c b a | a b c | c b a, however far.
    """
    position = torch.arange(-before, size + after, device=device) % (2 * size)
    return torch.minimum(position, 2 * size - 1 - position)


def clip_to_box(x: Tensor) -> Tensor:
    """Values whose rounding errors left [0,1], back in it; their gradient is kept."""
    return x + (x.clamp(0, 1) - x).detach()
