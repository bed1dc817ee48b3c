"""Purifiers on disk: float tensors in a safetensors file, and a JSON card beside it.

The card says what the tensors are, and for which classifier.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import BadInput
from bench.files import file_digest, note_read, write_text
from carso.purifier import Layout, Purifier
from carso.tensors import write_tensors

KINDS = ("carso", "vae")


def fingerprint(classifier: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of a module's state, in hex.

    It is the same for the same weights, wherever they come from.
    """
    digest = hashlib.sha256()
    for name, value in sorted(classifier.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def describe_purifier(purifier: Purifier, classifier: nn.Module) -> dict[str, Any]:
    """What a card must say for `rebuild_purifier` and `check_classifier`."""
    return {
        "arch": "carso.Purifier",
        "kind": "carso" if purifier.layers else "vae",
        "layers": list(purifier.layers),
        "layout": purifier.layout.to_json(),
        "classifier_fingerprint": fingerprint(classifier),
    }


def rebuild_purifier(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Purifier:
    """The purifier of the card's layout, frozen and in evaluation mode.

    BadInput where the tensors do not fit the layout.
    """
    if card.get("arch") != "carso.Purifier":
        raise BadInput(f"the card describes a '{card.get('arch')}', not a carso.Purifier")
    with torch.device("meta"):  # the layout is compared before it takes any memory
        state = make_purifier(card).state_dict()
    odd = sorted(set(state) ^ set(tensors))
    if not odd:
        odd = sorted(name for name in state if state[name].shape != tensors[name].shape)
    if odd:
        more = " and more" if len(odd) > 3 else ""
        raise BadInput(f"the purifier's tensors do not fit its layout: {', '.join(odd[:3])}{more}")
    purifier = make_purifier(card)
    purifier.load_state_dict({name: v.to(state[name].dtype) for name, v in tensors.items()})
    return purifier.requires_grad_(False).eval()


def make_purifier(card: Mapping[str, Any]) -> Purifier:
    """The untrained purifier of the card; BadInput where the card does not say all of it."""
    missing = sorted({"kind", "layers", "layout", "classifier_fingerprint"} - card.keys())
    if missing:
        raise BadInput(f"the card of the purifier lacks {', '.join(missing)}")
    try:
        return Purifier(Layout.from_json(card["layout"]), card["layers"])
    except BadInput:
        raise
    except Exception as error:  # a layout of wrong types can raise anything
        reason = " ".join(str(error).split())
        raise BadInput(f"the card describes a purifier that cannot be built: {reason}") from None


def check_classifier(card: Mapping[str, Any], classifier: nn.Module) -> None:
    """BadInput where the purifier reads the representation of another classifier.

    An unconditional VAE reads none, and fits any classifier.
    """
    if card["kind"] != "carso":
        return
    expected = card["classifier_fingerprint"]
    actual = fingerprint(classifier)
    if actual != expected:
        name = card.get("classifier", "its own")
        raise BadInput(
            f"the purifier was made for another classifier: {name}, fingerprint {expected[:8]}; "
            f"this one's is {actual[:8]}"
        )


def save_purifier(
    path: Path, purifier: Purifier, facts: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write the tensors and the card, each atomically.

    `half`: floating tensors are stored in half precision. ValueError where a tensor is not finite;
    OSError where a file cannot be written.
    """
    tensors = purifier.state_dict()
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            precision = " in half precision" if half else ""
            raise ValueError(f"the purifier is not finite: {name}{precision}; nothing is written")
    write_tensors(path, tensors)
    card = {**facts, "sha256": file_digest(path)}
    write_text(path.with_suffix(".json"), json.dumps(card, indent=1, sort_keys=True) + "\n")


def load_purifier(path: Path) -> tuple[Purifier, dict[str, Any]]:
    """The purifier of a safetensors file, and its card.

    BadInput where one of them is missing, damaged, or not the other's.
    """
    try:
        card: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        digest = file_digest(path)
        note_read(path)
        tensors = load_file(path)
    except OSError as error:
        raise BadInput(
            f"purifier '{path}' cannot be read: {error.filename or path}: {error.strerror or error}"
        ) from None
    except (ValueError, RecursionError, SafetensorError) as error:
        raise BadInput(f"purifier '{path}' or its card is damaged: {error}") from None
    if not isinstance(card, dict):
        raise BadInput(f"the card of purifier '{path}' is damaged: it is no table of facts")
    if card.get("sha256") != digest:
        raise BadInput(
            f"purifier '{path}' is not the one that its card describes "
            f"(sha256 {digest[:8]}, card {str(card.get('sha256'))[:8]})"
        )
    return rebuild_purifier(tensors, card), card
