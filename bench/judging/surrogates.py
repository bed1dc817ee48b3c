"""What a transfer attack starts from: one classifier, or several as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.questions.pins import split_classifiers
from bench.questions.registry import build_classifier


class MeanLogits(nn.Module):
    """The mean logits of several classifiers."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = torch.stack([member(x) for member in self.members]).mean(0)
        return logits


def build_surrogate(source: str) -> nn.Module:
    """The classifiers named in `source`, joined by `+`, as one."""
    return MeanLogits([build_classifier(name) for name in split_classifiers(source)])
