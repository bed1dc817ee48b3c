"""Any folder of images."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.data.images import SUFFIXES, read_images
from bench.data.sample import SPLITS, Dataset, dataset_of
from bench.errors import BadInput
from bench.questions.registry import dataset


@dataset(
    "folder",
    norm="linf",
    eps={"linf": "8/255", "l2": "1/2", "l1": "12", "l0": "1"},
    n=200,
    roles={},
)
def folder(split: str, data_dir: Path, *, path: str = "") -> Dataset:
    """Your own images: `folder:PATH`, PATH/train/<class>/* and PATH/test/<class>/*, of one size.

    The classes are the folders of both splits, sorted. The ids are positions in the sorted list of
    files.
    """
    top = Path(path).expanduser()
    if not path or not top.is_dir():
        raise BadInput(
            f"image folder '{path}' does not exist; "
            "give folder:PATH with train/<class>/* and test/<class>/* inside"
        )
    classes = class_names(top)
    files = sorted(file for file in (top / split).glob("*/*") if is_image(file))
    if len(classes) < 2 or not files:
        raise BadInput(
            f"image folder '{path}' has {len(classes)} classes and {len(files)} images "
            f"in {split}/<class>/; it needs 2 and 1 at least"
        )
    y = torch.tensor([classes.index(file.parent.name) for file in files])
    return dataset_of("folder", read_images(files), y, classes=len(classes))


def class_names(top: Path) -> list[str]:
    """The names of the folders in either split, sorted."""
    names: set[str] = set()
    for split in SPLITS:
        names.update(path.name for path in (top / split).glob("*") if path.is_dir())
    return sorted(names)


def is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
