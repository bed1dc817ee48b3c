"""The undefended CIFAR-10 classifier among the examples of the package pyautoattack.

It is used from there, not copied.
"""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path

import torch
from torch import nn

from bench.errors import BadInput
from bench.questions.registry import classifier

NAMES = ("resnet18",)


def names() -> list[str]:
    return list(NAMES)


def find_examples() -> Path:
    """The folder of the package's examples; BadInput where it is not installed whole."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise BadInput(
            "classifier 'autoattack:resnet18' needs the package pyautoattack; run make setup"
        )
    folder = Path(str(resources.files("pyautoattack") / "examples"))
    for name in ("resnet.py", "model_test.pt"):
        if not (folder / name).is_file():
            raise BadInput(
                "classifier 'autoattack:resnet18' is not there: the installed pyautoattack lacks "
                f"'{folder / name}'; run make setup"
            )
    return folder


def check_installed(argument: str) -> None:
    find_examples()


@classifier("autoattack", names=names, fetch=check_installed)
def autoattack(argument: str) -> nn.Module:
    """An undefended ResNet-18 for CIFAR-10, of the package pyautoattack (Croce and Hein 2020).

    It takes plain [0,1] images.
    """
    if argument not in NAMES:
        raise BadInput(
            f"classifier 'autoattack:{argument}' is unknown; there are: {', '.join(NAMES)}"
        )
    folder = find_examples()
    spec = importlib.util.spec_from_file_location(
        "pyautoattack_examples_resnet", folder / "resnet.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The random weights that are made first must not shift anyone's randomness.
    with torch.random.fork_rng(devices=[]):
        net: nn.Module = module.ResNet18()
    net.load_state_dict(torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True))
    return net
