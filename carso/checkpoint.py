"""Purifiers on disk: float tensors in a safetensors file, and beside it a JSON card that says what they are and for which classifier."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from carso.atomic import replace
from carso.purifier import Layout, Purifier

KINDS = ("carso", "vae")


def fingerprint(classifier: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of a module's state, in hex: the same for the same weights, wherever they come from."""
    digest = hashlib.sha256()
    for name, value in sorted(classifier.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
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
    odd = sorted(set(want) ^ set(tensors)) or sorted(k for k in want if want[k].shape != tensors[k].shape)
    if odd:
        raise ValueError(f"the purifier's tensors do not fit its layout: {', '.join(odd[:3])}{' and more' if len(odd) > 3 else ''}")
    purifier.load_state_dict({k: v.to(want[k].dtype) for k, v in tensors.items()})
    return purifier.requires_grad_(False).eval()


def check(card: Mapping[str, Any], classifier: nn.Module) -> None:
    """ValueError where the purifier reads the representation of another classifier; an unconditional VAE reads none, and fits any."""
    if card["kind"] == "carso" and (found := fingerprint(classifier)) != card["classifier_fingerprint"]:
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
        raise ValueError(f"the purifier is not finite: {bad[0]}{' in half precision' if half else ''}; nothing is written")
    digest = ""

    def write(fresh: Path) -> None:
        nonlocal digest
        save_file(tensors, fresh)
        digest = hashlib.sha256(fresh.read_bytes()).hexdigest()

    replace(path, write)
    card = {**facts, "sha256": digest}
    replace(path.with_suffix(".json"), lambda fresh: _write(fresh, json.dumps(card, indent=1, sort_keys=True) + "\n"))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def load(path: Path) -> tuple[Purifier, dict[str, Any]]:
    """The purifier of a safetensors file and its card; ValueError where one of them is missing, damaged, or not the other's."""
    beside = path.with_suffix(".json")
    try:
        card: dict[str, Any] = json.loads(beside.read_text())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        tensors = load_file(path)
    except OSError as error:
        raise ValueError(f"purifier '{path}' cannot be read: {error.filename or path}: {error.strerror or error}") from None
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"purifier '{path}' or its card is damaged: {error}") from None
    if card.get("sha256") != digest:
        raise ValueError(f"purifier '{path}' is not the one that its card describes (sha256 {digest[:8]}, card {str(card.get('sha256'))[:8]})")
    return rebuild(tensors, card), card
