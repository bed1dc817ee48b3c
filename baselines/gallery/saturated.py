"""Broken on purpose: outputs so steep that a loss in float32 rounds to a constant."""

from __future__ import annotations

from torch import nn

from baselines.gallery.spoiled import Spoiled
from bench.questions.registry import build_classifier, defence


@defence("gallery-scaled", broken=True)
def scaled(*, classifier: str = "@standard", scale: float = 1e4) -> nn.Module:
    """Broken on purpose: logits times `scale`.

    The cross-entropy and its gradient round to zero in float32. Defensive distillation amounts to
    this once it is deployed. Broken by any loss that ignores the scale (margin, DLR), and by the
    cross-entropy of the classifier's own logits (`presoftmax`). Carlini and Wagner (2016),
    arXiv 1607.04311, on Papernot et al. (2016), arXiv 1511.04508.
    """
    return Spoiled(build_classifier(classifier), lambda logits, x: scale * logits)


@defence("gallery-softmax", broken=True)
def softmax(*, classifier: str = "@standard", scale: float = 100.0) -> nn.Module:
    """Broken on purpose: answers the probabilities softmax(`scale` logits) in place of logits.

    They are 0 and 1 exactly on most images. Every loss is constant there, the margin and DLR too.
    Broken by any loss on the classifier's own logits (`presoftmax`). Croce and Hein (2020),
    arXiv 2003.01690, on losses and the scale of logits.
    """
    return Spoiled(build_classifier(classifier), lambda logits, x: (scale * logits).softmax(1))
