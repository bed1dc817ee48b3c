"""Street View House Numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.data.download import fetch
from bench.data.sample import Dataset, dataset_of
from bench.errors import BadInput
from bench.questions.registry import dataset


@dataset(
    "svhn",
    norm="linf",
    eps={"linf": "8/255", "l2": "1/2", "l1": "12", "l0": "1"},
    n=1000,
    roles={
        "standard": "own:svhn-standard",
        "robust": "own:svhn-at",
        "other": "own:svhn-other",
        "carso": "own:svhn-carso",
        "vae": "own:svhn-vae",
    },
)
def svhn(split: str, data_dir: Path) -> Dataset:
    """Digits cut out of photographs of houses, 3x32x32; 73257 training and 26032 test images. Netzer et al. (2011)."""
    path = data_dir / f"{split}_32x32.mat"
    if not path.is_file():
        fetch("svhn", data_dir, lambda: download(data_dir, split), f"{path.name} into {data_dir}")
    from scipy.io import loadmat

    try:
        read = loadmat(path, variable_names=("X", "y"))
        x, y = (
            torch.from_numpy(read["X"]).permute(3, 2, 0, 1),
            torch.from_numpy(read["y"]).long().squeeze(1),
        )
    except Exception as error:  # a damaged file can raise anything
        raise BadInput(
            f"'{path}' is no file of dataset 'svhn', or is damaged: {type(error).__name__}: {error}"
        ) from None
    if (
        x.shape[1:] != (3, 32, 32)
        or len(x) != len(y)
        or not 1 <= int(y.min()) <= int(y.max()) <= 10
    ):
        raise BadInput(
            f"'{path}' is no file of dataset 'svhn': {len(x)} images of {tuple(x.shape[1:])}, {len(y)} labels"
        )
    return dataset_of("svhn", x, y % 10, classes=10)  # the files call the digit 0 ten


def download(data_dir: Path, split: str) -> None:
    from torchvision.datasets import SVHN

    SVHN(str(data_dir), split=split, download=True)
