"""JPEG as a defence: Pillow's codec, pixel by pixel, and its differentiable form."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from baselines.jpeg import Jpeg
from bench.data.sample import load
from bench.questions.registry import defences
from bench.questions.spec import Spec


def codec(x: Tensor, quality: int, subsampling: int) -> Tensor:
    """The grey levels (B,C,H,W), 0 to 255, of images after Pillow's JPEG."""
    decoded = []
    for pixels in (x * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        image.save(file, "JPEG", quality=quality, subsampling={444: 0, 420: 2}[subsampling])
        decoded.append(np.atleast_3d(np.asarray(Image.open(file))))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


def levels(x: Tensor) -> Tensor:
    return (x * 255).round().byte()


def scenes(channels: int, height: int, width: int) -> Tensor:
    """Smooth shapes with edges, white noise, and black and white, (24,C,H,W)."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 3, width)
    phase = torch.rand(8, channels, 2, 1, 1, generator=generator) * 6
    waves = (
        0.5
        + 0.25 * torch.sin(rows + phase[:, :, 0])
        + 0.25 * torch.cos(2 * columns + phase[:, :, 1])
    )
    shapes = torch.where((rows + columns > 3) & (rows < 2), 0.8 * waves, waves).clamp(0, 1)
    noise = torch.rand(8, channels, height, width, generator=generator)
    return torch.cat([shapes, noise, (noise > 0.5).float()])


@pytest.mark.parametrize("quality", [1, 20, 49, 50, 75, 90, 100])
@pytest.mark.parametrize(
    "size", [(8, 8), (28, 28), (32, 32), (13, 21), (17, 34), (5, 3), (3, 5), (4, 4), (1, 1)]
)
@pytest.mark.parametrize(("channels", "subsampling"), [(1, 420), (3, 420), (3, 444)])
def test_every_pixel_is_the_codecs(
    quality: int, size: tuple[int, int], channels: int, subsampling: int
) -> None:
    x = scenes(channels, *size)
    assert torch.equal(levels(Jpeg(quality, subsampling)(x)), codec(x, quality, subsampling))


def test_every_pixel_of_the_digits_is_the_codecs() -> None:
    x = load(Spec.parse("digits[n=200]")).x
    assert torch.equal(levels(Jpeg(75)(x)), codec(x, 75, 444))


def test_the_defence_subsamples_as_pillow_does_unless_told() -> None:
    x = scenes(3, 16, 16)
    file = io.BytesIO()
    Image.fromarray(levels(x[0]).permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75)
    built = defences.get("jpeg").make(classifier="own:digits-standard")
    assert torch.equal(
        levels(built.purify(x[:1]))[0].permute(1, 2, 0),
        torch.from_numpy(np.array(Image.open(file))),
    )


def test_other_numbers_of_channels_are_grey_each() -> None:
    x = scenes(2, 16, 16)
    each = torch.cat([Jpeg(50)(x[:, :1]), Jpeg(50)(x[:, 1:])], 1)
    assert torch.equal(Jpeg(50)(x), each)


def test_tables_follow_the_quality() -> None:
    assert Jpeg(50).tables[0, 0].tolist() == [16, 11, 10, 16, 24, 40, 51, 61]
    assert Jpeg(75).tables[0, 0, :3].tolist() == [8, 6, 5]  # (16 50 + 50) // 100, ...
    assert Jpeg(25).tables[1, 0, 0] == 34
    assert Jpeg(100).tables.unique().tolist() == [1]
    assert Jpeg(1).tables.max() == 255


@pytest.mark.parametrize("subsampling", [420, 444])
def test_the_differentiable_codec_is_near_and_has_its_own_gradient(
    subsampling: int,
) -> None:
    x = scenes(3, 16, 16)[:12]
    jpeg = Jpeg(75, subsampling)
    assert (jpeg.soft(x) - jpeg(x)).abs().mean() < 0.2 * (jpeg(x) - x).abs().mean() + 1 / 255
    inner = (
        (0.3 + 0.4 * torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
        .double()
        .requires_grad_()
    )
    assert torch.autograd.gradcheck(jpeg.soft, inner, eps=1e-7, atol=1e-4)
    assert torch.autograd.grad(jpeg.soft(inner).sum(), inner)[0].any()


def test_the_codec_itself_has_no_gradient() -> None:
    x = scenes(3, 16, 16).requires_grad_()
    assert not torch.autograd.grad(Jpeg(75, 420)(x).sum(), x)[0].any()
