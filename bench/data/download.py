"""Fetching what is missing, where there is a network."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from bench.errors import BadInput


def fetch(name: str, data_dir: Path, get: Callable[[], object], put: str) -> None:
    """Run `get`, a checked download into `data_dir` that shows its progress on stderr.

    A failure raises BadInput with one line that says what to put where. It leaves no empty folders.
    """
    before = folders(data_dir)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            get()
    except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError for some networks
        for folder in sorted(folders(data_dir) - before, reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"dataset '{name}' is not there: put {put} (its download failed: {reason})"
        ) from None


def folders(top: Path) -> set[Path]:
    """`top` and all folders in it, down to two levels, as far as they exist, and its parent."""
    return {path for path in (top.parent, top, *top.glob("*"), *top.glob("*/*")) if path.is_dir()}
