"""Images with labels, and the fixed subset of a split that a plan asks about."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import BadInput
from bench.questions.registry import datasets
from bench.questions.spec import Spec, Value

SPLITS = ("train", "test")
ORDER_SEED = 20240229  # of the subset of a split: a constant, so that every run, seed and machine asks about the same images


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """x (N,C,H,W) float32 in [0,1]; y (N,) int64 in [0,classes); ids (N,) int64, unique; digest of the whole split that it was taken from."""

    name: str
    x: Tensor
    y: Tensor
    ids: Tensor
    classes: int
    digest: str

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor | Sequence[int]) -> Dataset:
        """The examples at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, x=self.x[chosen], y=self.y[chosen], ids=self.ids[chosen])


def dataset_of(
    name: str, x: Tensor, y: Tensor, *, classes: int, ids: Tensor | None = None
) -> Dataset:
    """A whole split: `x` (N,C,H,W) uint8, or float32 in [0,1]; ids are positions in the split unless given."""
    x = x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x.to(torch.float32)
    x, y = x.contiguous(), y.to(torch.int64).contiguous()
    hashed = hashlib.sha256(f"{tuple(x.shape)}".encode())
    hashed.update(x.numpy().tobytes())
    hashed.update(y.numpy().tobytes())
    return Dataset(
        name,
        x,
        y,
        torch.arange(len(y)) if ids is None else ids.to(torch.int64),
        classes,
        hashed.hexdigest()[:16],
    )


def stratified_order(y: Tensor, ids: Tensor, seed: int = ORDER_SEED) -> Tensor:
    """An order of all examples (N,) of which every beginning holds the classes in their proportions, to within one example or so.

    Within a class the order is that of a hash of seed and id, which no library version can change. The k-th of a class of n stands at
    (k + 1/2) / n, so the first 100 are also the first 100 of the first 200.
    """
    hashes = [hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in ids.tolist()]
    labels = y.tolist()
    place: dict[int, float] = {}
    for label in sorted(set(labels)):
        members = sorted(
            (i for i, other in enumerate(labels) if other == label), key=hashes.__getitem__
        )
        place.update({i: (k + 0.5) / len(members) for k, i in enumerate(members)})
    return torch.tensor(sorted(place, key=lambda i: (place[i], hashes[i])), dtype=torch.int64)


def folder(data_dir: Path | None) -> Path:
    """Where datasets lie: `data_dir`, else the environment variable BENCH_DATA, else `data`."""
    return Path(data_dir or os.environ.get("BENCH_DATA") or "data").expanduser()


def load(spec: Spec, *, split: str = "test", data_dir: Path | None = None) -> Dataset:
    """The `split` of the registered dataset, or of it what `spec` asks for: `n` examples of the fixed stratified order, or the `first`.

    `digits[n=100]`, `cifar10[first=1000]`, `digits`. The order of the answer is part of it. Raises BadInput.
    """
    if split not in SPLITS:
        raise BadInput(f"split '{split}' is unknown; there are: {', '.join(SPLITS)}")
    params = spec.params
    counts = {
        knob: _count(spec.name, knob, params.pop(knob)) for knob in ("n", "first") if knob in params
    }
    if len(counts) > 1:
        raise BadInput(f"dataset '{spec}' has both n and first; give one of them")
    entry = datasets.get(spec.name)
    whole: Dataset = entry.make(split, folder(data_dir), **entry.resolve(params))
    for knob, count in counts.items():
        if count > len(whole):
            raise BadInput(
                f"dataset '{spec.name}': {knob}={count} is more than the {len(whole)} images of its {split} split"
            )
        return whole.take(
            stratified_order(whole.y, whole.ids)[:count] if knob == "n" else range(count)
        )
    return whole


def _count(name: str, knob: str, value: Value) -> int:
    try:
        count = int(str(value))
    except ValueError:
        count = 0
    if count < 1:
        raise BadInput(f"dataset '{name}': {knob}='{value}' is not a number of images, such as 100")
    return count
