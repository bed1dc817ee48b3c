"""Images with labels, and the fixed subset of a split that a plan asks about."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import BadInput
from bench.files import data_folder
from bench.questions.registry import datasets
from bench.questions.spec import Spec, Value

SPLITS = ("train", "test")
SUBSET_KNOBS = ("n", "first")
# The seed of the order of a split: a constant, so that every machine asks about the same images.
ORDER_SEED = 20240229


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images of one split, with labels and ids. Values that are out of range raise BadInput.

    `x` (N,C,H,W) is float32 in [0,1]; `y` (N,) is int64 in [0,classes); `ids` (N,) is int64, and
    each id is unique. `digest` is that of the whole split that the images were taken from.
    """

    name: str
    x: Tensor
    y: Tensor
    ids: Tensor
    classes: int
    digest: str

    def __post_init__(self) -> None:
        check_images(self.name, self.x)
        check_labels(self.name, self.y, len(self.x), self.classes)
        if len(self.ids) != len(self.x) or len(self.ids.unique()) != len(self.ids):
            raise BadInput(f"dataset '{self.name}': the ids of its images are not unique")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor | Sequence[int]) -> Dataset:
        """The examples at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, x=self.x[chosen], y=self.y[chosen], ids=self.ids[chosen])


def check_images(name: str, x: Tensor) -> None:
    """BadInput unless `x` is (N,C,H,W), float32, and in [0,1]; NaN is not in [0,1]."""
    if x.dim() != 4 or x.dtype != torch.float32:
        shape = tuple(x.shape)
        raise BadInput(f"dataset '{name}': its images are {x.dtype} {shape}, not float (N,C,H,W)")
    if len(x) == 0:
        return
    low, high = x.aminmax()
    if not (low >= 0 and high <= 1):
        raise BadInput(
            f"dataset '{name}': its images lie in [{float(low):g}, {float(high):g}], not in [0, 1]"
        )


def check_labels(name: str, y: Tensor, n: int, classes: int) -> None:
    """BadInput unless `y` is (n,), of whole numbers, and in [0,classes)."""
    if y.shape != (n,) or y.is_floating_point() or y.is_complex():
        shape = tuple(y.shape)
        raise BadInput(f"dataset '{name}': its labels are {y.dtype} {shape}, not {n} whole numbers")
    if n and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise BadInput(
            f"dataset '{name}': its labels lie in [{int(y.min())}, {int(y.max())}], "
            f"not in [0, {classes - 1}]"
        )


def dataset_of(
    name: str, x: Tensor, y: Tensor, *, classes: int, ids: Tensor | None = None
) -> Dataset:
    """A whole split of images `x` (N,C,H,W), uint8 or float in [0,1], and of labels `y` (N,).

    The ids are positions in the split where none are given.
    """
    if x.dtype == torch.uint8:
        x = x.to(torch.float32).div_(255)
    elif x.is_floating_point():
        x = x.to(torch.float32)
    x = x.contiguous()
    check_labels(name, y, len(x), classes)
    y = y.to(torch.int64).contiguous()
    ids = torch.arange(len(y)) if ids is None else ids.to(torch.int64)
    return Dataset(name, x, y, ids, classes, digest_of(x, y))


def digest_of(x: Tensor, y: Tensor) -> str:
    """16 hex digits of the images and labels."""
    digest = hashlib.sha256(f"{tuple(x.shape)}".encode())
    digest.update(x.numpy().data)
    digest.update(y.numpy().data)
    return digest.hexdigest()[:16]


def stratified_order(y: Tensor, ids: Tensor, seed: int = ORDER_SEED) -> Tensor:
    """An order of all examples (N,): every beginning of it holds the classes in proportion.

    Within a class the order is that of a hash of seed and id, which no library version can change.
    The k-th example of a class of n stands at (k + 1/2) / n of the order. So the first 100 of the
    order are also the first 100 of its first 200.
    """
    hashes = [hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in ids.tolist()]
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(y.tolist()):
        members[label].append(index)
    position: dict[int, float] = {}
    for indices in members.values():
        for k, index in enumerate(sorted(indices, key=hashes.__getitem__)):
            position[index] = (k + 0.5) / len(indices)
    order = sorted(position, key=lambda index: (position[index], hashes[index]))
    return torch.tensor(order, dtype=torch.int64)


def load(spec: Spec, *, split: str = "test", data_dir: Path | None = None) -> Dataset:
    """The `split` of a registered dataset, or the subset of it that `spec` asks for.

    `digits[n=100]` is 100 examples of the stratified order, in that order. `cifar10[first=1000]`
    is the first 1000 images, and `digits` the whole split. Raises BadInput.
    """
    if split not in SPLITS:
        raise BadInput(f"split '{split}' is unknown; there are: {', '.join(SPLITS)}")
    subset = [knob for knob in SUBSET_KNOBS if knob in spec.params]
    if len(subset) > 1:
        raise BadInput(f"dataset '{spec}' has both n and first; give one of them")
    knobs = {knob: value for knob, value in spec.params.items() if knob not in subset}
    counts = {knob: read_count(spec.name, knob, spec.params[knob]) for knob in subset}
    entry = datasets.get(spec.name)
    whole: Dataset = entry.make(split, data_folder(data_dir), **entry.resolve(knobs))
    for knob, count in counts.items():
        if count > len(whole):
            raise BadInput(
                f"dataset '{spec.name}': {knob}={count} is more than "
                f"the {len(whole)} images of its {split} split"
            )
    if "n" in counts:
        return whole.take(stratified_order(whole.y, whole.ids)[: counts["n"]])
    if "first" in counts:
        return whole.take(range(counts["first"]))
    return whole


def read_count(name: str, knob: str, value: Value) -> int:
    """A number of images, of at least 1."""
    try:
        count = int(str(value))
    except ValueError:
        count = 0
    if count < 1:
        raise BadInput(f"dataset '{name}': {knob}='{value}' is not a number of images, such as 100")
    return count
