"""Files that are either the old one or the new one, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """`write` a file beside `path`, bring it to the disk, and rename it; OSError where that fails, `path` then as it was and nothing beside it."""
    fresh = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(fresh)
        _sync(fresh)
        os.replace(fresh, path)
        _sync(path.parent)
    except (
        OSError,
        SafetensorError,
    ) as error:  # safetensors writes by itself, and hides the system's error in its text
        raise OSError(f"'{path}' cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            fresh.unlink()


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
