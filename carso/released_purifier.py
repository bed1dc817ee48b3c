"""The purifiers that the paper's authors released, from their state dicts. arXiv 2306.06081."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BadInput
from carso import released
from carso.model import CARSO
from carso.purifier import Layout, Purifier
from carso.representation import tap_shapes
from carso.tensors import read_tensors

States = Mapping[str, Mapping[str, Tensor]]  # part -> its state dict


def load_released(
    name: str,
    classifier: nn.Module,
    *,
    samples: int = 8,
    aggregation: str = "peel",
    final: nn.Module | None = None,
    folder: Path | None = None,
) -> CARSO:
    """The authors' purifier `name` around its classifier: images to logits.

    `name` is cifar10, cifar100, tinyimagenet200, cifar10-own or cifar100-own. `classifier` is the
    WRN-28-10 that the purifier was trained around, with RobustBench's layer names; its own weights
    are not checked here. The three files are read from `folder`, else from
    `carso.released.folder()`, where `carso.released.fetch_purifier(name)` puts them. BadInput where
    a file is missing, damaged, or not of this scenario, or where the classifier has other layers.
    """
    top = folder or released.folder()
    files = released.purifier_files(name)
    if not all((top / file).is_file() for file in files.values()):
        raise released.missing(f"purifier 'released:{name}'", files.values(), top)
    states = {part: read_tensors(top / file) for part, file in files.items()}
    purifier = assemble(released.layout(name), released.layers(name), states)
    model = CARSO(classifier, purifier, samples, aggregation, final=final)
    purifier.layout.check_taps(tap_shapes(classifier, purifier.layout.image, purifier.layers))
    return model


def from_released(
    repr_compressors: Mapping[str, Tensor],
    repr_fcn_compressor: Mapping[str, Tensor],
    decoder: Mapping[str, Tensor],
    *,
    layers: Sequence[str],
    training_parts: States | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Purifier:
    """The purifier of state dicts in the authors' key names, frozen and in evaluation mode.

    All sizes are read from the shapes. Images are square, as large as the decoder makes them.

    - `layers`: the classifier's layers that it reads, as many as there are compressors.
    - `training_parts`: the state dicts `input_compressor`, `joint_fcn_compressor` and `neck`. They
      were not released. Without them the purifier can only decode, and `encode` raises BadInput.
    - `mean`, `std`: per channel, what `encode` scales images by; nothing where not given.

    No shape tells heights and widths of the taps: `condition` checks their channels, and how many
    values they have together. BadInput, one line, names what is missing, left over, misshapen or
    not finite.
    """
    states = {
        "repr_compressors": repr_compressors,
        "repr_fcn_compressor": repr_fcn_compressor,
        "decoder": decoder,
        **(training_parts or {}),
    }
    if training_parts and set(training_parts) != set(released.TRAINING_PARTS):
        raise BadInput(
            f"training_parts holds {', '.join(sorted(training_parts))}; "
            f"it takes all of {', '.join(released.TRAINING_PARTS)}, or is left out"
        )
    return assemble(read_layout(states, len(layers), mean, std), layers, states)


def read_layout(
    states: States, taps: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Layout:
    """The layout of a purifier of so many taps, from the shapes of its tensors."""
    compressors = count_modules(states, "repr_compressors", r"(\d+)\.")
    if compressors != taps or not taps:
        raise BadInput(f"repr_compressors is of {compressors} taps, and layers names {taps}")
    channels = [
        read_shape(states, "repr_compressors", f"{i}.0.0.weight", 4)[1] for i in range(taps)
    ]
    c, flat = read_shape(states, "repr_fcn_compressor", "1.0.weight", 2)
    decoder = read_decoder(states, c)
    colours = decoder["image"][0]
    return Layout(
        taps=tuple((n, None, None) for n in channels),
        mean=tuple(mean or [0.0] * colours),
        std=tuple(std or [1.0] * colours),
        blocks=count_modules(states, "repr_compressors", r"0\.(\d+)\."),
        bottleneck=c,
        encoder=read_encoder(states),
        flat=flat,
        **decoder,
    )


def read_decoder(states: States, c: int) -> dict[str, Any]:
    """The fields of the layout that the decoder's shapes tell, for a condition of `c` values."""
    stages = max(count_modules(states, "decoder", r"(\d+)\.0\.weight") - 1, 0)
    last = read_shape(states, "decoder", f"{stages + 1}.weight", 4)
    maps = [read_shape(states, "decoder", f"{i}.0.weight", 4)[0] for i in range(1, stages + 1)]
    maps.append(last[0])
    rows, columns = read_shape(states, "decoder", "0.1.weight", 2)
    if columns <= c:
        raise BadInput(
            f"decoder holds 0.1.weight of {columns} columns, "
            f"too few for a condition of {c} values and a latent"
        )
    kernel = last[2]
    seed = math.isqrt(rows // max(maps[0], 1))
    if seed**2 * maps[0] != rows or kernel not in (2, 3) or seed < 4 - kernel:
        raise BadInput(
            f"decoder makes no square image: 0.1.weight has {rows} rows "
            f"for {maps[0]} channels, the last kernel is {tuple(last[2:])}"
        )
    # Every stage doubles n or, towards a last kernel of 2, n - 1.
    side = (seed if kernel == 3 else seed - 1) << stages
    return {
        "image": (last[1], side, side),
        "latent": columns - c,
        "decoder": tuple(maps),
        "last_kernel": kernel,
    }


def read_encoder(states: States) -> tuple[int, ...]:
    """The encoder's channels; none where there is no encoder."""
    part = "input_compressor"
    if part not in states:
        return ()
    count = count_modules(states, part, r"(\d+)\.")
    if not count:
        raise BadInput(f"{part} lacks 0.0.weight")
    return tuple(read_shape(states, part, f"{i}.0.weight", 4)[0] for i in range(count))


def read_shape(states: States, part: str, key: str, rank: int) -> torch.Size:
    """The shape of a tensor of that many dimensions."""
    if key not in states[part]:
        raise BadInput(f"{part} lacks {key}")
    shape = states[part][key].shape
    if len(shape) != rank:
        raise BadInput(f"{part} holds {key} of the shape {tuple(shape)}, not of {rank} dimensions")
    return shape


def count_modules(states: States, part: str, pattern: str) -> int:
    """One more than the largest number that the pattern finds in the names of the part."""
    matches = [re.match(pattern, key) for key in states[part]]
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def assemble(layout: Layout, layers: Sequence[str], states: States) -> Purifier:
    """The purifier of the layout, with the tensors of the state dicts."""
    with torch.device("meta"):  # no time and no random numbers for weights that are replaced
        purifier = Purifier(layout, layers)
    for part, module in released.purifier_parts(purifier).items():
        expected = released.shapes_of(module.state_dict())
        released.compare_shapes(part, released.shapes_of(states[part]), expected)
        released.check_values(part, states[part])
    purifier.to_empty(device="cpu")
    for part, module in released.purifier_parts(purifier).items():
        module.load_state_dict(dict(states[part]))
    for name in ("mean", "std"):
        getattr(purifier, name).copy_(torch.tensor(getattr(layout, name)).view(-1, 1, 1))
    return purifier.requires_grad_(False).eval()
