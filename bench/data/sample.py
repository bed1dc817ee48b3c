"""Images with labels, and the fixed subset of a split that a plan asks about."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.data.contract import find_doubts, to_ids, to_images, to_labels, to_tensor
from bench.errors import BadInput
from bench.files import data_folder
from bench.questions.plugin_calls import told_in_one_line
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
    each id is unique. `digest` is that of the whole split that the images were taken from. `notes`
    say what looks wrong, and may be right.
    """

    name: str
    x: Tensor
    y: Tensor
    ids: Tensor
    classes: int
    digest: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        x = to_tensor(self.name, "images", self.x)
        ids = to_ids(self.name, self.ids, len(x))
        x = to_images(self.name, x, ids)
        y = to_labels(self.name, self.y, len(x), self.classes, ids)
        for field, value in (("x", x), ("y", y), ("ids", ids)):
            object.__setattr__(self, field, value)  # of a frozen class

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor | Sequence[int]) -> Dataset:
        """The examples at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, x=self.x[chosen], y=self.y[chosen], ids=self.ids[chosen])


def dataset_of(
    name: str,
    x: Any,
    y: Any,
    *,
    classes: int,
    ids: Any = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """A whole split of images `x` (N,C,H,W), uint8 or float in [0,1], and of labels `y` (N,).

    The ids are positions in the split where none are given. Raises BadInput where the values break
    the contract of `Dataset`.
    """
    x = to_tensor(name, "images", x)
    ids = to_ids(name, torch.arange(len(x)) if ids is None else ids, len(x))
    # Copies: the plug-in may change its own later.
    ids = ids.clone()
    x = to_images(name, x, ids).clone()
    y = to_labels(name, y, len(x), classes, ids).clone()
    doubts = find_doubts(name, x, y, classes)
    return Dataset(name, x, y, ids, classes, digest_of(x, y), (*notes, *doubts))


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
    whole = load_split(Spec.of(spec.name, knobs), split, data_folder(data_dir))
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


def load_split(spec: Spec, split: str, data_dir: Path) -> Dataset:
    """The whole split; BadInput whatever its factory raises or returns."""
    entry = datasets.get(spec.name)
    knobs = entry.resolve(spec.params)
    complaint = f"dataset '{spec.name}' cannot be loaded:"
    with told_in_one_line(complaint, system_errors_pass=True):
        whole = entry.make(split, data_dir, **knobs)
    if not isinstance(whole, Dataset):
        raise BadInput(
            f"dataset '{spec.name}' gives a {type(whole).__name__}, and no Dataset: "
            "let it return dataset_of(name, images, labels, classes=10)"
        )
    if not len(whole):
        raise BadInput(f"dataset '{spec.name}' has no images in its {split} split")
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
