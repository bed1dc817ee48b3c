"""Input transformations: exact values, agreement with a real codec, and the gradients that they hide and declare."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from baselines.bit_depth import BitDepth
from baselines.jpeg import Jpeg
from baselines.transform import Transformed, soft_round
from bench.data.sample import load
from bench.registry import defences
from bench.spec import BadInput, Spec


def codec(x: Tensor, quality: int) -> Tensor:
    """Images through Pillow's JPEG, without chroma subsampling."""
    found = []
    for pixels in (x * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality, subsampling=0)
        found.append(np.atleast_3d(np.asarray(Image.open(file))))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 255


def scene(channels: int, height: int, width: int) -> Tensor:
    """Smooth shapes with edges, as photographs have them, (16,C,H,W)."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 3, width)
    phase = torch.rand(16, channels, 2, 1, 1, generator=generator) * 6
    waves = 0.5 + 0.25 * torch.sin(rows + phase[:, :, 0]) + 0.25 * torch.cos(2 * columns + phase[:, :, 1])
    return torch.where((rows + columns > 3) & (rows < 2), 0.8 * waves, waves).clamp(0, 1)


@pytest.mark.parametrize("quality", [20, 50, 75, 90, 100])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 13, 21)])
def test_jpeg_agrees_with_the_codec(quality: int, channels: int, height: int, width: int) -> None:
    """To 2 grey levels but where a coefficient falls between two steps of the table, which integer arithmetic decides otherwise."""
    x = scene(channels, height, width)
    off = (Jpeg(quality)(x, torch.round) - codec(x, quality)).abs() * 255
    assert (off > 2.01).float().mean() < 0.02
    assert off.mean() < 0.25
    assert (x - codec(x, quality)).abs().mean() * 255 > 2 * off.mean()  # the compression itself is much larger than the disagreement


def test_jpeg_agrees_with_the_codec_on_digits() -> None:
    x = load(Spec.parse("digits[n=200]")).x
    off = (Jpeg(75)(x, torch.round) - codec(x, 75)).abs() * 255
    assert (off > 2.01).float().mean() < 0.015


def test_jpeg_keeps_what_it_can_keep() -> None:
    flat = torch.full((1, 3, 16, 16), 128 / 255)
    assert torch.equal(Jpeg(10)(flat, torch.round), flat)
    grey = scene(1, 16, 16)
    assert (Jpeg(100)(grey, torch.round) - grey).abs().max() * 255 <= 2
    once = Jpeg(75)(grey, torch.round)
    assert (Jpeg(75)(once, torch.round) - once).abs().mean() < (once - grey).abs().mean() / 4


def test_jpeg_tables_follow_the_quality() -> None:
    assert Jpeg(50).tables[0, 0].tolist() == [16, 11, 10, 16, 24, 40, 51, 61]
    assert Jpeg(75).tables[0, 0, :3].tolist() == [8, 6, 5]  # (16 50 + 50) // 100, ...
    assert Jpeg(25).tables[1, 0, 0] == 34
    assert Jpeg(100).tables.unique().tolist() == [1]
    assert Jpeg(1).tables.max() == 255


def test_bit_depth_values() -> None:
    x = torch.tensor([0.0, 0.07, 0.08, 0.5, 0.51, 0.93, 1.0]).view(1, 1, 1, -1)
    assert torch.equal(BitDepth(1)(x, torch.round).flatten(), torch.tensor([0.0, 0, 0, 0, 1, 1, 1]))
    assert torch.equal(BitDepth(3)(x, torch.round).flatten() * 7, torch.tensor([0.0, 0, 1, 4, 4, 7, 7]))
    eight = torch.arange(256).view(1, 1, 16, 16) / 255
    assert torch.equal(BitDepth(8)(eight, torch.round), eight)


def test_soft_round() -> None:
    x = torch.tensor([0.0, 0.25, 0.75, 2.5], requires_grad=True)
    soft_round(x).sum().backward()
    assert torch.allclose(soft_round(x), torch.tensor([0.0, 0.25**3, 1 - 0.25**3, 2.125]))
    assert torch.allclose(x.grad, 3 * torch.tensor([0.0, 0.25, 0.25, 0.5]) ** 2)


@pytest.mark.parametrize("text", ["jpeg[quality=101]", "jpeg[quality=0]", "bit-depth[bits=0]", "bit-depth[bits=9]"])
def test_knobs_out_of_range(text: str) -> None:
    spec = Spec.parse(text)
    params = defences.get(spec.name).resolve({**spec.params, "classifier": "own:digits-standard"})
    with pytest.raises(BadInput, match="is not between 1 and"):
        defences.get(spec.name).make(**params)


def slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x)[:, 0].sum(), x)[0]


@pytest.fixture(params=["jpeg", "bit-depth"])
def defended(request: pytest.FixtureRequest) -> Transformed:
    built = defences.get(request.param).make(classifier="own:digits-standard")
    assert isinstance(built, Transformed)
    return built.eval().requires_grad_(False)


def test_the_parts_compose_to_the_defence(defended: Transformed) -> None:
    x = load(Spec.parse("digits[n=50]")).x
    x_hat = defended.purify(x)
    assert 0 <= x_hat.min() <= x_hat.max() <= 1
    assert not torch.equal(x_hat, x)
    assert torch.equal(defended.classify(x_hat), defended(x))
    assert torch.equal(defended.base(x_hat), defended(x))


def test_the_rounding_hides_the_gradient_and_the_surrogates_show_it(defended: Transformed) -> None:
    x = load(Spec.parse("digits[n=50]")).x
    assert not slope(defended, x).any()
    identity = defended.surrogates["identity"]
    assert torch.allclose(identity(x), defended(x), atol=1e-4)
    assert torch.allclose(slope(identity, x), slope(defended.base, defended.purify(x)), atol=1e-4)
    rough = x + 0.3 / 255 + 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    assert (slope(defended.surrogates["soft"], rough.clamp(0, 1)) != 0).flatten(1).any(1).float().mean() > 0.9
