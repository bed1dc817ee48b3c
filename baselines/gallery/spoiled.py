"""What the gallery's defences on the output of a classifier share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

Answer = Callable[[Tensor], Tensor]


class Spoiled(nn.Module):
    """`spoil(base(x), x)`: what `spoil` makes of the logits (B,K) of the classifier `base`.

    Images (B,C,H,W) are in [0,1]. `presoftmax` gives the logits as they were. Surrogates: those
    given, and `classifier`, the bare one.
    """

    def __init__(
        self,
        base: nn.Module,
        spoil: Callable[[Tensor, Tensor], Tensor],
        surrogates: Mapping[str, Answer] | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.spoil = spoil
        self.surrogates: dict[str, Answer] = {**(surrogates or {}), "classifier": base}

    def presoftmax(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(self.base(x), x)


def zeros_of(x: Tensor) -> Tensor:
    """Zeros (B,1) in the graph of the images, with a gradient of exactly zero."""
    return 0 * x.sum((1, 2, 3))[:, None]
