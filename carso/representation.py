"""The internal representation of a classifier: outputs of named layers in the order they run."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BadInput


def taps(classifier: nn.Module, x: Tensor, layers: Collection[str]) -> tuple[Tensor, ...]:
    """Copies of the outputs of the sub-modules named in `layers` (a set), in execution order.

    Their graph to x is kept where gradients are on. A module that runs twice is recorded twice.
    They are copies, because later layers may work in place on the output
    (`ReLU(inplace=True)`). BadInput for a layer that does not exist, does not run, or does not
    return a tensor.
    """
    modules = find_layers(classifier, layers)
    outputs: list[Tensor] = []
    names_run: set[str] = set()
    with ExitStack() as stack:
        for name, module in modules.items():

            def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                if not isinstance(output, Tensor):
                    kind = type(output).__name__
                    raise BadInput(f"layer '{name}' returns a {kind}, not a tensor")
                names_run.add(name)
                outputs.append(output.clone())

            stack.callback(module.register_forward_hook(keep).remove)
        if modules:
            classifier(x)
    for name in modules:
        if name not in names_run:
            raise BadInput(f"layer '{name}' does not run in the classifier's forward pass")
    return tuple(outputs)


def find_layers(classifier: nn.Module, layers: Collection[str]) -> dict[str, nn.Module]:
    """The named sub-modules. BadInput names the nearest layers for one that does not exist."""
    modules = dict(classifier.named_modules())
    for name in layers:
        if not name or name not in modules:
            near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
            near = near or [known for known in modules if known][:12]
            raise BadInput(
                f"the classifier has no layer '{name}'; near it: {', '.join(near) or 'none'}"
            )
    return {name: modules[name] for name in layers}


def tap_shapes(
    classifier: nn.Module, image: Sequence[int], layers: Collection[str]
) -> tuple[tuple[int, ...], ...]:
    """The shapes of the taps of one image (C,H,W), without the batch dimension."""
    parameter = next((p for p in classifier.parameters()), torch.empty(0))
    x = torch.zeros(1, *image, device=parameter.device)
    with torch.no_grad():
        return tuple(tuple(tap.shape[1:]) for tap in taps(classifier, x, layers))
