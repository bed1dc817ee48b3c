"""Files of weights that others made: where they lie, how they come there, and what is wrong with one."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import torch

from bench import files
from bench.errors import BadInput


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
    downloader = None if "://" in source else drive_downloader
    try:
        files.download(source, path, check=check_download, downloader=downloader)
    except files.DownloadFailed as error:
        raise missing(argument, path, error.reason[:160]) from None


def drive_downloader(key: str, path: str, _: object) -> None:
    """Write the drive's file of this key to `path`, with nothing on stdout."""
    import gdown

    with contextlib.redirect_stdout(io.StringIO()):
        gdown.download(id=key, output=path, timeout=files.TIMEOUT)


def check_download(path: Path) -> None:
    """ValueError where a download brought something else than weights, or nothing."""
    if what := defect(path) if path.is_file() else "nothing":
        raise ValueError(f"what came is {what}")


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
