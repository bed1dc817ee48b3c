"""Classifiers that this project trained, and others that are stored the same way.

Each is a file of tensors with a card.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.nets import NETS
from bench import weights
from bench.errors import BadInput, did_you_mean
from bench.questions.registry import classifier

WRAPPERS = ("module", "_orig_mod")  # DataParallel and torch.compile put these before names


def load_classifier(text: str) -> nn.Module:
    """The network of `own:NAME` or `file:PATH`.

    It is made from the card's `arch` {name, params}, and filled with all of the file's tensors.
    """
    tensors, card = weights.load(text)
    return build_filled(lambda: make_network(card.get("arch"), text), tensors, text)


def make_network(arch: Any, text: str) -> nn.Module:
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
        reason = str(error).partition("\n")[0]
        raise BadInput(
            f"the card of '{text}' describes a '{name}' that cannot be built: {reason}"
        ) from None


def build_filled(
    make: Callable[[], nn.Module], tensors: Mapping[str, Tensor], text: str
) -> nn.Module:
    """The network that `make` makes, filled with `tensors`.

    A missing, extra, misshapen or non-finite one is refused, before the network takes any memory.
    """
    with torch.device("meta"):
        state = make().state_dict()
    tensors = strip_wrappers(tensors, state.keys())
    refuse_unfit(state, tensors, text)
    net = make()
    net.load_state_dict(dict(tensors))
    return net


def strip_wrappers(tensors: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
    """The tensors under the `names` that they have in a network that nothing wraps."""
    plain = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        plain[name if name in names else ".".join(parts)] = tensor
    return plain if len(plain) == len(tensors) else tensors


def refuse_unfit(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], text: str) -> None:
    """BadInput that names the first of the tensors that is not as in `state`."""
    refuse_names(text, "lack", state.keys() - tensors.keys())
    refuse_names(text, "also hold", tensors.keys() - state.keys())
    for name, value in state.items():
        tensor = tensors[name]
        if tensor.shape != value.shape:
            raise BadInput(
                f"weights '{text}' do not fit their card: "
                f"{name} is {tuple(tensor.shape)}, not {tuple(value.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise BadInput(f"weights '{text}' are damaged: {name} is not finite")


def refuse_names(text: str, what: str, names: set[str]) -> None:
    """BadInput that names the first three tensors, where there are any."""
    if names:
        more = " and more" if len(names) > 3 else ""
        first = ", ".join(sorted(names)[:3])
        raise BadInput(f"weights '{text}' do not fit their card: they {what} {first}{more}")


def own_classifiers() -> list[str]:
    """The names among the project's weights whose cards describe a classifier."""
    return [name for name in weights.own_names() if is_classifier(name)]


def is_classifier(name: str) -> bool:
    """Whether `own:NAME` has a card that describes a classifier."""
    text = f"own:{name}"
    try:
        arch = weights.read_card(weights.locate(text).with_suffix(".json"), text).get("arch")
    except BadInput:
        return False
    return isinstance(arch, dict) and arch.get("name") in NETS


def digest_own(name: str) -> str:
    return weights.digest(weights.locate(f"own:{name}"))


def digest_file(path: str) -> str:
    return weights.digest(weights.locate(f"file:{path}"))


@classifier("own", names=own_classifiers, digest=digest_own)
def own(argument: str) -> nn.Module:
    """A classifier of this project: weights/NAME.safetensors."""
    return load_classifier(f"own:{argument}")


@classifier("file", digest=digest_file)
def file(argument: str) -> nn.Module:
    """A classifier in a file of yours, safetensors or torch's, with a card beside it.

    The file holds the tensors alone. The card's `arch` names one of the project's networks.
    """
    return load_classifier(f"file:{Path(argument)}")
