"""Downloads over a server of our own: what comes is whole and checked or is not there, and what broke off goes on."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from carso import download
from carso.download import Broken, Refused, fetch

DATA = bytes(i * 7 % 251 for i in range(300_000))
PAGE = b"\n <!DOCTYPE html><html><title>Quota exceeded</title></html>"


@dataclass
class Site:
    """What the server does; every request's range and the number of bytes that it was sent are in `seen`."""

    url: str = ""
    data: bytes = DATA
    tag: str | None = '"one"'
    ranges: bool = True
    cut: list[int | None] = field(
        default_factory=list
    )  # per request, after how many bytes it hangs up
    status: list[int] = field(default_factory=list)  # per request, an answer instead
    to: str = ""  # where it redirects
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str | None, int]] = field(default_factory=list)
    sized: bool = True


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, asked = self.site, self.headers.get("Range")
        status = site.status.pop(0) if site.status else 200
        if site.to and self.path != "/moved":
            self.send_response(302)
            self.send_header("Location", site.to)
            self.end_headers()
            return
        if status != 200:
            site.seen.append((asked, 0))
            self.send_error(status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0
        if start >= len(site.data):
            site.seen.append((asked, 0))
            self.send_error(416)
            return
        body = site.data[start:]
        sent = body[: site.cut.pop(0)] if site.cut else body
        site.seen.append(
            (asked, len(sent))
        )  # before the answer: who refuses it by its headers may look at once
        self.send_response(206 if start else 200)
        if site.sized:
            self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(site.data) - 1}/{len(site.data)}"
            )
        for name, value in {**({"ETag": site.tag} if site.tag else {}), **site.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("One", (Handler,), {"site": made})
    )
    made.url = f"http://127.0.0.1:{server.server_port}/file"
    monkeypatch.setenv("no_proxy", "*")
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "deep" / "file.safetensors"


def refused(kind: type[Exception], site: Site, path: Path, **more: Any) -> str:
    """The one line; nothing but part files is left, and without them no folder that was not there before."""
    top = next(p for p in path.parents if p.exists())
    with pytest.raises(kind) as caught:
        fetch(site.url, path, **{"waits": (), **more})
    assert "\n" not in str(caught.value)
    if not list(path.parent.glob("*.part")):
        assert top == next(p for p in path.parents if p.exists())
    assert not path.exists()
    return str(caught.value)


def test_a_whole_file(site: Site, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(site.url, path, sha256=sha256(DATA).hexdigest(), waits=())
    assert path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert site.seen == [(None, len(DATA))]
    out, err = capsys.readouterr()
    assert (out, err) == ("", "downloading file.safetensors (0.3 MB)\n")


def test_a_bar_on_a_terminal(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch(site.url, path, waits=())
    out, err = capsys.readouterr()
    assert out == ""
    assert "file.safetensors" in err
    assert "300.0/300.0 kB" in err


def test_what_broke_off_goes_on(site: Site, path: Path) -> None:
    site.cut = [100_000, 50_000]
    fetch(site.url, path, waits=(0, 0))
    assert path.read_bytes() == DATA
    assert site.seen == [(None, 100_000), ("bytes=99999-", 50_000), ("bytes=149998-", 150_002)]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_next_call_goes_on(site: Site, path: Path) -> None:
    site.cut = [120_000]
    assert "the connection ended after 120000 of 300000 bytes" in refused(Broken, site, path)
    (part,) = path.parent.iterdir()
    assert part.read_bytes() == DATA[:120_000]
    fetch(site.url, path, waits=(), sha256=sha256(DATA).hexdigest())
    assert site.seen[1] == ("bytes=119999-", 180_001)


def test_a_part_that_is_whole_is_not_fetched_again(site: Site, path: Path) -> None:
    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(site.url, path, check=stop)
    fetch(site.url, path, waits=())
    assert path.read_bytes() == DATA
    assert site.seen[1] == (f"bytes={len(DATA) - 1}-", 1)


def test_an_interrupt_leaves_the_part(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = download.read, iter(range(9))

    def read(answer: Any) -> bytes:
        if next(count) == 1:
            raise KeyboardInterrupt
        return real(answer)

    monkeypatch.setattr(download, "BLOCK", 4096)
    monkeypatch.setattr(download, "read", read)
    with pytest.raises(KeyboardInterrupt):
        fetch(site.url, path)
    (part,) = path.parent.iterdir()
    held = part.read_bytes()
    assert part.suffix == ".part"
    assert 0 < len(held) <= 4096
    assert DATA.startswith(held)
    monkeypatch.undo()
    fetch(site.url, path, waits=())
    assert path.read_bytes() == DATA
    assert site.seen[-1][0] == f"bytes={len(held) - 1}-"


@pytest.mark.parametrize("change", ["tag", "date", "length", "untold"])
def test_two_versions_are_never_joined(site: Site, path: Path, change: str) -> None:
    other = bytes(255 - b for b in DATA)
    site.cut = [100_000]
    if change == "date":
        site.tag, site.headers = None, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    if change == "untold":
        site.tag = None
    refused(Broken, site, path)
    site.data = other[:-1] if change == "length" else other
    if change == "tag":
        site.tag = '"two"'
    if change == "date":
        site.headers = {"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}
    fetch(site.url, path, waits=())
    assert path.read_bytes() == site.data
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_server_without_ranges_starts_again(site: Site, path: Path) -> None:
    site.cut, site.ranges = [100_000], False
    fetch(site.url, path, waits=(0,))
    assert path.read_bytes() == DATA
    assert site.seen == [(None, 100_000), ("bytes=99999-", len(DATA))]


def test_a_file_that_became_shorter_than_the_part(site: Site, path: Path) -> None:
    site.cut = [200_000]
    refused(Broken, site, path)
    site.data = DATA[:150_000]
    fetch(site.url, path, waits=())
    assert path.read_bytes() == DATA[:150_000]
    assert site.seen[1:] == [("bytes=199999-", 0), (None, 150_000)]


@pytest.mark.parametrize("kind", ["header", "content", "page after a part"])
def test_a_web_page_is_refused_without_another_try(site: Site, path: Path, kind: str) -> None:
    if kind == "page after a part":
        site.cut = [1000]
        refused(Broken, site, path)
    site.data, before = PAGE if kind != "header" else DATA, len(site.seen)
    site.headers = {"Content-Type": "text/html; charset=utf-8"} if kind == "header" else {}
    assert "what comes is a web page, not the file" in refused(Refused, site, path, waits=(0, 0))
    assert len(site.seen) - before == (2 if kind == "page after a part" else 1)


def test_a_wrong_checksum_is_refused_and_removed(site: Site, path: Path) -> None:
    assert f"is {sha256(DATA).hexdigest()[:16]}, not {'0' * 16}" in refused(
        Refused, site, path, sha256="0" * 64
    )
    assert not path.parent.exists()


def test_a_file_that_fails_the_check_is_removed(site: Site, path: Path) -> None:
    def check(got: Path) -> None:
        assert got.read_bytes() == DATA
        raise ValueError("no weights")

    assert refused(ValueError, site, path, check=check) == "no weights"
    assert not path.parent.exists()


def test_answers_that_stay_and_answers_that_pass(site: Site, path: Path) -> None:
    site.status = [404]
    assert "the server answers 404 Not Found" in refused(Refused, site, path, waits=(0, 0))
    assert len(site.seen) == 1
    site.status = [503, 502]
    fetch(site.url, path, waits=(0, 0))
    assert len(site.seen) == 4
    assert path.read_bytes() == DATA


def test_waits_grow_and_end(site: Site, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    site.status = [503] * 9
    refused(Broken, site, path, waits=download.WAITS)
    assert slept == [0.5, 2.0, 8.0]
    assert len(site.seen) == 4


def test_nobody_listens(path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file"
    assert "refused" in refused(Broken, Site(url=url), path)


def test_a_server_that_goes_silent(site: Site, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        site.url = f"http://127.0.0.1:{mute.getsockname()[1]}/file"
        assert "timed out" in refused(Broken, site, path)


def test_a_length_that_is_not_told(
    site: Site, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.sized = False
    fetch(site.url, path, waits=())
    assert path.read_bytes() == DATA
    assert "(size unknown)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "to", ["file:///etc/hostname", "ftp://127.0.0.1/file", "data:text/plain,x"]
)
def test_redirections_lead_to_the_web_only(site: Site, path: Path, to: str) -> None:
    site.to = to
    assert re.search("not http or https|not allowed|answers 302", refused(Refused, site, path))
    site.to = "/moved"
    fetch(site.url, path, waits=())
    assert path.read_bytes() == DATA


def test_an_address_that_is_not_of_the_web(path: Path) -> None:
    assert "is not http or https" in refused(Refused, Site(url="file:///etc/hostname"), path)


def test_a_full_disk_is_not_tried_again(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left" in refused(OSError, site, path, waits=(0, 0))
    assert len(site.seen) == 1
