"""The default: handwritten digits that come with scikit-learn, so that nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.data.sample import Dataset, dataset_of, stratified_order
from bench.questions.facts import ImageFacts
from bench.questions.registry import dataset

# The number of images. The test split never changes: stored answers are about its images.
SPLIT_SEED = 1797
TEST = 500


@dataset(
    "digits",
    norm="linf",
    eps={"linf": "1/5", "l2": "3/4", "l1": "3/2", "l0": "1"},
    n=200,
    images=ImageFacts(500, (1, 8, 8)),
    budget="quick",
    roles={
        "standard": "own:digits-standard",
        "robust": "own:digits-at",
        "other": "own:digits-other",
        "noise": "own:digits-noise",
        "carso": "own:digits-carso",
        "carso-logits": "own:digits-carso-logits",
        "carso-standard": "own:digits-carso-standard",
        "vae": "own:digits-vae",
        "diffusion": "own:digits-diffusion",
    },
)
def digits(split: str, data_dir: Path) -> Dataset:
    """Handwritten digits, 1x8x8 with 17 grey levels; 1297 training, 500 test images, stratified.

    The ids are positions in scikit-learn's `load_digits`. Source: Alpaydin and Kaynak, Optical
    Recognition of Handwritten Digits (UCI, 1998).
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    grey = torch.from_numpy(source.images).float()  # (1797,8,8), levels 0 to 16
    x = grey.div(16).unsqueeze(1)  # (1797,1,8,8)
    y = torch.from_numpy(source.target).long()
    order = stratified_order(y, torch.arange(len(y)), SPLIT_SEED)
    chosen = order[:TEST] if split == "test" else order[TEST:]
    ids = chosen.sort().values
    return dataset_of("digits", x[ids], y[ids], classes=10, ids=ids)
