"""JPEG compression as a defence (Dziugaite et al. 2016)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.transform import Rounding, Transformed
from bench.registry import build_inner, defence
from bench.spec import BadInput

# The quantisation tables that the JPEG standard (ITU-T T.81, Annex K) proposes, by rows of rising vertical frequency.
LUMINANCE = """
16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56   14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99
"""
CHROMINANCE = """
17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99   47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
"""
RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


class Jpeg(nn.Module):
    """What JPEG keeps of images (B,C,H,W) in [0,1]: 8-bit pixels, blocks of 8x8, the standard's tables scaled as libjpeg does.

    Three channels are RGB, and become YCbCr without chroma subsampling; any others are grey, each for itself. Sides that are no
    multiples of 8 are continued by their last pixels.
    """

    def __init__(self, quality: int) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise BadInput(f"defence 'jpeg': quality={quality} is not between 1 and 100")
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        tables = torch.tensor([[int(value) for value in text.split()] for text in (LUMINANCE, CHROMINANCE, CHROMINANCE)])
        frequency, place = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        dct = torch.cos(math.pi * (2 * place + 1) * frequency / 16) / 2
        dct[0] /= math.sqrt(2)
        self.tables: Tensor
        self.dct: Tensor
        self.to_ycc: Tensor
        self.to_rgb: Tensor
        self.register_buffer("tables", ((tables * scale + 50) // 100).clamp(1, 255).view(3, 8, 8).float())
        self.register_buffer("dct", dct)  # orthonormal: its inverse is its transpose
        self.register_buffer("to_ycc", torch.tensor(RGB_TO_YCC))
        self.register_buffer("to_rgb", torch.tensor(RGB_TO_YCC).double().inverse().float())

    def forward(self, x: Tensor, rounding: Rounding) -> Tensor:
        _, channels, height, width = x.shape
        levels = rounding(x * 255) - 128
        if channels == 3:  # the chroma channels are centred at 128 too, so the shift by 128 is that of the luminance alone
            ycc = torch.einsum("dc,bchw->bdhw", self.to_ycc, levels + 128) - self.centre(x)
            levels = rounding(ycc)
        levels = self.blocks(F.pad(levels, (0, -width % 8, 0, -height % 8), mode="replicate"), rounding)[..., :height, :width]
        if channels == 3:
            levels = torch.einsum("cd,bdhw->bchw", self.to_rgb, levels + self.centre(x)) - 128
        return rounding(levels + 128).clamp(0, 255) / 255

    def centre(self, x: Tensor) -> Tensor:
        return x.new_tensor((128.0, 0.0, 0.0)).view(3, 1, 1)

    def blocks(self, levels: Tensor, rounding: Rounding) -> Tensor:
        """Quantise the DCT of each 8x8 block of `levels` (B,C,H,W), centred at 0, and come back to whole levels in [-128,127]."""
        count, channels, height, width = levels.shape
        tables = self.tables if channels == 3 else self.tables[:1]
        tiles = levels.view(count, channels, height // 8, 8, width // 8, 8)
        waves = torch.einsum("ui,bcriwj,vj->bcruwv", self.dct, tiles, self.dct)
        table = tables[:, None, :, None, :]  # (C,1,8,1,8) against (B,C,rows,8,columns,8)
        snap = ((waves * 8).round() / 8 + waves.sign() / 1024 - waves).detach()  # libjpeg has three bits behind the point, and halves go outwards
        waves = rounding((waves + snap) / table) * table
        back = torch.einsum("ui,bcruwv,vj->bcriwj", self.dct, waves, self.dct)
        return rounding(back.reshape(count, channels, height, width)).clamp(-128, 127)


@defence("jpeg")
def jpeg(*, classifier: str = "@standard", inner: str = "", quality: int = 75) -> nn.Module:
    """Compress the image as JPEG does, decompress it, classify. Dziugaite et al. (2016), arXiv 1608.00853."""
    return Transformed(build_inner(classifier, inner), Jpeg(quality))
