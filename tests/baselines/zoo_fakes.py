"""Files as RobustBench lays them out, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from baselines import zoo
from bench.errors import BadInput

# The smallest of the zoo: 2.2 million parameters.
SMALL = "cifar10/corruptions/Hendrycks2020AugMix_WRN"
PAGE = b"<!DOCTYPE html><html><title>Quota exceeded</title></html>"
SCALING = ("mu", "sigma", "mean", "std")  # of the images: not learnt


def untrained(argument: str) -> nn.Module:
    """The network of an entry, as RobustBench's table builds it, or timm."""
    model = zoo.find_model(argument)
    if model.entry["gdrive_id"] is None:
        import timm

        name = f"{model.name}_{model.dataset}_{model.threat}".lower().replace("-", "_")
        net: nn.Module = timm.create_model(name)
    else:
        net = model.entry["model"]()
    return net.eval()


def shaken(net: nn.Module) -> nn.Module:
    """The network with other weights and statistics than a fresh one has."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point() and name.rpartition(".")[2] not in SCALING:
                value.add_(torch.rand_like(value) - 0.5, alpha=0.02)
    return net


def random_state() -> dict[str, torch.Tensor]:
    return shaken(untrained(SMALL)).state_dict()


def put(path: Path, content: Any, *, zipped: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def refusal(action: Callable[[str], object], argument: str) -> str:
    """The one line with which the action refuses the argument."""
    with pytest.raises(BadInput) as caught:
        action(argument)
    assert "\n" not in str(caught.value)
    return str(caught.value)
