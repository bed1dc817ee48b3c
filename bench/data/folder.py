"""Any folder of images."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.data.images import SUFFIXES, decode, stack
from bench.data.sample import Dataset, dataset_of
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
    """Your own images: `folder:PATH` with PATH/train/<class>/* and PATH/test/<class>/*, all of one size.

    The classes are the folders of both splits, sorted; ids are positions in the sorted list of files.
    """
    top = Path(path).expanduser()
    if not path or not top.is_dir():
        raise BadInput(
            f"image folder '{path}' does not exist; give folder:PATH with train/<class>/* and test/<class>/* inside"
        )
    classes = sorted(
        {
            found.name
            for half in ("train", "test")
            for found in (top / half).glob("*")
            if found.is_dir()
        }
    )
    files = sorted(
        found
        for found in (top / split).glob("*/*")
        if found.suffix.lower() in SUFFIXES and not found.name.startswith(".")
    )
    if len(classes) < 2 or not files:
        raise BadInput(
            f"image folder '{path}' has {len(classes)} classes and {len(files)} images in {split}/<class>/; it needs 2 and 1 at least"
        )
    x = stack([decode(file, str(file)) for file in files], [str(file) for file in files])
    y = torch.tensor([classes.index(file.parent.name) for file in files])
    return dataset_of("folder", x, y, classes=len(classes))
