"""How each of the project's own classifiers is trained: data, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.errors import BadInput, did_you_mean


@dataclass(frozen=True, slots=True)
class Recipe:
    """`eps` "0" is standard training; otherwise linf PGD of `steps`, whose strength rises to eps over the first `warm` of the epochs.

    AdamW under a one-cycle learning rate up to `lr`; `average` is the decay per step of the weight average that is kept. Half of the images
    are moved by up to `shift` pixels; `flip` mirrors half of them. `noise` is the standard deviation of the Gaussian noise on every image, not
    clipped: what a classifier behind randomized smoothing is trained for (Cohen et al. 2019). `gpu`: it takes minutes with one, days without.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


CNN = {"width": 16, "hidden": 64}
MLP = {"hidden": 128}
RESNET = {"width": 32, "depth": 2, "stride": 2}  # 0.7 million parameters
WIDE = {
    "width": 64,
    "depth": 2,
}  # 2.8 million: a WRN-16-4; a ResNet-18 has 11 million, too many for a file of 10 MB
RECIPES = {
    "digits": {
        "standard": Recipe("cnn", CNN),
        "at": Recipe(
            "cnn", CNN, epochs=150, lr=4e-3, weight_decay=5e-3, eps="11/50"
        ),  # a tenth above the default eps: more robust at it
        "other": Recipe("mlp", MLP),
        "noise": Recipe("cnn", CNN, epochs=150, noise=0.25),
    },
    "mnist": {
        "standard": Recipe("cnn", CNN, epochs=5, batch=128, average=0.998),
        "at": Recipe(
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
        "other": Recipe("mlp", MLP, epochs=5, batch=128, average=0.998),
        "noise": Recipe("cnn", CNN, epochs=8, batch=128, average=0.998, noise=0.25),
    },
    "cifar10-jpeg": {  # the standard one is autoattack:resnet18
        "at": Recipe(
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
        "other": Recipe(
            "cnn",
            {"width": 32, "hidden": 128},
            epochs=12,
            batch=128,
            average=0.998,
            shift=2,
            flip=True,
        ),
        "wide": Recipe(
            *("resnet", WIDE),
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


def recipe_of(dataset: str, name: str) -> Recipe:
    if dataset not in RECIPES:
        raise BadInput(
            f"there is no recipe for classifiers of '{dataset}'{did_you_mean(dataset, RECIPES)}"
        )
    if name not in RECIPES[dataset]:
        raise BadInput(
            f"'{dataset}' has no recipe for a classifier '{name}'; there are: {', '.join(RECIPES[dataset])}"
        )
    return RECIPES[dataset][name]
