"""Reduction of the number of grey levels as a defence (Xu et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from baselines.transform import Rounding, Transformed
from bench.registry import build_inner, defence
from bench.spec import BadInput


class BitDepth(nn.Module):
    """Images in [0,1] at 2^bits levels per channel, 0 and 1 among them."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise BadInput(f"defence 'bit-depth': bits={bits} is not between 1 and 8")
        self.top = 2**bits - 1

    def forward(self, x: Tensor, rounding: Rounding) -> Tensor:
        levels: Tensor = rounding(x * self.top) / self.top
        return levels


@defence("bit-depth")
def bit_depth(*, classifier: str = "@standard", inner: str = "", bits: int = 3) -> nn.Module:
    """Round every channel to 2^bits levels, classify. Xu, Evans and Qi (2018), arXiv 1704.01155."""
    return Transformed(build_inner(classifier, inner), BitDepth(bits))
