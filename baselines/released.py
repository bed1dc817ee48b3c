"""The classifiers that CARSO's authors released, in RobustBench's network."""

from __future__ import annotations

import hashlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from baselines.zoo import package
from bench import weights
from bench.errors import BadInput, did_you_mean
from bench.questions.registry import classifier
from carso import recipe
from carso.released import (
    SCENARIOS,
    Scenario,
    Shapes,
    compare,
    folder,
    missing,
    obtain,
    shapes,
    sound,
)


def released_names() -> list[str]:
    return list(SCENARIOS)


def parts(argument: str) -> tuple[str, Scenario]:
    """Name and scenario of an argument, with or without the pin `@digest`."""
    name = argument.partition("@")[0]
    if name not in SCENARIOS:
        raise BadInput(f"classifier 'released:{name}' is unknown{did_you_mean(name, SCENARIOS)}")
    return name, SCENARIOS[name]


def ensure(argument: str) -> None:
    """Fetch the file if it is missing, and check its keys and shapes; BadInput with one line that says what to put where if that fails."""
    name, scenario = parts(argument)
    try:
        obtain(f"classifier 'released:{name}'", {scenario.classifier: wanted(scenario)})
    except ValueError as error:
        raise BadInput(str(error)) from None


def digest(argument: str) -> str | None:
    """Of the file, as 8 hex digits: of the SHA-256 of its SHA-256. None where it is missing."""
    path = folder() / parts(argument)[1].classifier
    return hashlib.sha256(weights.digest(path).encode()).hexdigest()[:8] if path.is_file() else None


@classifier("released", names=released_names, fetch=ensure, digest=digest)
def released(argument: str) -> nn.Module:
    """A WRN-28-10 that CARSO's authors released: theirs (`-own`, trained without adversaries), or others' that RobustBench has too. arXiv 2306.06081.

    Every key is checked. Those of `-own` may differ: they were trained with anti-aliased convolutions, which have other keys, and are loaded without.
    """
    name, scenario = parts(argument)
    path = folder() / scenario.classifier
    try:
        if not path.is_file():
            raise missing(f"classifier 'released:{name}'", [scenario.classifier], folder())
        tensors = load_file(path)
        compare(f"'{path}'", shapes(tensors), wanted(scenario))
        sound(f"'{path}'", tensors)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"'{path}' is not a safetensors file, or is damaged: {error}") from None
    except ValueError as error:
        raise BadInput(str(error)) from None
    if (pinned := argument.partition("@")[2]) and pinned != (found := digest(name)):
        raise BadInput(f"weights 'released:{name}' have the digest {found}, not {pinned}")
    with torch.random.fork_rng(devices=[]):
        net = network(scenario)
    net.load_state_dict(tensors)
    return net


def wanted(scenario: Scenario) -> Shapes:
    with torch.device("meta"):
        return shapes(network(scenario).state_dict())


def network(scenario: Scenario) -> nn.Module:
    """The untrained network, with the scaling of the images inside."""
    told = recipe.read(scenario.recipe)
    make = package("model_zoo.architectures.dm_wide_resnet").DMWideResNet
    net: nn.Module = make(
        num_classes=scenario.classes,
        depth=28,
        width=10,
        activation_fn=nn.SiLU,
        mean=told.mean,
        std=told.std,
    )
    if (
        scenario.recipe == "tinyimagenet200"
    ):  # it pools the last 8x8 values, which images of 64x64 have four times
        net.relu = nn.Sequential(nn.SiLU(), nn.AdaptiveAvgPool2d(8))
    return net
