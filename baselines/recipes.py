"""How each of the project's own classifiers and diffusion models is trained: data, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from bench.errors import BadInput, did_you_mean

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ClassifierRecipe:
    """How a classifier is trained, by AdamW under a one-cycle learning rate up to `lr`.

    `eps` "0" is standard training. Otherwise it is linf PGD of `steps`, whose strength rises to eps
    over the first `warm` of the epochs. `average` is the decay per step of the weight average that
    is kept. Half of the images are moved by up to `shift` pixels; `flip` mirrors half of them.
    `noise` is the standard deviation of the Gaussian noise on every image, not clipped. It is for a
    classifier behind randomized smoothing (Cohen et al. 2019). `gpu`: it takes minutes with one,
    days without.
    """

    net: str
    size: Mapping[str, int] = field(default_factory=dict)
    epochs: int = 60
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 1e-4
    eps: str = "0"
    steps: int = 7
    warm: float = 0.3
    average: float = 0.99
    shift: int = 1
    flip: bool = False
    noise: float = 0.0
    gpu: bool = False


@dataclass(frozen=True, slots=True)
class DiffusionRecipe:
    """How a UNet of `widths` channels at each resolution learns to predict the noise.

    AdamW minimises its error under a one-cycle rate up to `lr`. The noise of the schedule's
    `noising` steps rises linearly from `beta_start` to `beta_end` in variance. `average` is the
    decay per step of the weight average that is kept; `validation` training images are held out.
    """

    widths: tuple[int, ...]
    steps: int
    batch: int = 128
    lr: float = 4e-3
    average: float = 0.998
    noising: int = 100
    beta_start: float = 1e-3
    beta_end: float = 0.2
    validation: int = 160


CNN = {"width": 16, "hidden": 64}
MLP = {"hidden": 128}
RESNET = {"width": 32, "depth": 2, "stride": 2}  # 0.7 million parameters
# 2.8 million: a WRN-16-4. A ResNet-18 has 11 million, too many for a file of 10 MB.
WIDE = {"width": 64, "depth": 2}
CLASSIFIER_RECIPES = {
    "digits": {
        "standard": ClassifierRecipe("cnn", CNN),
        # A tenth above the default eps makes it more robust at the default.
        "at": ClassifierRecipe("cnn", CNN, epochs=150, lr=4e-3, weight_decay=5e-3, eps="11/50"),
        "other": ClassifierRecipe("mlp", MLP),
        "noise": ClassifierRecipe("cnn", CNN, epochs=150, noise=0.25),
    },
    "mnist": {
        "standard": ClassifierRecipe("cnn", CNN, epochs=5, batch=128, average=0.998),
        "at": ClassifierRecipe(
            "cnn",
            CNN,
            epochs=14,
            batch=128,
            lr=4e-3,
            weight_decay=5e-4,
            eps="8/25",
            steps=5,
            average=0.998,
        ),
        "other": ClassifierRecipe("mlp", MLP, epochs=5, batch=128, average=0.998),
        "noise": ClassifierRecipe("cnn", CNN, epochs=8, batch=128, average=0.998, noise=0.25),
    },
    "cifar10-jpeg": {  # the standard one is autoattack:resnet18
        "at": ClassifierRecipe(
            "resnet",
            RESNET,
            epochs=18,
            batch=128,
            lr=4e-3,
            weight_decay=5e-3,
            eps="8/255",
            steps=2,
            average=0.998,
            shift=2,
            flip=True,
        ),
        "other": ClassifierRecipe(
            "cnn",
            {"width": 32, "hidden": 128},
            epochs=12,
            batch=128,
            average=0.998,
            shift=2,
            flip=True,
        ),
        "wide": ClassifierRecipe(
            "resnet",
            WIDE,
            epochs=24,
            batch=256,
            lr=3e-3,
            weight_decay=5e-3,
            eps="8/255",
            steps=5,
            average=0.998,
            shift=3,
            flip=True,
            gpu=True,
        ),
    },
}


DIFFUSION_RECIPES = {
    "digits": DiffusionRecipe((32, 32), steps=600),
    "mnist": DiffusionRecipe((16, 32, 32), steps=450, lr=2e-3, validation=200),
}


def find_recipe(recipes: Mapping[str, R], dataset: str, what: str) -> R:
    """What `recipes` has for the dataset; BadInput says for what kind of model there is none."""
    if dataset not in recipes:
        raise BadInput(
            f"there is no recipe for {what} of '{dataset}'{did_you_mean(dataset, recipes)}"
        )
    return recipes[dataset]


def find_classifier_recipe(dataset: str, name: str) -> ClassifierRecipe:
    recipes = find_recipe(CLASSIFIER_RECIPES, dataset, "classifiers")
    if name not in recipes:
        raise BadInput(
            f"'{dataset}' has no recipe for a classifier '{name}'; there are: {', '.join(recipes)}"
        )
    return recipes[name]
