"""Fetching what is missing, where there is a network."""

from __future__ import annotations

from pathlib import Path

from bench.errors import BadInput
from bench.files import DownloadFailed, download


def fetch(name: str, url: str, path: Path, digest: str, put: str) -> None:
    """Have the file of the data set `name` at `path`, checked by its digest.

    BadInput with one line that says what to `put` where, if it cannot be downloaded.
    """
    try:
        download(url, path, digest)
    except DownloadFailed as error:
        raise BadInput(
            f"dataset '{name}' is not there: put {put} (its download failed: {error.reason})"
        ) from None
