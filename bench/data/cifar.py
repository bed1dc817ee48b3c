"""CIFAR-10 and CIFAR-100 in torchvision's layout."""

from __future__ import annotations

import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.data.download import fetch
from bench.data.sample import Dataset, dataset_of
from bench.errors import BadInput
from bench.files import write_bytes
from bench.questions.facts import ImageFacts
from bench.questions.registry import dataset

URL = "https://www.cs.toronto.edu/~kriz/"
EPS = {"linf": "8/255", "l2": "1/2", "l1": "12", "l0": "1"}


@dataclass(frozen=True, slots=True)
class Archive:
    """A file of the authors, and the folder that it unpacks to."""

    file: str
    digest: str
    folder: str


ARCHIVES = {
    10: Archive(
        "cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"
    ),
    100: Archive(
        "cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"
    ),
}


@dataset(
    "cifar10",
    norm="linf",
    eps=EPS,
    n=1000,
    images=ImageFacts(10000, (3, 32, 32)),
    roles={
        "standard": "autoattack:resnet18",
        "robust": "robustbench:Cui2023Decoupled_WRN-28-10",
        "other": "robustbench:Standard",
        "carso": "released",
        "vae": "own:cifar10-vae",
    },
)
def cifar10(split: str, data_dir: Path) -> Dataset:
    """Photographs of ten kinds of things, 3x32x32; 50000 training and 10000 test images.

    Read from cifar-10-batches-py in the data folder. Krizhevsky (2009).
    """
    batches = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    return read_batches("cifar10", data_dir, batches, b"labels", 10)


@dataset(
    "cifar100",
    norm="linf",
    eps=EPS,
    n=1000,
    images=ImageFacts(10000, (3, 32, 32)),
    roles={
        "robust": "robustbench:cifar100/Linf/Cui2023Decoupled_WRN-28-10",
        "standard": "own:cifar100-standard",
        "other": "own:cifar100-other",
        "carso": "released",
        "vae": "own:cifar100-vae",
    },
)
def cifar100(split: str, data_dir: Path) -> Dataset:
    """Photographs of a hundred kinds of things, 3x32x32; 50000 training and 10000 test images.

    Read from cifar-100-python in the data folder. Krizhevsky (2009).
    """
    return read_batches("cifar100", data_dir, [split], b"fine_labels", 100)


def read_batches(
    name: str, data_dir: Path, batches: list[str], label_key: bytes, classes: int
) -> Dataset:
    """The images and labels of some batch files, downloaded where one is missing."""
    archive = ARCHIVES[classes]
    folder = data_dir / archive.folder
    if not all((folder / batch).is_file() for batch in batches):
        path = data_dir / archive.file
        place = f"{archive.file}, or what is in it, into {data_dir}"
        fetch(name, URL + archive.file, path, archive.digest, place)
        unpack(path, folder, batches)
    arrays = [load_batch(folder / batch, label_key) for batch in batches]
    x = torch.from_numpy(np.concatenate([images for images, _ in arrays]))  # (N,3,32,32)
    y = torch.from_numpy(np.concatenate([labels for _, labels in arrays]))
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise BadInput(f"the labels in '{folder}' are not those of {classes} classes")
    return dataset_of(name, x, y, classes=classes)


def unpack(path: Path, folder: Path, batches: list[str]) -> None:
    """Write batch files of the archive at `path` into `folder`. Raises BadInput."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for batch in batches:
                file = archive.extractfile(f"{folder.name}/{batch}")
                write_bytes(folder / batch, file.read() if file else b"")
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise BadInput(f"'{path}' is no CIFAR archive, or is damaged: {error}") from None


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain values and numpy arrays.

    Anything else is refused: a pickle can run any program.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            # private, but what every pickled array names
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_batch(path: Path, label_key: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images (N,3,32,32) uint8 and labels (N,) int64 of one batch file. Raises BadInput."""
    try:
        with path.open("rb") as file:
            batch = ArraysOnly(file, encoding="bytes").load()
        x = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        y = np.asarray(batch[label_key], np.int64).reshape(len(x))
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).partition("\n")[0]
        raise BadInput(
            f"'{path}' is no CIFAR batch, or is damaged: {type(error).__name__}: {reason}"
        ) from None
    return x, y
