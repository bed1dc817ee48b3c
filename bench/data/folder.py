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
    files. What is hidden (`.ipynb_checkpoints`, `.DS_Store`, `__MACOSX`) and what is no image is
    ignored.
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
    notes = describe_differences(top)
    return dataset_of("folder", read_images(files), y, classes=len(classes), notes=notes)


def class_names(top: Path) -> list[str]:
    """The names of the folders in either split, sorted."""
    names: set[str] = set()
    for split in SPLITS:
        names |= classes_of(top / split)
    return sorted(names)


def classes_of(folder: Path) -> set[str]:
    """The names of the folders in a split."""
    return {path.name for path in folder.glob("*") if path.is_dir() and not is_hidden(path)}


def describe_differences(top: Path) -> list[str]:
    """A line for each split whose classes the other lacks; none where there is but one split."""
    train, test = (classes_of(top / split) for split in SPLITS)
    lines = []
    for only, split in ((train - test, "train"), (test - train, "test")):
        if only and train and test:
            names = ", ".join(sorted(only))
            lines.append(f"image folder '{top}': only {split}/ has the classes {names}")
    return lines


def is_image(path: Path) -> bool:
    hidden = is_hidden(path) or is_hidden(path.parent)
    return path.suffix.lower() in SUFFIXES and path.is_file() and not hidden


def is_hidden(path: Path) -> bool:
    """Whether an editor or an archiver left the file or folder there."""
    return path.name.startswith(".") or path.name == "__MACOSX"
