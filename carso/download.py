"""Large files over HTTP: progress, further tries, going on from what came before, and checks before anything lies in its place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

WAITS = (0.5, 2.0, 8.0)  # seconds before each further try
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 20
PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
LATER = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that may give another one later


class Broken(OSError):
    """The connection failed, or broke off: another try may help."""


class Refused(OSError):
    """What came, or would come, is not the file: another try would bring the same."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    check: Callable[[Path], None] | None = None,
    waits: Sequence[float] = WAITS,
) -> None:
    """Download `url` (http or https) to `path`, which is then whole and checked, or not there at all.

    What has come lies beside it in a file `*.part`, which stays when the connection breaks or the user interrupts: the next call goes on from
    there, if the server still has the same version of the file. `sha256`: in hex, where it is known; `check` raises ValueError where the
    file is not the right one. OSError or that ValueError, one line, where it cannot be had. Progress goes to stderr: a bar on a terminal, else
    one line a try.
    """
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = download(url, path, waits)
        try:
            if sha256 and (found := digest(part)) != sha256:
                raise Refused(f"the sha256 of what came is {found[:16]}, not {sha256[:16]}")
            if check:
                check(part)
        except (Refused, ValueError):
            part.unlink()
            raise
        os.replace(part, path)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only while it is empty
        raise


def download(url: str, path: Path, waits: Sequence[float]) -> Path:
    """The whole `*.part` file, not yet checked."""
    for wait in waits:
        try:
            return attempt(url, path)
        except Broken:
            time.sleep(wait)
    return attempt(url, path)


def attempt(url: str, path: Path) -> Path:
    """One try, from where the last one ended."""
    held = max(parts(path), key=lambda part: part.stat().st_size, default=None)
    start = (
        max(held.stat().st_size - 1, 0) if held else 0
    )  # one byte again: of a part that is whole a server has nothing more to give
    answer = connect(url, start)
    if (
        answer
        and answer.status == 206
        and (part_of(path, answer) != held or first_byte(answer) != start)
    ):  # of another version of the file
        answer.close()
        answer = None
    answer = answer or connect(url, 0)
    if answer is None or (answer.status == 206 and not start):
        raise Refused("the server answers with a part of the file that was not asked for")
    with contextlib.closing(answer):
        part = part_of(path, answer)
        for stale in parts(path):
            if stale != part:
                stale.unlink()
        receive(answer, part, start if answer.status == 206 else 0, path.name)
    return part


def connect(url: str, start: int) -> HTTPResponse | None:
    """The server's answer to a request for the bytes from `start` on; None where it has no such bytes."""
    asked = request.Request(
        url, headers={"User-Agent": "carso", **({"Range": f"bytes={start}-"} if start else {})}
    )
    if urlsplit(url).scheme not in ("http", "https"):
        raise Refused(f"{url} is not http or https")
    try:
        answer: HTTPResponse = request.build_opener(WebOnly).open(asked, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and start:
            return None
        raise (Broken if error.code in LATER else Refused)(
            f"the server answers {error.code} {error.reason}"
        ) from None
    except Refused:
        raise
    except (OSError, HTTPException) as error:
        raise Broken(
            str(error.reason if isinstance(error, URLError) else error) or type(error).__name__
        ) from None
    if answer.headers.get_content_type() == "text/html":
        answer.close()
        raise Refused("what comes is a web page, not the file")
    return answer


class WebOnly(request.HTTPRedirectHandler):
    """Follows redirections to http and https only."""

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise Refused(f"the server redirects to {newurl}, which is not http or https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def parts(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}.*.part"))


def part_of(path: Path, answer: HTTPResponse) -> Path:
    """Where the answer's bytes go: the name tells the server's version of the file, so that no two versions are ever joined."""
    tag, date = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
    if not date and (
        not tag or tag.startswith("W/")
    ):  # nothing tells versions apart, and nothing goes on from this
        tag = os.urandom(8).hex()
    mark = hashlib.sha256(f"{tag} {date} {length(answer)}".encode()).hexdigest()[:8]
    return path.with_name(f"{path.name}.{mark}.part")


def length(answer: HTTPResponse) -> int | None:
    """Bytes of the whole file, where the server tells."""
    text = (
        str(answer.headers.get("Content-Range", "")).rpartition("/")[2]
        if answer.status == 206
        else str(answer.headers.get("Content-Length", ""))
    )
    return int(text) if text.isdigit() else None


def first_byte(answer: HTTPResponse) -> int:
    text = str(answer.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isdigit() else -1


def receive(answer: HTTPResponse, part: Path, start: int, name: str) -> None:
    """Write the answer's bytes into the part file from `start` on; Broken where they end too early, Refused where they are a web page."""
    total, size = length(answer), start
    with part.open("ab") as file, progress(name, start, total) as advance:
        file.truncate(start)
        while block := read(answer):
            if size == 0 and PAGE.match(block):
                part.unlink()
                raise Refused("what comes is a web page, not the file")
            file.write(block)
            size += len(block)
            advance(len(block))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and size < total:
        raise Broken(f"the connection ended after {size} of {total} bytes")


def read(answer: HTTPResponse) -> bytes:
    try:
        return answer.read1(BLOCK)
    except (OSError, HTTPException) as error:
        raise Broken(f"the connection broke off: {error or type(error).__name__}") from None


@contextlib.contextmanager
def progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """What to call with every number of bytes that came."""
    if not sys.stderr.isatty():
        size = f"{total / 1e6:.1f} MB" if total is not None else "size unknown"
        sys.stderr.write(
            f"downloading {name} ({size}{f', from {start / 1e6:.1f} MB on' if start else ''})\n"
        )
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=start)
        yield lambda count: bar.advance(task, count)


def digest(path: Path) -> str:
    """SHA-256 of the file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
