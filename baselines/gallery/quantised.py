"""Broken on purpose: steps without a slope, on the output or on the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.gallery.spoiled import Spoiled, zeros_of
from baselines.transform import Transformed
from bench.errors import BadInput
from bench.questions.registry import build_classifier, defence


class Thermometer(nn.Module):
    """Each value of images in [0,1] as the mean of `levels` comparisons with thresholds.

    So there are levels + 1 grey values.
    """

    thresholds: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise BadInput(f"defence 'gallery-thermometer': levels={levels} is not 2 or more")
        self.register_buffer("thresholds", (torch.arange(levels) + 0.5) / levels)

    def forward(self, x: Tensor) -> Tensor:
        return (x[..., None] > self.thresholds).to(x.dtype).mean(-1)

    def soft(self, x: Tensor) -> Tensor:
        """The same with a slope in place of each step, as wide as the thresholds are apart."""
        return (4 * len(self.thresholds) * (x[..., None] - self.thresholds)).sigmoid().mean(-1)


@defence("gallery-one-hot", broken=True, bare=True)
def one_hot(*, classifier: str = "@standard") -> nn.Module:
    """Broken on purpose: answers 1 for the predicted class and 0 for the others.

    The gradient is zero, and a score says no more than a label. Broken by the gradients of the
    classifier itself (`presoftmax`), and by attacks that ask for labels alone. Athalye, Carlini and
    Wagner (2018), arXiv 1802.00420, on shattered gradients; Brendel et al. (2018),
    arXiv 1712.04248, on labels alone.
    """

    def spoil(logits: Tensor, x: Tensor) -> Tensor:
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype) + zeros_of(x)

    return Spoiled(build_classifier(classifier), spoil)


@defence("gallery-rounded", broken=True)
def rounded(*, classifier: str = "@standard", step: float = 5.0) -> nn.Module:
    """Broken on purpose: logits rounded to multiples of `step`.

    The gradient is zero, and most queries of a score see no change. Broken by taking the rounding
    for the identity on the way back (surrogate `identity`), and by the classifier's own logits
    (`presoftmax`). Athalye, Carlini and Wagner (2018), arXiv 1802.00420.
    """
    if not step > 0:
        raise BadInput(f"defence 'gallery-rounded': step={step} is not above 0")
    base = build_classifier(classifier)

    def identity(x: Tensor) -> Tensor:
        logits: Tensor = base(x)
        return logits + (step * (logits / step).round() - logits).detach()

    return Spoiled(base, lambda logits, x: step * (logits / step).round(), {"identity": identity})


@defence("gallery-thermometer", broken=True)
def thermometer(*, classifier: str = "@standard", levels: int = 10) -> nn.Module:
    """Broken on purpose: a thermometer code of `levels` comparisons for each value.

    The code is read back by its mean. A comparison has no gradient. Broken by BPDA (surrogate
    `identity`) and by slopes in place of the steps (`soft`). The published one trains the
    classifier on the code itself. Buckman, Roy, Raffel and Goodfellow (2018), ICLR; broken by
    Athalye, Carlini and Wagner (2018), arXiv 1802.00420.
    """
    transform = Thermometer(levels)
    return Transformed(build_classifier(classifier), transform, soft=transform.soft)
