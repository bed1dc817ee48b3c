"""No attack: the cell whose accuracy is the clean accuracy."""

from torch import Tensor

from bench.registry import attack
from bench.spec import ThreatModel
from bench.target import Target


@attack("none", norms={"linf", "l2", "l1", "l0"}, access="decision", family="none", calls=lambda knobs, stochastic: 0)
def none(model: Target, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """The clean image."""
    return x
