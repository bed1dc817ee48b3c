"""JPEG compression as a defence (Dziugaite et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.transform import Transformed, soft_round
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence

Rounding = Callable[[Tensor], Tensor]

# The quantisation tables that the JPEG standard (ITU-T T.81, Annex K) proposes, by rows of rising
# vertical frequency.
LUMINANCE = """
16 11 10 16 24 40 51 61
12 12 14 19 26 58 60 55
14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77
24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99
"""
CHROMINANCE = """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
"""

# What libjpeg's accurate integer DCT adds up to, in units of 2^-13 / sqrt(8): the left half of each
# row. The even rows go on as their mirror image, the odd ones as its negative. The fixed-point
# factors of libjpeg round each for itself, so these are not quite the rounded cosines.
DCT = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)
# In units of 2^-16, as the next.
RGB_TO_YCC = (
    (19595, 38470, 7471),
    (-11059, -21709, 32768),
    (32768, -27439, -5329),
)
CHROMA_TO_RGB = ((0, 91881), (-22554, -46802), (116130, 0))


class Jpeg(nn.Module):
    """What JPEG makes of images (B,C,H,W) in [0,1], with 8-bit pixels and blocks of 8x8.

    The standard's tables are scaled to a `quality` from 1 to 100. Three channels are RGB, and
    become YCbCr, with chroma at half the resolution (`subsampling` 420) or at the same (444). Any
    others are grey, each for itself.

    The pixels are those of libjpeg, and so of Pillow, bit for bit. Every stage of libjpeg's integer
    arithmetic is a linear map in whole numbers, divided by a power of two and rounded. float64
    computes that exactly, whatever the order and the device.
    """

    def __init__(self, quality: int, subsampling: int = 444) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise BadInput(f"defence 'jpeg': quality={quality} is not between 1 and 100")
        if subsampling not in (420, 444):
            raise BadInput(f"defence 'jpeg': subsampling={subsampling} is neither 420 nor 444")
        self.halve = subsampling == 420
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        tables = torch.stack([parse_table(LUMINANCE), parse_table(CHROMINANCE)])
        half = torch.tensor(DCT).double()
        signs = torch.tensor([1.0, -1.0]).repeat(4)[:, None]
        self.tables: Tensor
        self.dct: Tensor
        self.to_ycc: Tensor
        self.to_rgb: Tensor
        self.register_buffer(
            "tables", ((tables * scale + 50) // 100).clamp(1, 255).view(2, 8, 8).double()
        )
        self.register_buffer("dct", torch.cat([half, signs * half.flip(1)], 1))
        self.register_buffer("to_ycc", torch.tensor(RGB_TO_YCC).double() / 2**16)
        self.register_buffer("to_rgb", torch.tensor(CHROMA_TO_RGB).double() / 2**16)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode_and_decode(x, round_half_up, round_half_up)

    def soft(self, x: Tensor) -> Tensor:
        """JPEG with a gradient: only coefficients are rounded, and softly. Shin and Song (2017)."""
        return self.encode_and_decode(x, keep, soft_round)

    def encode_and_decode(self, x: Tensor, rounding: Rounding, quantise: Rounding) -> Tensor:
        """`rounding` is that of pixels and intermediate values, `quantise` that of coefficients."""
        height, width = x.shape[2:]
        levels = rounding(x.double() * 255)
        if x.shape[1] != 3:
            grey = self.code_blocks(levels - 128, 0, rounding, quantise) + 128
            return (grey / 255).to(x.dtype)
        ycc = torch.einsum("dc,bchw->bdhw", self.to_ycc, levels)
        luma = rounding(ycc[:, :1])
        chroma = rounding(ycc[:, 1:] - 2**-16)  # halves of the chroma go down
        luma = self.code_blocks(luma - 128, 0, rounding, quantise) + 128
        if self.halve:
            small = self.code_blocks(halve_chroma(chroma, rounding), 1, rounding, quantise)
            small = small[..., : -(-height // 2), : -(-width // 2)]
            chroma = double_chroma(small, rounding)[..., :height, :width]
        else:
            chroma = self.code_blocks(chroma, 1, rounding, quantise)
        rgb = luma + rounding(torch.einsum("cd,bdhw->bchw", self.to_rgb, chroma))
        return (rgb.clamp(0, 255) / 255).to(x.dtype)

    def code_blocks(
        self, levels: Tensor, table: int, rounding: Rounding, quantise: Rounding
    ) -> Tensor:
        """`levels` (B,C,H,W), centred at 0, through the quantised DCT of each 8x8 block and back.

        The answer holds whole levels in [-128,127].
        """
        height, width = levels.shape[2:]
        levels = F.pad(levels, (0, -width % 8, 0, -height % 8), mode="replicate")
        tiles = levels.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))
        tiles = tiles.transpose(3, 4)  # (B,C,rows,columns,8,8)
        waves = rounding(tiles @ self.dct.T / 2**11)
        waves = rounding(self.dct @ waves / 2**15) / 8  # libjpeg has three bits behind the point
        waves = waves / self.tables[table]
        waves = quantise(waves + waves.sign() * 2**-20) * self.tables[table]  # halves go outwards
        waves = rounding(self.dct.T @ waves / 2**11)
        tiles = rounding(waves @ self.dct / 2**18).clamp(-128, 127)
        return tiles.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]


def parse_table(text: str) -> Tensor:
    return torch.tensor([int(value) for value in text.split()])


def round_half_up(x: Tensor) -> Tensor:
    """Whole numbers; halves go up."""
    return (x + 0.5).floor()


def keep(x: Tensor) -> Tensor:
    return x


def halve_chroma(levels: Tensor, rounding: Rounding) -> Tensor:
    """Means of 2x2 pixels, for all columns of the blocks of 8.

    Halves and quarters go down and up in turns, as in libjpeg.
    """
    height, width = levels.shape[2:]
    levels = F.pad(levels, (0, -width % 16, 0, height % 2), mode="replicate")
    means = F.avg_pool2d(levels, 2)
    down = torch.arange(means.shape[3], device=levels.device) % 2 == 0
    return rounding(means - down * 0.25)


def double_chroma(levels: Tensor, rounding: Rounding) -> Tensor:
    """Twice the pixels on each side, 3/4 of the nearest and 1/4 of the next, as libjpeg does.

    libjpeg repeats pixels where a row has but two.
    """
    if levels.shape[3] <= 2:
        return levels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    padded = F.pad(levels, (0, 0, 1, 1), mode="replicate")
    upper = 3 * levels + padded[..., :-2, :]
    lower = 3 * levels + padded[..., 2:, :]
    rows = torch.stack([upper, lower], 3).flatten(2, 3)  # (B,C,2H,W)
    padded = F.pad(rows, (1, 1, 0, 0), mode="replicate")
    left = 3 * rows + padded[..., :-2]
    right = 3 * rows + padded[..., 2:] - 1
    columns = torch.stack([left, right], 4).flatten(3, 4)  # (B,C,2H,2W)
    return rounding(columns / 16)


@defence("jpeg")
def jpeg(
    *, classifier: str = "@standard", inner: str = "", quality: int = 75, subsampling: int = 420
) -> nn.Module:
    """Compress the image as JPEG does, decompress it, classify.

    The pixels are those of Pillow's codec, bit for bit, for whole batches at once. `subsampling` is
    420, which is Pillow's own choice, or 444. The codec's rounding has no gradient. Attack it with
    PGD on its surrogates `soft` (the differentiable codec) and `identity` (BPDA), and with transfer
    from the bare classifier. Dziugaite, Ghahramani and Roy (2016), arXiv 1608.00853; Shin and Song
    (2017) made it differentiable.
    """
    transform = Jpeg(quality, subsampling)
    return Transformed(build_inner(classifier, inner), transform, soft=transform.soft)
