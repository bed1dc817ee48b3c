"""Half precision: the attacker's copy of the model in fewer bits. Images, losses and steps stay in float32, and so does the harness, which judges."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.judging.target import Target, is_correct

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Lowered(Target):
    """The `exact` target answering under autocast, in logits of float32; calls and bad gradients are counted where they always are."""

    def __init__(self, exact: Target, precision: str) -> None:
        super().__init__(
            exact,
            classes=exact.classes,
            access=exact.access,
            stochastic=exact.stochastic,
            device=exact.device,
        )
        self.exact, self.kind = exact, PRECISIONS[precision]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.kind):
            logits: Tensor = self.exact(x)
        return logits.float()

    def draws(self, x: Tensor, k: int) -> Tensor:
        with torch.autocast(x.device.type, self.kind):
            logits = self.exact.draws(x, k)
        return logits.float()


def lowered(model: Target, precision: str) -> Target:
    return model if precision == "float32" else Lowered(model, precision)


@torch.no_grad()
def confirmed(model: Target, images: Tensor, y: Tensor, wrong: Tensor) -> Tensor:
    """Of the images (B,C,H,W) that are `wrong` (B,), those that are so in full precision too: one query each, if the model was lowered.

    Where the defence is stochastic, draws differ by more than the precision does, and all remain.
    """
    if not isinstance(model, Lowered) or model.stochastic or not wrong.any():
        return wrong
    rows, sure = wrong.nonzero().squeeze(1), wrong.clone()
    sure[rows] = ~is_correct(model.exact(images[rows]), y[rows])
    return sure
