"""A defence under one draw of its randomness, which the attacker knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.judging.randomness import judging_stream

# The declared parts of a defence that take images.
PARTS_OF_IMAGES = ("base", "purify", "classify", "presoftmax", "per_draw", "latent")


class Frozen(nn.Module):
    """`defence` with the randomness that `seed` gives, the same for every image and every call.

    Images (B,C,H,W) in [0,1] to logits (B,K); deterministic. Each image is shown to the defence
    alone, and with the generators freshly seeded. In a batch its noise would depend on how many
    images stand before it, and attacks drop images from their batches. The declared parts that
    take images, and the surrogates, are frozen likewise.
    """

    def __init__(self, defence: nn.Module, seed: int) -> None:
        super().__init__()
        self.defence = defence
        self.seed = seed
        for name in PARTS_OF_IMAGES:
            part = getattr(defence, name, None)
            if callable(part):
                setattr(self, name, partial(self.call_frozen, part))
        surrogates = getattr(defence, "surrogates", {})
        self.surrogates = {
            name: partial(self.call_frozen, surrogate) for name, surrogate in surrogates.items()
        }

    def call_frozen(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What `call` makes of each image alone, under the seed."""
        answers = []
        for image in x.split(1):
            with judging_stream(image.device, self.seed):
                answers.append(call(image))
        return torch.cat(answers)

    def forward(self, x: Tensor) -> Tensor:
        return self.call_frozen(self.defence, x)

    def draws(self, x: Tensor, k: int) -> Tensor:
        """One answer, k times (B,k,K)."""
        answer: Tensor = self(x)
        return answer[:, None].expand(-1, k, -1)
