"""Tensors in safetensors files, written atomically and read whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.errors import BadInput
from bench.files import note_read, replace_atomically


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write copies on the CPU. OSError, one line, where the file cannot be written."""
    copies = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        with replace_atomically(path) as temporary:
            save_file(copies, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        # safetensors writes by itself, and hides the system's error in the text of its own.
        raise OSError(f"'{path}' cannot be written: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU. BadInput where it is missing or damaged."""
    note_read(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"'{path}' is not a safetensors file, or is damaged: {error}") from None


@torch.no_grad()
def round_to_half(module: nn.Module) -> None:
    """Round floating tensors to the values that a file in half precision holds."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half())
