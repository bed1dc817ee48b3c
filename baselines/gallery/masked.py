"""Broken on purpose: a gradient that is cut off, that is NaN, or that ends at a refusal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.anti_adversary import AntiAdversary
from baselines.gallery.spoiled import Spoiled
from bench.errors import BadInput
from bench.questions.registry import build_classifier, defence


class Detached(AntiAdversary):
    """A test-time optimisation whose result is cut off from the image that it began with."""

    def purify(self, x: Tensor) -> Tensor:
        return super().purify(x).detach()


@defence("gallery-reject", broken=True)
def reject(*, classifier: str = "@standard", least: float = 0.97) -> nn.Module:
    """Broken on purpose: abstains where its largest probability is below `least`.

    An abstention is a row of equal logits, and has no gradient. Whoever counts it as safe sees
    attacks fail that stop as soon as they cross a boundary, or at the wall around it. Broken by
    adversarial images of high confidence, from the classifier itself (surrogate `classifier`). This
    bench counts an abstention as wrong in the first place. Carlini and Wagner (2017),
    arXiv 1705.07263, and Tramer et al. (2020), arXiv 2002.08347, on detectors.
    """
    if not 0 <= least < 1:
        raise BadInput(f"defence 'gallery-reject': least={least} is not at least 0 and below 1")

    def spoil(logits: Tensor, x: Tensor) -> Tensor:
        sure = logits.softmax(1).amax(1, keepdim=True) >= least
        return torch.where(sure, logits, 0.0)

    return Spoiled(build_classifier(classifier), spoil)


@defence("gallery-detached", broken=True)
def detached(*, classifier: str = "@standard", steps: int = 5, step: float = 0.02) -> nn.Module:
    """Broken on purpose: signed steps towards the predicted class, cut out of the graph.

    It is `anti-adversary` without a gradient. Broken by BPDA (surrogate `identity`), by
    differentiating through the steps (`soft`), and by transfer from the classifier.
    Croce et al. (2022), arXiv 2202.13711, on defences that optimise at test time.
    """
    return Detached(build_classifier(classifier), steps, step)


@defence("gallery-nan-gradient", broken=True, bare=True)
def nan_gradient(*, classifier: str = "@standard") -> nn.Module:
    """Broken on purpose: the classifier's logits plus zero times the root of zero.

    The logits are the classifier's bit for bit, and the gradient is NaN. The sign of NaN is 0, and
    an attack that takes it stands still. A check for gradients that are zero sees none. Broken by
    the gradients of the classifier (surrogate `classifier`). Carlini et al. (2019),
    arXiv 1902.06705, on checking that gradients are what they seem.
    """

    def spoil(logits: Tensor, x: Tensor) -> Tensor:
        return logits + 0 * (x - x.detach()).square().sum((1, 2, 3)).sqrt()[:, None]

    return Spoiled(build_classifier(classifier), spoil)
