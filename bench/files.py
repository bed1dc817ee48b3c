"""Files: one atomic write, one digest, one download, and the folders of data and of models.

Standard library only; `download` imports pooch when it is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.errors import BadInput

TIMEOUT = 30.0  # seconds that a server may be silent

Downloader = Callable[[str, str, Any], object]  # pooch's form: (url, file to write, unused)


_notes: list[set[Path]] = []  # files that were read; the last set is of the innermost block
_offline: list[bool] = []


class DownloadFailed(BadInput):
    """A file could not be downloaded; `reason` is one line that says why."""

    def __init__(self, url: str, path: Path, reason: str) -> None:
        super().__init__(f"'{path}' is not there, and its download from {url} failed: {reason}")
        self.reason = reason


def data_folder(given: Path | None = None) -> Path:
    """Where data sets lie: `given`, else the environment variable BENCH_DATA, else `data`."""
    return Path(given or os.environ.get("BENCH_DATA") or "data").expanduser()


def model_folder() -> Path:
    """Where models that others trained lie: the variable BENCH_MODELS, else `models`."""
    return Path(os.environ.get("BENCH_MODELS") or "models").expanduser()


def cache_folder() -> Path:
    """Where what can be made again is kept: in the user's folder for that."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carso-bench"


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The digest of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def note_reads() -> Iterator[set[Path]]:
    """Yield a set to which `note_read` adds, until the block ends or another begins inside it."""
    paths: set[Path] = set()
    _notes.append(paths)
    try:
        yield paths
    finally:
        _notes.pop()


def note_read(path: Path) -> None:
    """Say that the file is read: what is built from it depends on it."""
    if _notes:
        _notes[-1].add(path)


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """Inside of the block, `download` fails where a file is not there."""
    _offline.append(True)
    try:
        yield
    finally:
        _offline.pop()


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; then bring that file to the disk and rename it.

    A reader, or a crash, finds the old file or the new one. Where the block or the disk fails,
    `path` stays as it was and nothing lies beside it. Folders above `path` are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        move_durably(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def move_durably(source: Path, target: Path) -> None:
    """Rename a file once its bytes are on the disk, so that a crash leaves either one whole."""
    sync(source)
    os.replace(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write the text atomically, as UTF-8 with the line ends that it has."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write the bytes atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def download(
    url: str,
    path: Path,
    digest: str = "",
    *,
    check: Callable[[Path], object] | None = None,
    downloader: Downloader | None = None,
) -> None:
    """Have the file of `url` at `path`. A file that is there is left alone; no network is asked.

    `digest`: `sha256:HEX` or `md5:HEX`, where it is known. `check` raises ValueError where the
    file is not the right one. `downloader`: pooch's for http and https, unless given.
    Raises DownloadFailed; then neither the file, nor a part of it, nor a new folder stays.
    """
    note_read(path)
    if path.is_file():
        return
    if _offline:
        raise DownloadFailed(url, path, "it was not asked for")
    new_folders = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder, because some downloaders leave other files beside the one that they write.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as aside:
            temporary = Path(aside) / path.name
            (downloader or http_downloader())(url, str(temporary), None)
            check_digest(temporary, digest)
            if check:
                check(temporary)
            move_durably(temporary, path)
    except Exception as error:  # of the network, of the disk, of a downloader
        raise DownloadFailed(url, path, reason_of(error)) from None
    finally:
        for folder in new_folders:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only while it is empty


def http_downloader() -> Downloader:
    """pooch's downloader, with a progress bar where stderr is a terminal."""
    import pooch

    downloader: Downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        timeout=TIMEOUT,
        chunk_size=1 << 20,
        headers={"Accept-Encoding": "identity"},
        hooks={"response": keep_compressed},
    )
    return downloader


def keep_compressed(response: Any, *_: object, **__: object) -> None:
    """Leave the bytes as they come: a server may call a .tar.gz a file in the encoding gzip."""
    response.raw.headers.pop("Content-Encoding", None)


def check_digest(path: Path, expected: str) -> None:
    """ValueError where the file has another digest than `algorithm:HEX`."""
    algorithm, _, known = expected.partition(":")
    if known and (digest := file_digest(path, algorithm)) != known:
        raise ValueError(f"the {algorithm} of what came is {digest[:16]}, not {known[:16]}")


def reason_of(error: BaseException) -> str:
    """One line on the first of a chain of errors: libraries wrap the system's word in their own."""
    cause: BaseException | None = error
    while cause:
        error = cause
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return " ".join(str(error).split()) or type(error).__name__
