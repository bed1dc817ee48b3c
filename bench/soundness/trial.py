"""What a check has an attack run against in place of the defence, for one example."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Trial:
    """A model whose answer to one example is known, the label (1,) that the attack is to change, and what the attack is told of the model.

    `random` says, where an adversarial example was planted, whether random points find one too.
    """

    model: nn.Module
    y: Tensor
    classes: int
    stochastic: bool
    random: bool | None = None
