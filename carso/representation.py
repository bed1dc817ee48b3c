"""The internal representation of a classifier: the outputs of named layers, in the order in which they are computed."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def taps(classifier: nn.Module, x: Tensor, layers: Collection[str]) -> tuple[Tensor, ...]:
    """Copies of the outputs of the sub-modules named in `layers` (a set), in execution order; their graph to x is kept where gradients are on.

    A module that runs twice is recorded twice. Copies, because what follows may work in place on the output (`ReLU(inplace=True)`).
    ValueError for a layer that does not exist, does not run, or does not return a tensor.
    """
    modules = find(classifier, layers)
    found: list[Tensor] = []
    seen: set[str] = set()
    with ExitStack() as stack:
        for name, module in modules.items():

            def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                if not isinstance(output, Tensor):
                    raise ValueError(
                        f"layer '{name}' returns a {type(output).__name__}, not a tensor"
                    )
                seen.add(name)
                found.append(output.clone())

            stack.callback(module.register_forward_hook(keep).remove)
        if modules:
            classifier(x)
    if idle := [name for name in modules if name not in seen]:
        raise ValueError(f"layer '{idle[0]}' does not run in the classifier's forward pass")
    return tuple(found)


def find(classifier: nn.Module, layers: Collection[str]) -> dict[str, nn.Module]:
    """The named sub-modules; ValueError names the nearest layer for one that does not exist."""
    known = dict(classifier.named_modules())
    for name in layers:
        if not name or name not in known:
            near = (
                difflib.get_close_matches(name, known, n=3, cutoff=0.4)
                or [n for n in known if n][:12]
            )
            raise ValueError(
                f"the classifier has no layer '{name}'; near it: {', '.join(near) or 'none'}"
            )
    return {name: known[name] for name in layers}


def shapes(
    classifier: nn.Module, image: Sequence[int], layers: Collection[str]
) -> tuple[tuple[int, ...], ...]:
    """The shapes of the taps of one image (C,H,W), without the batch dimension."""
    like = next((p for p in classifier.parameters()), torch.empty(0))
    with torch.no_grad():
        return tuple(
            tuple(r.shape[1:])
            for r in taps(classifier, torch.zeros(1, *image, device=like.device), layers)
        )
