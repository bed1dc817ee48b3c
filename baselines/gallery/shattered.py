"""Broken on purpose: gradients that are alive and say nothing about the next step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from baselines.transform import Transformed
from bench.errors import BadInput
from bench.questions.registry import build_classifier, defence

ACTIVATIONS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.silu, F.gelu}
Competition = Callable[[Tensor, Tensor], Tensor]  # values (B,N), the least kept one (B,1)


def hard(h: Tensor, least: Tensor) -> Tensor:
    """The values (B,N) that are `least` (B,1) or more; 0 in place of the others."""
    return h * (h >= least)


def hard_with_identity_gradient(h: Tensor, least: Tensor) -> Tensor:
    """The values of `hard` with the gradient of `h`."""
    return h + (hard(h, least) - h).detach()


def soft(h: Tensor, least: Tensor) -> Tensor:
    """A slope, half as wide as `least` is high, in place of the step."""
    return h * (8 * (h - least) / (least.abs() + 1e-3)).sigmoid()


class Winners(TorchFunctionMode):
    """Within it, every activation keeps the largest of its values in each example, a share `keep`.

    Of the others it keeps nothing; the `competition` says how. `activations` counts how many ran.
    """

    def __init__(self, keep: float, competition: Competition) -> None:
        super().__init__()
        self.keep = keep
        self.competition = competition
        self.activations = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in ACTIVATIONS:
            return out
        self.activations += 1
        flat = out.flatten(1)  # (B,N)
        kept = max(1, int(self.keep * flat.shape[1]))
        least = flat.detach().topk(kept, dim=1).values[:, -1:]  # (B,1)
        return self.competition(flat, least).view_as(out)


class KWinners(nn.Module):
    """The classifier `base` with k-winners-take-all in place of its activations.

    Its weights are as they are. Surrogates: `identity` has the same logits, and sees no competition
    on the way back (BPDA); `soft` has slopes; `classifier` is the bare one.
    """

    def __init__(self, base: nn.Module, keep: float) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise BadInput(f"defence 'gallery-kwta': keep={keep} is not above 0 and at most 1")
        self.base = base
        self.keep = keep
        self.surrogates = {
            "identity": partial(self.answer, hard_with_identity_gradient),
            "soft": partial(self.answer, soft),
            "classifier": base,
        }

    def answer(self, competition: Competition, x: Tensor) -> Tensor:
        with Winners(self.keep, competition) as winners:
            logits: Tensor = self.base(x)
        if not winners.activations:
            raise BadInput(
                "defence 'gallery-kwta': "
                "the classifier has none of the activations ReLU, SiLU and GELU"
            )
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(hard, x)


class Shatter(nn.Module):
    """Images plus `size` sin(`rate` x), clipped to [0,1].

    The image hardly changes; the slope is up to `size * rate`, of either sign.
    """

    def __init__(self, size: float, rate: float) -> None:
        super().__init__()
        self.size = size
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.size * (self.rate * x).sin()).clamp(0, 1)


@defence("gallery-kwta", broken=True)
def kwta(*, classifier: str = "@standard", keep: float = 0.2) -> nn.Module:
    """Broken on purpose: every layer keeps its largest activations, a share `keep` of them.

    The loss jumps wherever one takes another's place. Broken by the classifier without the
    competition (surrogates `classifier` and `identity`), by attacks without gradients, and by
    gradients from differences of the loss. The published one is trained that way. Here the weights
    are the classifier's own, and it hides less: on digits PGD on the cross-entropy breaks it at eps
    1/5, and is fooled at 1/10. Xiao, Zhong and Zheng (2020), arXiv 1905.10510; broken by Tramer,
    Carlini, Brendel and Madry (2020), arXiv 2002.08347.
    """
    return KWinners(build_classifier(classifier), keep)


@defence("gallery-shattered", broken=True)
def shattered(
    *, classifier: str = "@standard", size: float = 0.02, rate: float = 2000.0
) -> nn.Module:
    """Broken on purpose: a fine ripple of height `size` on every pixel.

    Its slope drowns the classifier's: the gradient has a random sign. Broken by BPDA (surrogate
    `identity`), and by attacks without gradients. Athalye, Carlini and Wagner (2018),
    arXiv 1802.00420, on shattered gradients.
    """
    return Transformed(build_classifier(classifier), Shatter(size, rate), identity=True)
