"""Random resizing and padding, beside PyTorch's own resizing; the distribution of the draws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.resize_pad import ResizePad, paste


def rough(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


@pytest.mark.parametrize(("side", "sizes"), [(8, (6, 7, 8, 1)), (32, (26, 29, 32, 3))])
def test_whole_sizes_are_interpolate_and_pad(side: int, sizes: tuple[int, ...]) -> None:
    """Each example has its own size and place.

    So all of them in one batch are compared with one call of PyTorch's for each.
    """
    x = rough(4, 3, side, side)
    wide = [max(size - 1, 1) for size in sizes]
    top, left = [(side - size) // 2 for size in sizes], [side - size for size in wide]
    pasted = paste(x, column(*sizes), column(*wide), column(*top), column(*left))
    examples = zip(x, pasted, sizes, wide, top, left, strict=True)
    for image, actual, size, width, down, right in examples:
        small = F.interpolate(image[None], (size, width), mode="bilinear", align_corners=False)
        expected = F.pad(small, (right, side - width - right, down, side - size - down))
        assert (actual - expected[0]).abs().max() < 1e-6


def test_sides_may_differ() -> None:
    x = rough(1, 1, 12, 7)
    pasted = paste(x, column(9), column(5), column(2), column(1))
    expected = F.pad(F.interpolate(x, (9, 5), mode="bilinear", align_corners=False), (1, 1, 2, 1))
    assert (pasted - expected).abs().max() < 1e-6


def test_real_sizes_are_those_of_grid_sample() -> None:
    side = 16
    x = rough(20, 2, side, side).double()
    generator = torch.Generator().manual_seed(1)
    size = side * (0.5 + 0.5 * torch.rand(20, 1, generator=generator).double())
    top, left = (side - size) * torch.rand(2, 20, 1, generator=generator).double()
    pasted = paste(x, size, size, top, left)
    scale = side / size[:, 0]
    theta = torch.zeros(20, 2, 3).double()
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = (
        scale * (side - 2 * start[:, 0]) / side - 1 for start in (left, top)
    )
    grid = F.affine_grid(theta, [20, 2, side, side], align_corners=False)
    expected = (
        F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        * (grid.abs() < 1).all(-1)[:, None]
    )
    assert torch.allclose(pasted, expected, atol=1e-9)
    assert torch.autograd.gradcheck(
        lambda images: paste(images, size[:2], size[:2], top[:2], left[:2]),
        x[:2, :, :, :].requires_grad_(),
    )


def test_white_shows_sizes_and_places() -> None:
    torch.manual_seed(0)
    white = ResizePad(0.75)(torch.ones(4000, 1, 40, 40))[:, 0]
    assert set(white.unique().tolist()) == {0.0, 1.0}
    rows, columns = white.amax(2), white.amax(1)
    for edge in (rows, columns):
        size = edge.sum(1)
        assert 30 <= size.min() < 31 < 39 < size.max() <= 40
        assert abs(size.mean() - 35) < 0.2  # uniform from 30 to 40
        before, after = edge.argmax(1), edge.flip(1).argmax(1)
        assert abs(before.float().mean() - after.float().mean()) < 0.25
        assert (
            abs(before.float().mean() - 2.5) < 0.2
        )  # uniform from 0 to what is left, 5 in the mean
    assert (rows.sum(1) - columns.sum(1)).abs().max() <= 1  # both sides shrink alike
    away = rows.argmax(1)[rows.sum(1) < 33].float(), columns.argmax(1)[rows.sum(1) < 33].float()
    assert (
        abs(torch.corrcoef(torch.stack(away))[0, 1]) < 0.15
    )  # but down and right are each for themselves
