"""The classifiers that CARSO's authors released, in RobustBench's network."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from baselines.zoo import import_robustbench
from bench import weights
from bench.errors import BadInput, did_you_mean
from bench.questions.registry import classifier
from carso.recipe import read_recipe
from carso.released import (
    SCENARIOS,
    Scenario,
    Shapes,
    check_values,
    compare_shapes,
    fetch_files,
    folder,
    missing,
    shapes_of,
)
from carso.tensors import read_tensors


def released_names() -> list[str]:
    return list(SCENARIOS)


def scenario_of(argument: str) -> tuple[str, Scenario]:
    """Name and scenario of an argument, with or without the pin `@digest`."""
    name = argument.partition("@")[0]
    if name not in SCENARIOS:
        raise BadInput(f"classifier 'released:{name}' is unknown{did_you_mean(name, SCENARIOS)}")
    return name, SCENARIOS[name]


def fetch(argument: str) -> None:
    """Fetch the file if it is missing, and check its keys and shapes.

    BadInput says what to put where if that fails.
    """
    name, scenario = scenario_of(argument)
    fetch_files(f"classifier 'released:{name}'", {scenario.classifier: expected_shapes(scenario)})


def digest(argument: str) -> str | None:
    """The SHA-256, in hex, of the SHA-256 of the file. None where the file is missing."""
    _, scenario = scenario_of(argument)
    path = folder() / scenario.classifier
    if not path.is_file():
        return None
    return hashlib.sha256(weights.digest(path).encode()).hexdigest()


@classifier("released", names=released_names, fetch=fetch, digest=digest)
def released(argument: str) -> nn.Module:
    """A WRN-28-10 that CARSO's authors released: theirs (`-own`), or others'. arXiv 2306.06081.

    Theirs were trained without adversaries; RobustBench has the others too. Every key is checked.
    Those of `-own` may differ: they were trained with anti-aliased convolutions, which have other
    keys, and are loaded without.
    """
    name, scenario = scenario_of(argument)
    path = folder() / scenario.classifier
    if not path.is_file():
        raise missing(f"classifier 'released:{name}'", [scenario.classifier], folder())
    tensors = read_tensors(path)
    compare_shapes(f"'{path}'", shapes_of(tensors), expected_shapes(scenario))
    check_values(f"'{path}'", tensors)
    pin = argument.partition("@")[2]
    actual = (digest(name) or "")[:8]
    if pin and pin != actual:
        raise BadInput(f"weights 'released:{name}' have the digest {actual}, not {pin}")
    with torch.random.fork_rng(devices=[]):
        net = build_network(scenario)
    net.load_state_dict(tensors)
    return net


def expected_shapes(scenario: Scenario) -> Shapes:
    with torch.device("meta"):
        return shapes_of(build_network(scenario).state_dict())


def build_network(scenario: Scenario) -> nn.Module:
    """The untrained network, with the scaling of the images inside."""
    recipe = read_recipe(scenario.recipe)
    make = import_robustbench("model_zoo.architectures.dm_wide_resnet").DMWideResNet
    net: nn.Module = make(
        num_classes=scenario.classes,
        depth=28,
        width=10,
        activation_fn=nn.SiLU,
        mean=recipe.mean,
        std=recipe.std,
    )
    if scenario.recipe == "tinyimagenet200":
        # The network pools the last 8x8 values, which images of 64x64 have four times.
        net.relu = nn.Sequential(nn.SiLU(), nn.AdaptiveAvgPool2d(8))
    return net
