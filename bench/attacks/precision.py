"""Half precision: the attacker's copy of the model in fewer bits.

Images, losses and steps stay in float32, and so does the harness, which judges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks.wrapped import WrappedTarget
from bench.judging.target import Target, is_correct

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LowPrecision(WrappedTarget):
    """The `exact` target under autocast, with logits of float32."""

    def __init__(self, exact: Target, precision: str) -> None:
        super().__init__(exact)
        self.dtype = PRECISIONS[precision]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            logits: Tensor = self.exact(x)
        return logits.float()

    def draws(self, x: Tensor, k: int) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            logits = self.exact.draws(x, k)
        return logits.float()


def lower_precision(model: Target, precision: str) -> Target:
    """The model in `precision`: the model itself for float32."""
    return model if precision == "float32" else LowPrecision(model, precision)


@torch.no_grad()
def confirm_wrong(model: Target, images: Tensor, y: Tensor, wrong: Tensor) -> Tensor:
    """Of the images (B,C,H,W) that are `wrong` (B,), those that are wrong in full precision too.

    It takes one query of each wrong image, if the model was lowered. Where the defence is
    stochastic, its draws differ by more than the precision does, and all images remain.
    """
    if not isinstance(model, LowPrecision) or model.stochastic or not wrong.any():
        return wrong
    rows = wrong.nonzero().squeeze(1)
    confirmed = wrong.clone()
    confirmed[rows] = ~is_correct(model.exact(images[rows]), y[rows])
    return confirmed
