"""No attack: the cell whose accuracy is the clean accuracy."""

from torch import Tensor

from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel


@attack(
    "none",
    norms={"linf", "l2", "l1", "l0"},
    access="decision",
    family="none",
    calls=lambda knobs, stochastic: 0,
)
def none(model: Target, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """The clean image."""
    return x
