"""Reduction of the number of grey levels as a defence (Xu et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.transform import Transformed, soft_round
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence


class BitDepth(nn.Module):
    """Images in [0,1] at 2^bits levels per channel, 0 and 1 among them."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise BadInput(f"defence 'bit-depth': bits={bits} is not between 1 and 8")
        self.top = 2**bits - 1

    def forward(self, x: Tensor) -> Tensor:
        levels: Tensor = torch.round(x * self.top) / self.top
        return levels

    def soft(self, x: Tensor) -> Tensor:
        levels: Tensor = soft_round(x * self.top) / self.top
        return levels


@defence("bit-depth")
def bit_depth(*, classifier: str = "@standard", inner: str = "", bits: int = 3) -> nn.Module:
    """Round every channel to 2^bits levels, classify.

    The rounding has no gradient. Attack it with PGD on its surrogates `identity` (BPDA) and `soft`,
    and with transfer from the bare classifier. Xu, Evans and Qi (2018), arXiv 1704.01155.
    """
    transform = BitDepth(bits)
    return Transformed(build_inner(classifier, inner), transform, soft=transform.soft)
