"""Adversarial training: the defence that has lasted."""

from __future__ import annotations

from torch import nn

from bench.questions.registry import build_classifier, defence


@defence("at", bare=True)
def at(*, classifier: str = "@robust") -> nn.Module:
    """A classifier trained on the worst perturbations that PGD found. Madry et al. (2018).

    arXiv 1706.06083.
    """
    return build_classifier(classifier)
