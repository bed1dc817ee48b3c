"""Tiny ImageNet, as its archive unpacks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from bench.data.images import read_images
from bench.data.sample import Dataset, dataset_of
from bench.errors import BadInput
from bench.questions.facts import ImageFacts
from bench.questions.registry import dataset


@dataset(
    "tiny-imagenet",
    norm="linf",
    eps={"linf": "8/255", "l2": "1/2", "l1": "12", "l0": "1"},
    n=1000,
    images=ImageFacts(10000, (3, 64, 64)),
    roles={
        "standard": "own:tiny-imagenet-standard",
        "robust": "released:tinyimagenet200",
        "other": "own:tiny-imagenet-other",
        "carso": "released",
        "vae": "own:tiny-imagenet-vae",
    },
)
def tiny_imagenet(split: str, data_dir: Path) -> Dataset:
    """Photographs of 200 kinds of things, 3x64x64; 100000 training and 10000 test images.

    The test images are those of its validation split: the labels of its own test split were never
    published. Le and Yang (2015).
    """
    top = data_dir / "tiny-imagenet-200"
    annotations = top / "val/val_annotations.txt"
    listing = top / "wnids.txt" if split == "train" else annotations
    if not (top / "wnids.txt").is_file() or not listing.is_file():
        raise BadInput(
            f"dataset 'tiny-imagenet' is not there: unpack tiny-imagenet-200.zip into {data_dir}, "
            f"so that {listing} exists"
        )
    names = sorted((top / "wnids.txt").read_text().split())
    labels = {name: label for label, name in enumerate(names)}
    examples = train_examples(top, labels) if split == "train" else val_examples(top, annotations)
    for file, name in examples:
        if name not in labels or not file.is_file():
            raise BadInput(
                f"dataset 'tiny-imagenet' is not complete: '{file}' of class '{name}' "
                "is missing or of no class in wnids.txt"
            )
    if not examples:
        raise BadInput(f"dataset 'tiny-imagenet' has no images in '{top}'")
    x = read_images([file for file, _ in examples])
    y = torch.tensor([labels[name] for _, name in examples])
    return dataset_of("tiny-imagenet", x, y, classes=len(labels))


def train_examples(top: Path, names: Iterable[str]) -> list[tuple[Path, str]]:
    """The files of the training split with the names of their classes, class by class."""
    examples: list[tuple[Path, str]] = []
    for name in names:
        files = sorted((top / "train" / name / "images").glob("*.JPEG"))
        examples += [(file, name) for file in files]
    return examples


def val_examples(top: Path, annotations: Path) -> list[tuple[Path, str]]:
    """The files of the validation split with the names of their classes, sorted by file."""
    rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
    return sorted((top / "val" / "images" / row[0], row[-1]) for row in rows)
