"""CIFAR-10 and CIFAR-100 in torchvision's layout, and CIFAR-10 as an archive of JPEG files."""

from __future__ import annotations

import io
import lzma
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.data.download import fetch
from bench.data.images import decode, stack
from bench.data.sample import Dataset, dataset_of
from bench.errors import BadInput
from bench.questions.registry import dataset

EPS = {"linf": "8/255", "l2": "1/2", "l1": "12", "l0": "1"}
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataset(
    "cifar10",
    norm="linf",
    eps=EPS,
    n=1000,
    roles={
        "standard": "autoattack:resnet18",
        "robust": "robustbench:Cui2023Decoupled_WRN-28-10",
        "other": "robustbench:Standard",
        "carso": "released",
        "vae": "own:cifar10-vae",
    },
)
def cifar10(split: str, data_dir: Path) -> Dataset:
    """Photographs of ten kinds of things, 3x32x32; 50000 training and 10000 test images. Krizhevsky (2009)."""
    batches = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    return read("cifar10", data_dir, "cifar-10", batches, b"labels", 10)


@dataset(
    "cifar100",
    norm="linf",
    eps=EPS,
    n=1000,
    roles={
        "robust": "robustbench:cifar100/Linf/Cui2023Decoupled_WRN-28-10",
        "standard": "own:cifar100-standard",
        "other": "own:cifar100-other",
        "carso": "released",
        "vae": "own:cifar100-vae",
    },
)
def cifar100(split: str, data_dir: Path) -> Dataset:
    """Photographs of a hundred kinds of things, 3x32x32; 50000 training and 10000 test images. Krizhevsky (2009)."""
    return read("cifar100", data_dir, "cifar-100", [split], b"fine_labels", 100)


@dataset(
    "cifar10-jpeg",
    norm="linf",
    eps=EPS,
    n=500,
    roles={
        "standard": "autoattack:resnet18",
        "robust": "own:cifar10-jpeg-at",
        "other": "own:cifar10-jpeg-other",
        "carso": "own:cifar10-jpeg-carso",
        "vae": "own:cifar10-jpeg-vae",
        "wide": "own:cifar10-jpeg-wide",
        "carso-wide": "own:cifar10-jpeg-carso-wide",
        "vae-wide": "own:cifar10-jpeg-vae-wide",
    },
)
def cifar10_jpeg(split: str, data_dir: Path) -> Dataset:
    """CIFAR-10 after JPEG compression, from cifar10-jpeg.tar.xz; published numbers do not hold on it, for the images differ a little."""
    path = data_dir / "cifar10-jpeg.tar.xz"
    if not path.is_file():
        raise BadInput(
            f"dataset 'cifar10-jpeg' is not there: put cifar10-jpeg.tar.xz, with <split>/<class>/*.jpg inside, into {data_dir}"
        )
    found = {}
    try:
        with tarfile.open(path) as archive:
            for (
                member
            ) in archive:  # in the order of the file: compressed archives cannot be read at random
                parts = member.name.split("/")
                if member.isfile() and len(parts) == 4 and parts[1] == split and parts[2] in TEN:
                    file = archive.extractfile(member)
                    found[parts[2], parts[3]] = decode(
                        io.BytesIO(file.read() if file else b""), f"{path}: {member.name}"
                    )
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise BadInput(f"'{path}' is no tar.xz archive, or is damaged: {error}") from None
    if not found:
        raise BadInput(f"'{path}' holds no {split}/<class>/*.jpg")
    names = sorted(found)  # ids are positions in this order, whatever that of the archive
    y = torch.tensor([TEN.index(kind) for kind, _ in names])
    return dataset_of(
        "cifar10-jpeg",
        stack([found[name] for name in names], [f"{path}: {'/'.join(name)}" for name in names]),
        y,
        classes=10,
    )


def read(
    name: str, data_dir: Path, stem: str, batches: list[str], labels: bytes, classes: int
) -> Dataset:
    """The images and labels of the batches of a CIFAR archive, as torchvision unpacks it; fetched where they are missing."""
    folder = data_dir / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    if not all((folder / batch).is_file() for batch in batches):
        fetch(
            name,
            data_dir,
            lambda: download(data_dir, classes),
            f"{stem}-python.tar.gz, or what is in it, into {data_dir}",
        )
    read = [load_batch(folder / batch, labels) for batch in batches]
    x, y = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*read, strict=True))
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise BadInput(f"the labels in '{folder}' are not those of {classes} classes")
    return dataset_of(name, x, y, classes=classes)


def download(data_dir: Path, classes: int) -> None:
    """torchvision's download: it checks the archive's digest, and takes one that is there already."""
    from torchvision.datasets import CIFAR10, CIFAR100

    (CIFAR10 if classes == 10 else CIFAR100)(str(data_dir), download=True)


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain values and numpy arrays. Anything else is refused: a pickle can run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]  # private, but what every pickled array names
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_batch(path: Path, labels: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images (N,3,32,32) uint8 and labels (N,) int64 of one batch file."""
    try:
        with path.open("rb") as file:
            batch = ArraysOnly(file, encoding="bytes").load()
        x = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        y = np.asarray(batch[labels], np.int64).reshape(len(x))
    except Exception as error:  # a damaged pickle can raise anything
        raise BadInput(
            f"'{path}' is no CIFAR batch, or is damaged: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from None
    return x, y
