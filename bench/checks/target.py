"""What a check has an attack run against in place of the defence, for one example, or what it measures of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from bench.judging.target import Target


@dataclass(frozen=True, slots=True)
class CheckTarget:
    """A model whose answer to one example is known, the label (1,) that the attack is to change, and what the attack is told of the model.

    `random` says, where an adversarial example was planted, whether random points find one too. `measure` is called when all is judged, with the
    target that the attack had and whether the examples still stand (B,), and gives figures by name; those of several trials are added up.
    """

    model: nn.Module
    y: Tensor
    classes: int
    stochastic: bool
    random: bool | None = None
    measure: Callable[[Target, Tensor], dict[str, float]] | None = None
