"""Classifiers that this project trained, and any others that are stored the same way: a safetensors file with a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.nets import NETS
from bench import weights
from bench.errors import BadInput, did_you_mean
from bench.questions.registry import classifier


def build(text: str) -> nn.Module:
    """The network of `own:NAME` or `file:PATH`: made from the card's `arch` {name, params}, filled with the file's tensors, all of them."""
    tensors, facts = weights.load(text)
    net = make(facts.get("arch"), text)
    fill(net, tensors, text)
    return net


def make(arch: Any, text: str) -> nn.Module:
    """The untrained network that `arch` describes; `text` names it in errors."""
    if not isinstance(arch, Mapping) or not isinstance(arch.get("params"), Mapping):
        raise BadInput(
            f"the card of '{text}' describes no network: 'arch' must have a name and params"
        )
    name = str(arch.get("name"))
    if name not in NETS:
        raise BadInput(
            f"weights '{text}' hold a '{name}', which is no classifier{did_you_mean(name, NETS)}"
        )
    try:
        return NETS[name](**arch["params"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"the card of '{text}' describes a '{name}' that cannot be built: {str(error).partition(chr(10))[0]}"
        ) from None


def fill(net: nn.Module, tensors: Mapping[str, Tensor], text: str) -> None:
    """Load `tensors` into `net`; a missing, extra, misshapen or non-finite one is refused."""
    wants = net.state_dict()
    for what, names in (
        ("lack", wants.keys() - tensors.keys()),
        ("also hold", tensors.keys() - wants.keys()),
    ):
        if names:
            raise BadInput(
                f"weights '{text}' do not fit their card: they {what} {', '.join(sorted(names)[:3])}{' and more' * (len(names) > 3)}"
            )
    for name, want in wants.items():
        if tensors[name].shape != want.shape:
            raise BadInput(
                f"weights '{text}' do not fit their card: {name} is {tuple(tensors[name].shape)}, not {tuple(want.shape)}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise BadInput(f"weights '{text}' are damaged: {name} is not finite")
    net.load_state_dict(dict(tensors))


def own_classifiers() -> list[str]:
    """The names among the project's weights whose cards describe a classifier."""
    cards = {
        name: json.loads(weights.locate(f"own:{name}").with_suffix(".json").read_text())
        for name in weights.own_names()
    }
    return [
        name
        for name, facts in cards.items()
        if isinstance(facts.get("arch"), dict) and facts["arch"].get("name") in NETS
    ]


def digest_own(name: str) -> str:
    return weights.digest(weights.locate(f"own:{name}"))


def digest_file(path: str) -> str:
    return weights.digest(weights.locate(f"file:{path}"))


@classifier("own", names=own_classifiers, digest=digest_own)
def own(argument: str) -> nn.Module:
    """A classifier of this project: weights/NAME.safetensors."""
    return build(f"own:{argument}")


@classifier("file", digest=digest_file)
def file(argument: str) -> nn.Module:
    """A classifier in a safetensors file of yours, with a card beside it whose `arch` names one of the project's networks."""
    return build(f"file:{Path(argument)}")
