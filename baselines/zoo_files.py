"""Files of weights that others made: where they lie, how they come there, and what is wrong with one."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import tempfile
import zipfile
from pathlib import Path

import torch

from bench.errors import BadInput

PATIENCE = 20.0  # seconds that a server may be silent


def models_dir() -> Path:
    """Where weights lie: the environment variable BENCH_MODELS, else `models`."""
    return Path(os.environ.get("BENCH_MODELS") or "models").expanduser()


def missing(argument: str, path: Path, reason: str = "") -> BadInput:
    why = f" (their download failed: {reason})" if reason else ""
    return BadInput(
        f"weights of 'robustbench:{argument}' are not there: put {path.name} into {path.parent}{why}"
    )


def check(argument: str, path: Path) -> None:
    """BadInput where there is no sound file; one that is not is left as it is, for it may be the user's."""
    if not path.is_file():
        raise missing(argument, path)
    if what := defect(path):
        raise BadInput(
            f"weights file '{path}' of 'robustbench:{argument}' is {what}; remove it, and fetch it again"
        )


def download(argument: str, path: Path, source: str) -> None:
    """From an address, or from the drive that knows it by a key: beside the place where it belongs, and checked before it goes there."""
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as aside:
            fresh = Path(aside) / path.name
            fetch(source, fresh)
            if what := defect(fresh) if fresh.is_file() else "nothing":
                raise OSError(f"what came is {what}")
            os.replace(fresh, path)
    except Exception as error:  # of the downloaders, of requests, of a full or read-only disk
        raise missing(argument, path, brief(error)) from None
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only while it is empty


def fetch(source: str, path: Path) -> None:
    """Write what `source` holds to `path`, with a progress bar on stderr and nothing on stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        if "://" not in source:
            import gdown

            gdown.download(id=source, output=str(path), timeout=PATIENCE)
            return
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(PATIENCE)
        try:
            torch.hub.download_url_to_file(source, str(path))
        finally:
            socket.setdefaulttimeout(patience)


def defect(path: Path) -> str:
    """What a failed download left instead of weights, if anything: a page of HTML, an empty or a truncated file."""
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"PK"):  # torch's format
        return "" if zipfile.is_zipfile(path) else "truncated"
    if head.startswith(b"\x80"):  # torch's older format
        return "" if readable(path) else "damaged, or holds more than tensors"
    return "empty" if not head else "a web page" if head.startswith(b"<") else "no weights file"


def readable(path: Path) -> bool:
    """Whether a file of torch's older format is: it has no table of contents, so that only reading it tells."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the unpickler raises whatever the bytes lead to
        return False
    return True


def brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
