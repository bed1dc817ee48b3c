"""Broken on purpose: randomness in the gradient, or behind an aggregation that overflows."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from baselines.ensemble import Mean
from baselines.tta import Augmentation, Augmented
from bench.errors import BadInput
from bench.questions.registry import build_classifier, defence
from carso import aggregate


class NoisyGradient(nn.Module):
    """The logits of `base`, bit for bit, with Gaussian noise on the gradient.

    In each image the noise is `times` as large as the gradient.
    """

    def __init__(self, base: nn.Module, times: float) -> None:
        super().__init__()
        if not times > 0:
            raise BadInput(f"defence 'gallery-noisy-gradient': times={times} is not above 0")
        self.base = base
        self.times = times
        self.surrogates = {"classifier": base}

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self.add_noise)
        logits: Tensor = self.base(x)
        return logits

    def add_noise(self, grad: Tensor) -> Tensor:
        size = grad.square().mean((1, 2, 3), keepdim=True).sqrt()
        return grad + self.times * size * torch.randn_like(grad)


class NaivePeel(Augmented):
    """PeeL, computed as it is written, over `samples` noisy versions of each image.

    It is infinite where a softmax over sums of exponentials rounds. Surrogates: `lse`, the
    logarithm of that sum of exponentials, has the very same order of classes for the same noise;
    `logit` is the mean of the logits; `classifier` is the bare one.
    """

    def __init__(self, inner: nn.Module, samples: int, noise: float) -> None:
        super().__init__(inner, samples, Augmentation(shift=0, flip=False, noise=noise))
        self.mean = aggregate.peel_naive
        self.surrogates = {
            "lse": partial(self.aggregate_versions, aggregate.lse),
            "logit": partial(self.aggregate_versions, aggregate.logit),
            "classifier": self.base,
        }

    def aggregate_versions(self, aggregation: Mean, x: Tensor) -> Tensor:
        return aggregation(self.per_draw(x))


@defence("gallery-noisy-gradient", broken=True)
def noisy_gradient(*, classifier: str = "@standard", times: float = 30.0) -> nn.Module:
    """Broken on purpose: the classifier, whose gradient arrives with noise `times` as large.

    Two gradients at one image share nothing. Broken by the gradients of the classifier (surrogate
    `classifier`), by any attack without gradients, and by the mean of thousands of gradients.
    Athalye, Carlini and Wagner (2018), arXiv 1802.00420, on stochastic gradients.
    """
    return NoisyGradient(build_classifier(classifier), times)


@defence("gallery-peel-naive", broken=True, stochastic=True)
def peel_naive(*, classifier: str = "@standard", samples: int = 8, noise: float = 0.1) -> nn.Module:
    """Broken on purpose: PeeL as it is written, log(p/(1-p)) in float32, over noisy versions.

    Its outputs are infinite, and the gradient is NaN. The sign of NaN is 0, so the attack stands
    still. Broken by the same decision in a stable form (surrogate `lse`), averaged over draws.
    Ballarin, Ansuini and Bortolussi (2023), arXiv 2306.06081, for the aggregation. The aggregation
    is not at fault: `carso` computes it without overflow.
    """
    return NaivePeel(build_classifier(classifier), samples, noise)
