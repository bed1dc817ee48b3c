"""Weights files: tensors with a JSON card beside them, found by name, checked by digest.

`own:NAME` is `NAME.safetensors` of this project, or of a package with plug-ins. `file:PATH` is any
such file, or one of `torch.save` with tensors alone. A card says what the tensors are (`arch`), how
they came to be (data, seed, recipe, command, commit, accuracies), and the `sha256` of the file.
Torch is imported where tensors are read.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from bench.entry_points import checkout, declared
from bench.errors import BadInput, did_you_mean
from bench.files import file_digest, model_folder, note_read, replace_atomically, write_text
from bench.tensor_files import read_tensors

PINNED = re.compile(r"(.+)@([0-9a-f]{8})", re.DOTALL)
MOST_CARD = 1 << 20  # bytes


def folders() -> tuple[Path, ...]:
    """Where `own:` weights lie, in this order.

    In packages that say so, in the checkout, in the folder of models.
    """
    paths: list[Path] = []
    for point in declared("bench.weights"):
        package = importlib.util.find_spec(point.value)
        if package:
            paths += map(Path, package.submodule_search_locations or ())
    if root := checkout():
        paths.append(root / "weights")
    return (*paths, model_folder())


def own_names() -> list[str]:
    return sorted(path.stem for folder in folders() for path in folder.glob("*.safetensors"))


def path_of_own(name: str) -> Path | None:
    """The file of `own:NAME`, from the first folder that has it."""
    paths = (folder / f"{name}.safetensors" for folder in folders())
    return next((path for path in paths if path.is_file()), None)


def path_to_write(name: str) -> Path:
    """Where training keeps `own:NAME`.

    In the place of the checkout's file of that name, else in weights/.
    """
    root = checkout()
    old = path_of_own(name)
    if root and old and old.is_relative_to(root):
        return old
    return (root or Path()) / "weights" / f"{name}.safetensors"


def locate(text: str) -> Path:
    """The file that `own:NAME` or `file:PATH` names, with or without the pin of a plan."""
    scheme, _, argument = split_pin(text)[0].partition(":")
    if scheme == "own":
        path = path_of_own(argument)
        if path is None:
            raise BadInput(
                f"weights 'own:{argument}' are not there{did_you_mean(argument, own_names())}"
            )
        return path
    if scheme != "file":
        raise BadInput(f"weights '{text}' are not own:NAME or file:PATH")
    path = Path(argument).expanduser()
    if not path.is_file():
        raise BadInput(f"weights file '{path}' does not exist")
    return path


def split_pin(text: str) -> tuple[str, str]:
    """`own:digits-at@1a2b3c4d` -> (`own:digits-at`, `1a2b3c4d`); no pin is an empty text.

    A file that has the very name, `file:at@1a2b3c4d`, is meant as it is.
    """
    match = PINNED.fullmatch(text)
    scheme, _, argument = text.partition(":")
    if match is None or (scheme == "file" and Path(argument).expanduser().is_file()):
        return text, ""
    return match[1], match[2]


def digest(path: Path) -> str:
    """SHA-256 of the file, in hex."""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _digest(path: Path, _mtime: int, _size: int) -> str:
    return file_digest(path)


def pin(text: str) -> str:
    """`own:digits-at` -> `own:digits-at@1a2b3c4d`.

    So a question names the very weights that it asks about.
    """
    if not text.startswith(("own:", "file:")):
        return text
    actual = digest(locate(text))[:8]
    bare, stated = split_pin(text)
    if stated and stated != actual:
        raise BadInput(f"weights '{bare}' have the digest {actual}, not {stated}")
    return f"{bare}@{actual}"


def card(text: str) -> dict[str, Any]:
    """The card of the weights, checked against the file."""
    path = locate(text)
    pin(text)
    facts = read_card(path.with_suffix(".json"), text)
    # A card that a user writes for a file of theirs need not say it: the pin is of the file.
    stated = str(facts.get("sha256", digest(path) if text.startswith("file:") else "none"))
    actual = digest(path)
    if stated != actual:
        raise BadInput(
            f"weights file '{path}' is not the one that its card describes "
            f"(sha256 {actual[:8]}, card {stated[:8]})"
        )
    return facts


def read_card(path: Path, text: str) -> dict[str, Any]:
    """The card at `path` of the weights `text`."""
    try:
        if path.stat().st_size > MOST_CARD:
            raise BadInput(f"the card '{path}' has more than {MOST_CARD} bytes; it is none")
        facts = json.loads(path.read_text())
    except OSError:
        raise BadInput(f"weights '{text}' have no card: '{path}' is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the card '{path}' is not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise BadInput(f"the card '{path}' is no table of facts, but a {type(facts).__name__}")
    return facts


def load(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the card of `own:NAME` or `file:PATH`.

    The tensors are on the CPU, in float32 where they were stored in half precision.
    """
    import torch

    facts = card(text)
    if not split_pin(text)[1]:  # a pin makes the file part of the question
        note_read(locate(text))
    tensors = read_tensors(locate(text))
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}, facts


def save(path: Path, tensors: dict[str, Any], facts: dict[str, Any], *, half: bool = False) -> None:
    """Write the tensors and their card, each atomically.

    `half` stores floating tensors as float16.
    """
    import torch
    from safetensors.torch import save_file

    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    copies = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    assert all(bool(torch.isfinite(v).all()) for v in copies.values() if v.is_floating_point())
    with replace_atomically(path) as temporary:
        save_file(copies, temporary)
    text = json.dumps({**facts, "sha256": digest(path)}, indent=1, sort_keys=True)
    write_text(path.with_suffix(".json"), text + "\n")
