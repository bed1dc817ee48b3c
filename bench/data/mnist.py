"""MNIST, in torchvision's layout or as the four files of its authors."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.data.download import fetch
from bench.data.sample import Dataset, dataset_of
from bench.errors import BadInput
from bench.questions.facts import ImageFacts
from bench.questions.registry import dataset

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FOLDERS = ("MNIST/raw", "mnist", "mnist/raw")
MOST_BYTES = 1 << 30  # of an array, where 60000 images have 47 million
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
DIGESTS = {  # of the gzipped files
    "train-images-idx3-ubyte": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}


@dataset(
    "mnist",
    norm="linf",
    eps={"linf": "3/10", "l2": "2", "l1": "10", "l0": "1"},
    n=500,
    images=ImageFacts(10000, (1, 28, 28)),
    roles={
        "standard": "own:mnist-standard",
        "robust": "own:mnist-at",
        "other": "own:mnist-other",
        "noise": "own:mnist-noise",
        "carso": "own:mnist-carso",
        "carso-logits": "own:mnist-carso-logits",
        "carso-standard": "own:mnist-carso-standard",
        "vae": "own:mnist-vae",
        "diffusion": "own:mnist-diffusion",
    },
)
def mnist(split: str, data_dir: Path) -> Dataset:
    """Handwritten digits, 1x28x28; 60000 training and 10000 test images.

    Read from MNIST/raw or mnist in the data folder, gzipped or not. LeCun, Cortes and Burges
    (1998).
    """
    images_name, labels_name = FILES[split]
    place = f"{images_name}.gz and {labels_name}.gz into {data_dir / 'mnist'}"
    for name in FILES[split]:
        path = find_file(data_dir, name)
        if not path.is_file():
            fetch("mnist", f"{URL}{name}.gz", path, DIGESTS[name], place)
    images_path = find_file(data_dir, images_name)
    x = read_idx(images_path, 3)  # (N,28,28)
    y = read_idx(find_file(data_dir, labels_name), 1)
    if x.shape[1:] != (28, 28):
        raise BadInput(
            f"'{images_path}' is no file of dataset 'mnist': its images are "
            f"{x.shape[1]}x{x.shape[2]}, not 28x28"
        )
    top = max(y.tolist(), default=0)
    if len(x) != len(y) or top > 9:
        raise BadInput(
            f"the files of dataset 'mnist' in '{images_path}' do not belong together: "
            f"{len(x)} images, {len(y)} labels up to {top}"
        )
    return dataset_of("mnist", x.unsqueeze(1), y, classes=10)


def find_file(data_dir: Path, name: str) -> Path:
    """The file in one of the folders, gzipped or not; mnist/<name>.gz where there is none."""
    for folder in FOLDERS:
        for suffix in ("", ".gz"):
            path = data_dir / folder / f"{name}{suffix}"
            if path.is_file():
                return path
    return data_dir / "mnist" / f"{name}.gz"


def read_idx(path: Path, dims: int) -> Tensor:
    """A uint8 array of `dims` dimensions in the idx format. Raises BadInput.

    The file holds two zeros, the type 8, `dims`, the big-endian sizes, and the bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dims)
            if struct.unpack_from(">HBB", head) != (0, 8, dims):
                raise ValueError(f"its head is {head[:4].hex()}")
            sizes = struct.unpack_from(f">{dims}I", head, 4)
            count = math.prod(sizes)
            if count > MOST_BYTES:
                raise ValueError(f"its head claims {count} bytes")
            data = file.read(count + 1)  # one more than there should be
        pixels = np.frombuffer(data, np.uint8).reshape(sizes)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise BadInput(
            f"'{path}' is no idx file of bytes in {dims} dimensions, or is damaged: {error}"
        ) from None
    return torch.from_numpy(pixels.copy())
