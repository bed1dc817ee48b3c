"""Tiny ImageNet, as its archive unpacks."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.data.images import decode, stack
from bench.data.sample import Dataset, dataset_of
from bench.errors import BadInput
from bench.questions.registry import dataset


@dataset(
    "tiny-imagenet",
    norm="linf",
    eps={"linf": "8/255", "l2": "1/2", "l1": "12", "l0": "1"},
    n=1000,
    roles={
        "standard": "own:tiny-imagenet-standard",
        "robust": "released:tinyimagenet200",
        "other": "own:tiny-imagenet-other",
        "carso": "released",
        "vae": "own:tiny-imagenet-vae",
    },
)
def tiny_imagenet(split: str, data_dir: Path) -> Dataset:
    """Photographs of two hundred kinds of things, 3x64x64; 100000 training images, and the 10000 of its validation split as test images.

    The labels of its own test split were never published. Le and Yang (2015).
    """
    top = data_dir / "tiny-imagenet-200"
    listing = top / ("wnids.txt" if split == "train" else "val/val_annotations.txt")
    if not (top / "wnids.txt").is_file() or not listing.is_file():
        raise BadInput(
            f"dataset 'tiny-imagenet' is not there: unpack tiny-imagenet-200.zip into {data_dir}, so that {listing} exists"
        )
    kinds = {name: i for i, name in enumerate(sorted((top / "wnids.txt").read_text().split()))}
    if split == "train":
        labelled = [
            (file, name)
            for name in kinds
            for file in sorted((top / "train" / name / "images").glob("*.JPEG"))
        ]
    else:
        rows = [line.split("\t")[:2] for line in listing.read_text().splitlines() if line]
        labelled = sorted((top / "val" / "images" / row[0], row[-1]) for row in rows)
    for file, name in labelled:
        if name not in kinds or not file.is_file():
            raise BadInput(
                f"dataset 'tiny-imagenet' is not complete: '{file}' of class '{name}' is missing or of no class in wnids.txt"
            )
    if not labelled:
        raise BadInput(f"dataset 'tiny-imagenet' has no images in '{top}'")
    x = stack(
        [decode(file, str(file)) for file, _ in labelled], [str(file) for file, _ in labelled]
    )
    return dataset_of(
        "tiny-imagenet", x, torch.tensor([kinds[name] for _, name in labelled]), classes=len(kinds)
    )
