"""The images come back as they were packed, and every one of them is in one share of one step."""

from __future__ import annotations

import pytest
import torch

from carso.batches import batch_indices, check_images, pack_images, unpack_images
from carso.recipe import read_recipe


def test_packing_loses_nothing() -> None:
    x = torch.arange(256, dtype=torch.uint8).repeat(40, 1).view(40, 1, 16, 16).float().div_(255)
    small = pack_images(x)
    assert small.dtype == torch.uint8
    assert torch.equal(unpack_images(small), x)
    other = x.clone()
    other[-1, 0, 3, 3] += 1e-6
    assert pack_images(other) is other
    assert (
        pack_images(torch.full((3, 1, 2, 2), 3 / 16)).dtype == torch.float32
    )  # the digits: sixteenths


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.01, 1.01])
def test_bad_pixels(bad: float) -> None:
    x = torch.rand(5000, 1, 2, 2)
    check_images(x)
    x[4999, 0, 1, 1] = bad
    with pytest.raises(ValueError, match=r"not finite, or outside of \[0,1\]"):
        check_images(x)
    assert pack_images(x) is x


@pytest.mark.parametrize(
    ("n", "batch", "count"), [(100, 32, 1), (100, 30, 3), (97, 32, 4), (50000, 5120, 8)]
)
def test_every_image_is_shown_once(n: int, batch: int, count: int) -> None:
    shares = [batch_indices(n, batch, seed=4, rank=rank, count=count) for rank in range(count)]
    for together in zip(*shares, strict=True):
        sizes = [len(share) for share in together]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) <= batch
    seen = torch.cat([share for rank_shares in shares for share in rank_shares])
    assert len(seen) == len(seen.unique()) == n - (n % batch if n % batch < 2 * count else 0)
    alone = batch_indices(n, batch, seed=4)
    assert [sorted(b.tolist()) for b in alone] == [
        sorted(torch.cat(together).tolist()) for together in zip(*shares, strict=True)
    ]
    assert not torch.equal(alone[0], batch_indices(n, batch, seed=5)[0])


@pytest.mark.parametrize(
    ("name", "n", "gpus", "steps", "share", "last"),
    [
        ("cifar10", 50000, 8, 10, 640, 490),
        ("cifar100", 50000, 4, 20, 640, 340),
        ("tinyimagenet200", 100000, 8, 98, 128, 84),
    ],
)
def test_steps_and_shares_of_the_paper(
    name: str, n: int, gpus: int, steps: int, share: int, last: int
) -> None:
    recipe = read_recipe(name)
    epoch = batch_indices(n, recipe.batch, seed=0, count=gpus)
    assert [len(b) for b in epoch] == [share] * (steps - 1) + [last]
    assert (
        recipe.epochs * steps == {"cifar10": 2000, "cifar100": 4000, "tinyimagenet200": 24500}[name]
    )
    assert recipe.lr == pytest.approx(1e-4 * share)
    assert recipe.lr_final == pytest.approx(1.25e-8 * share)
