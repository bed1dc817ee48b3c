"""What a check puts in the place of the defence, for one example or for several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.judging.target import Target


@dataclass(frozen=True, slots=True)
class CheckTarget:
    """A model with a known answer, and what an attack is told of the model.

    `y` is the label (1,) that the attack is to change. `random` says whether random points find
    the planted adversarial example, where one was planted. `measure(target, survives)` is called
    when all is judged: with the target that the attack had, and whether the examples survive (B,).
    It gives figures by name. Figures of several examples are added up.
    """

    model: nn.Module
    y: Tensor
    classes: int
    stochastic: bool
    random: bool | None = None
    measure: Callable[[Target, Tensor], dict[str, float]] | None = None
