"""Total variation minimisation as a defence (Guo et al. 2018)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.transform import Transformed, clip_to_box
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence

# 8 bounds the squared norm of the differences of neighbours, and its inverse the product of both
# steps.
STEP = 1 / math.sqrt(8)
# A smaller weight moves what is not kept by less in each step. The steps of z are lengthened as
# much, and those of the dual shortened.
SLOW_WEIGHT = 0.1


class TotalVariation(nn.Module):
    """The images z that minimise |kept * (z - x)|^2 / 2 + weight * TV(z), for images x in [0,1].

    x and z are (B,C,H,W). `kept` is a random mask of pixels, all channels alike, each with
    probability `keep`, fresh for each example and call. At `keep=1` nothing is random. TV is a
    sum over pixels and channels: the length of the difference to the neighbours below and right
    (Rudin, Osher and Fatemi 1992). The method is a fixed number of `steps` of the primal-dual
    one of Chambolle and Pock (2011), differentiable throughout. What is not kept starts at the mean
    of what is, so that z depends on kept pixels alone.
    """

    def __init__(self, weight: float, steps: int, keep: float) -> None:
        super().__init__()
        if not 0 < weight <= 10:
            raise BadInput(f"defence 'tv': weight={weight} is not above 0 and at most 10")
        if not 1 <= steps <= 10000:
            raise BadInput(f"defence 'tv': steps={steps} is not between 1 and 10000")
        if not 0 < keep <= 1:
            raise BadInput(f"defence 'tv': keep={keep} is not above 0 and at most 1")
        self.weight = weight
        self.steps = steps
        self.keep = keep
        self.longer = max(SLOW_WEIGHT / weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.keep == 1:
            return self.minimise(x, torch.ones_like(x[:, :1]))
        return self.minimise(x, (torch.rand_like(x[:, :1]) < self.keep).to(x.dtype))

    def minimise(self, x: Tensor, kept: Tensor) -> Tensor:
        """z for images (B,C,H,W) and a mask (B,1,H,W) of zeros and ones."""
        mean = (kept * x).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True).clamp(min=1)
        start = torch.where(kept > 0, x, mean)
        z = start
        extrapolated = start
        down = torch.zeros_like(x)  # the dual variable of differences to the neighbour below
        right = torch.zeros_like(x)
        step = STEP * self.longer
        dual_step = STEP / self.longer
        for _ in range(self.steps):
            down = down + dual_step * differences(extrapolated, 2)
            right = right + dual_step * differences(extrapolated, 3)
            down, right = self.shorten(down, right)
            previous = z
            z = z - step * (adjoint(down, 2) + adjoint(right, 3))
            z = (z + step * kept * start) / (1 + step * kept)
            extrapolated = 2 * z - previous
        return clip_to_box(z)

    def shorten(self, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of differences, shortened to a length of `weight` where they are longer."""
        excess = ((down**2 + right**2) / self.weight**2).clamp(min=1).sqrt()
        return down / excess, right / excess


def differences(z: Tensor, side: int) -> Tensor:
    """To the next pixel along `side`, 0 at the last."""
    return F.pad(z.diff(dim=side), (0, 0, 0, 1) if side == 2 else (0, 1))


def adjoint(p: Tensor, side: int) -> Tensor:
    """The transpose of `differences`."""
    inner = p.narrow(side, 0, p.shape[side] - 1)
    before = (0, 0, 1, 0) if side == 2 else (1, 0)
    after = (0, 0, 0, 1) if side == 2 else (0, 1)
    return F.pad(inner, before) - F.pad(inner, after)


@defence("tv", stochastic=lambda knobs: float(knobs["keep"]) < 1)
def tv(
    *,
    classifier: str = "@standard",
    inner: str = "",
    weight: float = 0.03,
    steps: int = 40,
    keep: float = 0.9,
) -> nn.Module:
    """Drop random pixels, put in their place and in the others' what varies least, classify.

    `weight` is that of the total variation, `keep` the share of pixels that are not dropped. The
    paper drops half of them, on larger images; at 1 none is dropped, and nothing is random. The
    gradient is the true one, through all `steps` of the minimisation. Attack it with pgd-eot on
    that, and on the surrogate `identity` (BPDA), whose way back costs nothing.
    Guo, Rana, Cisse and van der Maaten (2018), arXiv 1711.00117.
    """
    return Transformed(
        build_inner(classifier, inner),
        TotalVariation(weight, steps, keep),
        identity=True,
        random=keep < 1,
    )
