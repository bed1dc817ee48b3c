"""Files of weights that others made: how they come here, and what is wrong with one."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import torch

from bench import files
from bench.errors import BadInput


def missing(argument: str, path: Path, reason: str = "") -> BadInput:
    """The error that says what to put where."""
    why = f" (their download failed: {reason})" if reason else ""
    return BadInput(
        f"weights of 'robustbench:{argument}' are not there: "
        f"put {path.name} into {path.parent}{why}"
    )


def check_file(argument: str, path: Path) -> None:
    """BadInput where there is no sound file; a damaged one stays, for it may be the user's."""
    if not path.is_file():
        raise missing(argument, path)
    if what := find_defect(path):
        raise BadInput(
            f"weights file '{path}' of 'robustbench:{argument}' is {what}; "
            "remove it, and fetch it again"
        )


def download(argument: str, path: Path, source: str) -> None:
    """Download from an address, or from the drive that knows the file by a key."""
    downloader = None if "://" in source else download_from_drive
    try:
        files.download(source, path, check=check_download, downloader=downloader)
    except files.DownloadFailed as error:
        raise missing(argument, path, error.reason[:160]) from None


def download_from_drive(key: str, path: str, _: object) -> None:
    """Write the drive's file of this key to `path`, with nothing on stdout."""
    import gdown

    with contextlib.redirect_stdout(io.StringIO()):
        gdown.download(id=key, output=path, timeout=files.TIMEOUT)


def check_download(path: Path) -> None:
    """ValueError where a download brought something else than weights, or nothing."""
    what = find_defect(path) if path.is_file() else "nothing"
    if what:
        raise ValueError(f"what came is {what}")


def find_defect(path: Path) -> str:
    """What lies there instead of weights, if anything: a web page, an empty or a truncated file."""
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"PK"):  # torch's format
        return "" if zipfile.is_zipfile(path) else "truncated"
    if head.startswith(b"\x80"):  # torch's older format
        return "" if can_be_read(path) else "damaged, or holds more than tensors"
    if not head:
        return "empty"
    return "a web page" if head.startswith(b"<") else "no weights file"


def can_be_read(path: Path) -> bool:
    """Whether a file of torch's older format can be read.

    The format has no table of contents, so only reading the file tells.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the unpickler raises whatever the bytes lead to
        return False
    return True
