"""Random resizing and padding as a defence (Xie et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.transform import Transformed
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence


class ResizePad(nn.Module):
    """Images (B,C,H,W), each shrunk to a random share of its sides, at a random place on black.

    The share is from `least` to 1. The paper enlarges images to a range of whole sizes, for a
    network that takes any size; here the answer has the size that went in. Shares and places are
    real numbers, since small images have few whole ones. Both sides shrink by the same share.
    """

    def __init__(self, least: float) -> None:
        super().__init__()
        if not 0.1 <= least < 1:
            raise BadInput(
                f"defence 'resize-pad': least={least} is not between 0.1 and 1, without 1 itself"
            )
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        share, down, right = torch.rand(3, len(x), 1, device=x.device, dtype=x.dtype)
        share = self.least + (1 - self.least) * share
        height, width = x.shape[2:]
        top = (1 - share) * height * down
        left = (1 - share) * width * right
        return paste(x, share * height, share * width, top, left)


def paste(x: Tensor, height: Tensor, width: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Images (B,C,H,W), each resized bilinearly, on black of the old size.

    An image of `height` x `width` pixels lies `top` and `left` from the corner. All four are (B,1)
    and may be fractions: a pixel whose centre is outside is black. Whole numbers give what
    `F.interpolate` and `F.pad` do.
    """
    upright = resize_rows(x, height, top).transpose(2, 3)
    return resize_rows(upright, width, left).transpose(2, 3)


def resize_rows(x: Tensor, size: Tensor, start: Tensor) -> Tensor:
    """The rows of images (B,C,H,W) resized to `size` rows from `start` on, both (B,1), on black."""
    rows = x.shape[2]
    # (B,H), in rows of the resized image
    centre = torch.arange(rows, device=x.device, dtype=x.dtype) + 0.5 - start
    source = (centre * (rows / size) - 0.5).clamp(0, rows - 1)  # (B,H), in rows of x
    first = source.floor()
    share = (source - first)[:, None, :, None]  # (B,1,H,1)
    index = first.long()[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])  # (B,C,H,W)
    next_index = (index + 1).clamp(max=rows - 1)
    mixed = torch.lerp(x.gather(2, index), x.gather(2, next_index), share)
    return mixed * ((centre > 0) & (centre < size))[:, None, :, None]


@defence("resize-pad", stochastic=True)
def resize_pad(*, classifier: str = "@standard", inner: str = "", least: float = 0.9) -> nn.Module:
    """Shrink the image to a random size, place it at random on black, classify.

    The size is between `least` and 1 times the image's; 0.9 is the paper's ratio of its least size
    to its largest. Attack it with pgd-eot. Its gradient is the true one, and the mean over
    draws breaks all of them at once (Athalye, Carlini and Wagner 2018, arXiv 1802.00420).
    Xie, Wang, Zhang, Ren and Yuille (2018), arXiv 1711.01991.
    """
    return Transformed(build_inner(classifier, inner), ResizePad(least), random=True)
