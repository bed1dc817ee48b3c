"""No defence: what any other must beat."""

from __future__ import annotations

from torch import nn

from bench.questions.registry import build_classifier, defence


@defence("undefended", undefended=True, bare=True)
def undefended(*, classifier: str = "@standard") -> nn.Module:
    """The classifier as it is, trained on clean images alone."""
    return build_classifier(classifier)
