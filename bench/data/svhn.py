"""Street View House Numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bench.data.download import fetch
from bench.data.sample import Dataset, dataset_of
from bench.errors import BadInput
from bench.questions.facts import ImageFacts
from bench.questions.registry import dataset

URL = "http://ufldl.stanford.edu/housenumbers/"
DIGESTS = {
    "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
}


@dataset(
    "svhn",
    norm="linf",
    eps={"linf": "8/255", "l2": "1/2", "l1": "12", "l0": "1"},
    n=1000,
    images=ImageFacts(26032, (3, 32, 32)),
    roles={
        "standard": "own:svhn-standard",
        "robust": "own:svhn-at",
        "other": "own:svhn-other",
        "carso": "own:svhn-carso",
        "vae": "own:svhn-vae",
    },
)
def svhn(split: str, data_dir: Path) -> Dataset:
    """Digits on photographs of houses, 3x32x32; 73257 training and 26032 test images.

    Read from <split>_32x32.mat in the data folder. Netzer et al. (2011).
    """
    path = data_dir / f"{split}_32x32.mat"
    if not path.is_file():
        place = f"{path.name} into {data_dir}"
        fetch("svhn", URL + path.name, path, DIGESTS[path.name], place)
    x, y = read_mat(path)
    labelled = len(x) == len(y) > 0 and 1 <= int(y.min()) <= int(y.max()) <= 10
    if x.shape[1:] != (3, 32, 32) or not labelled:
        raise BadInput(
            f"'{path}' is no file of dataset 'svhn': "
            f"{len(x)} images of {tuple(x.shape[1:])}, {len(y)} labels"
        )
    return dataset_of("svhn", x, y % 10, classes=10)  # the files call the digit 0 ten


def read_mat(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N,3,32,32) uint8 and labels (N,) from 1 to 10. Raises BadInput."""
    from scipy.io import loadmat

    try:
        arrays = loadmat(path, variable_names=("X", "y"))
        x = torch.from_numpy(arrays["X"]).permute(3, 2, 0, 1)
        y = torch.from_numpy(arrays["y"]).long().squeeze(1)
    except Exception as error:  # a damaged file can raise anything
        raise BadInput(
            f"'{path}' is no file of dataset 'svhn', or is damaged: {type(error).__name__}: {error}"
        ) from None
    return x, y
