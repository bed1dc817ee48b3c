"""D15: a defence under one draw of its randomness, which the attacker knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.judging.randomness import random_stream
from bench.judging.target import PARTS

OF_IMAGES = tuple(
    name
    for name in PARTS
    if name in ("base", "purify", "classify", "presoftmax", "per_draw", "latent")
)


class Frozen(nn.Module):
    """`defence` with the randomness that `seed` gives, the same for every image and every call: deterministic.

    Images (B,C,H,W) in [0,1] to logits (B,K). Each image is shown to the defence alone and with the generators freshly seeded: in a batch its noise
    would depend on how many images stand before it, and attacks drop images from their batches. `draws` are all the same. The declared parts that
    take images, and the surrogates, are frozen likewise.
    """

    def __init__(self, defence: nn.Module, seed: int) -> None:
        super().__init__()
        self.defence = defence
        self.seed = seed
        for name in OF_IMAGES:
            if callable(found := getattr(defence, name, None)):
                setattr(self, name, partial(self.ask, found))
        self.surrogates = {
            name: partial(self.ask, answer)
            for name, answer in getattr(defence, "surrogates", {}).items()
        }

    def ask(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What `call` makes of each image alone, under the seed."""
        return torch.cat([self.alone(call, image) for image in x.split(1)])

    def alone(self, call: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        with random_stream(image.device, self.seed):
            return call(image)

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(self.defence, x)

    def draws(self, x: Tensor, k: int) -> Tensor:
        """(B,k,K): one answer, k times."""
        answer: Tensor = self(x)
        return answer[:, None].expand(-1, k, -1)
