"""Purifiers on disk: float tensors in a safetensors file, and beside it a JSON card that says what they are and for which classifier.

And those that the paper's authors released, of three files each, without a card.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.files import file_digest, write_text
from carso import released
from carso.model import CARSO
from carso.purifier import Layout, Purifier
from carso.representation import shapes
from carso.tensors import read_tensors, write_tensors

KINDS = ("carso", "vae")


def fingerprint(classifier: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of a module's state, in hex: the same for the same weights, wherever they come from."""
    digest = hashlib.sha256()
    for name, value in sorted(classifier.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def describe(purifier: Purifier, classifier: nn.Module) -> dict[str, Any]:
    """What a card must say for `rebuild` and `check`."""
    return {
        "arch": "carso.Purifier",
        "kind": "carso" if purifier.layers else "vae",
        "layers": list(purifier.layers),
        "layout": purifier.layout.to_json(),
        "classifier_fingerprint": fingerprint(classifier),
    }


def rebuild(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Purifier:
    """The purifier, frozen and in evaluation mode; ValueError where the tensors are not those of the card's layout."""
    if card.get("arch") != "carso.Purifier":
        raise ValueError(f"the card describes a '{card.get('arch')}', not a carso.Purifier")
    purifier = Purifier(Layout.from_json(card["layout"]), card["layers"])
    want = purifier.state_dict()
    odd = sorted(set(want) ^ set(tensors)) or sorted(
        k for k in want if want[k].shape != tensors[k].shape
    )
    if odd:
        raise ValueError(
            f"the purifier's tensors do not fit its layout: {', '.join(odd[:3])}{' and more' if len(odd) > 3 else ''}"
        )
    purifier.load_state_dict({k: v.to(want[k].dtype) for k, v in tensors.items()})
    return purifier.requires_grad_(False).eval()


def check(card: Mapping[str, Any], classifier: nn.Module) -> None:
    """ValueError where the purifier reads the representation of another classifier; an unconditional VAE reads none, and fits any."""
    if (
        card["kind"] == "carso"
        and (found := fingerprint(classifier)) != card["classifier_fingerprint"]
    ):
        raise ValueError(
            f"the purifier was made for another classifier: {card.get('classifier', 'its own')}, fingerprint {card['classifier_fingerprint'][:8]}; "
            f"this one's is {found[:8]}"
        )


def save(path: Path, purifier: Purifier, facts: Mapping[str, Any], *, half: bool = False) -> None:
    """Write the tensors (floating ones in half precision where asked) and the card, each atomically.

    ValueError where a tensor is not finite; OSError where a file cannot be written.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in purifier.state_dict().items()}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    if bad := [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]:
        raise ValueError(
            f"the purifier is not finite: {bad[0]}{' in half precision' if half else ''}; nothing is written"
        )
    write_tensors(path, tensors)
    card = {**facts, "sha256": file_digest(path)}
    write_text(path.with_suffix(".json"), json.dumps(card, indent=1, sort_keys=True) + "\n")


def load(path: Path) -> tuple[Purifier, dict[str, Any]]:
    """The purifier of a safetensors file and its card; ValueError where one of them is missing, damaged, or not the other's."""
    beside = path.with_suffix(".json")
    try:
        card: dict[str, Any] = json.loads(beside.read_text())
        digest = file_digest(path)
        tensors = load_file(path)
    except OSError as error:
        raise ValueError(
            f"purifier '{path}' cannot be read: {error.filename or path}: {error.strerror or error}"
        ) from None
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"purifier '{path}' or its card is damaged: {error}") from None
    if card.get("sha256") != digest:
        raise ValueError(
            f"purifier '{path}' is not the one that its card describes (sha256 {digest[:8]}, card {str(card.get('sha256'))[:8]})"
        )
    return rebuild(tensors, card), card


def load_released(
    name: str,
    classifier: nn.Module,
    *,
    samples: int = 8,
    aggregation: str = "peel",
    final: nn.Module | None = None,
    folder: Path | None = None,
) -> CARSO:
    """The authors' purifier `name` (cifar10, cifar100, tinyimagenet200, cifar10-own, cifar100-own) around its classifier: images to logits.

    `classifier`: the WRN-28-10 that it was trained around, with RobustBench's layer names; its own weights are not checked here. The three files are
    read from `folder` (else `carso.released.folder()`), where `carso.released.ensure(name)` puts them. ValueError, one line, where one is
    missing, damaged, or not of this scenario, or where the classifier's layers are others.
    """
    top, found = folder or released.folder(), released.files(name)
    if not all((top / file).is_file() for file in found.values()):
        raise released.missing(f"purifier 'released:{name}'", found.values(), top)
    held = {part: read_tensors(top / file) for part, file in found.items()}
    purifier = _assemble(released.layout(name), released.layers(name), held)
    model = CARSO(classifier, purifier, samples, aggregation, final=final)
    purifier.layout.check(shapes(classifier, purifier.layout.image, purifier.layers))
    return model


def from_released(
    repr_compressors: Mapping[str, Tensor],
    repr_fcn_compressor: Mapping[str, Tensor],
    decoder: Mapping[str, Tensor],
    *,
    layers: Sequence[str],
    training_parts: Mapping[str, Mapping[str, Tensor]] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Purifier:
    """The purifier, frozen and in evaluation mode, of state dicts in the authors' key names; all sizes are read from the shapes.

    `layers`: the classifier's layers that it reads, as many as there are compressors. Images are square, as large as the decoder makes them.
    `training_parts`: the state dicts `input_compressor`, `joint_fcn_compressor` and `neck`; without them, as they were not released, the
    purifier can only decode, and `encode` raises ValueError. `mean`, `std`: per channel, what `encode` scales images by; nothing where they are not
    given. No shape tells heights and widths of the taps: `condition` checks their channels, and how many values they have together.
    ValueError, one line, names what is missing, left over, misshapen or not finite.
    """
    held = {
        "repr_compressors": repr_compressors,
        "repr_fcn_compressor": repr_fcn_compressor,
        "decoder": decoder,
    }
    extra = dict(training_parts or {})
    if extra and set(extra) != set(released.TRAINING):
        raise ValueError(
            f"training_parts holds {', '.join(sorted(extra))}; it takes all of {', '.join(released.TRAINING)}, or is left out"
        )
    return _assemble(_layout({**held, **extra}, len(layers), mean, std), layers, {**held, **extra})


def _layout(
    held: Mapping[str, Mapping[str, Tensor]],
    count: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Layout:
    def shape(part: str, key: str, rank: int) -> torch.Size:
        if key not in held[part]:
            raise ValueError(f"{part} lacks {key}")
        if held[part][key].ndim != rank:
            raise ValueError(
                f"{part} holds {key} of the shape {tuple(held[part][key].shape)}, not of {rank} dimensions"
            )
        return held[part][key].shape

    def many(part: str, pattern: str) -> int:
        return 1 + max(
            (int(found[1]) for key in held[part] if (found := re.match(pattern, key))), default=-1
        )

    if (taps := many("repr_compressors", r"(\d+)\.")) != count or not count:
        raise ValueError(f"repr_compressors is of {taps} taps, and layers names {count}")
    channels = [shape("repr_compressors", f"{i}.0.0.weight", 4)[1] for i in range(count)]
    c, flat = shape("repr_fcn_compressor", "1.0.weight", 2)
    stages = max(many("decoder", r"(\d+)\.0\.weight") - 1, 0)
    last = shape("decoder", f"{stages + 1}.weight", 4)
    maps = [shape("decoder", f"{i}.0.weight", 4)[0] for i in range(1, stages + 1)] + [last[0]]
    rows, columns = shape("decoder", "0.1.weight", 2)
    seed = math.isqrt(rows // max(maps[0], 1))
    if columns <= c:
        raise ValueError(
            f"decoder holds 0.1.weight of {columns} columns, too few for a condition of {c} values and a latent"
        )
    if seed**2 * maps[0] != rows or last[2] not in (2, 3) or seed < 4 - last[2]:
        raise ValueError(
            f"decoder makes no square image: 0.1.weight has {rows} rows for {maps[0]} channels, the last kernel is {tuple(last[2:])}"
        )
    side = (
        seed if last[2] == 3 else seed - 1
    ) << stages  # every stage doubles n, or, towards a last kernel of 2, n-1
    widths = []
    if "input_compressor" in held:
        widths = [
            shape("input_compressor", f"{i}.0.weight", 4)[0]
            for i in range(many("input_compressor", r"(\d+)\."))
        ]
        if not widths:
            raise ValueError("input_compressor lacks 0.0.weight")
    return Layout(
        image=(last[1], side, side),
        taps=tuple((n, None, None) for n in channels),
        mean=tuple(mean or [0.0] * last[1]),
        std=tuple(std or [1.0] * last[1]),
        blocks=many("repr_compressors", r"0\.(\d+)\."),
        bottleneck=c,
        latent=columns - c,
        encoder=tuple(widths),
        decoder=tuple(maps),
        last_kernel=last[2],
        flat=flat,
    )


def _assemble(
    layout: Layout, layers: Sequence[str], held: Mapping[str, Mapping[str, Tensor]]
) -> Purifier:
    with torch.device(
        "meta"
    ):  # no time and no random numbers for weights that are replaced at once
        purifier = Purifier(layout, layers)
    for part, module in released.modules(purifier).items():
        released.compare(part, released.shapes(held[part]), released.shapes(module.state_dict()))
        released.sound(part, held[part])
    purifier.to_empty(device="cpu")
    for part, module in released.modules(purifier).items():
        module.load_state_dict(dict(held[part]))
    for name in ("mean", "std"):
        getattr(purifier, name).copy_(torch.tensor(getattr(layout, name)).view(-1, 1, 1))
    return purifier.requires_grad_(False).eval()
