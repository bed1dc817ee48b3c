"""Files that are whole or not there, over a disk that fails and a server of our own."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench import files
from bench.files import (
    DownloadFailed,
    data_folder,
    download,
    file_digest,
    model_folder,
    no_downloads,
    note_read,
    note_reads,
    replace_atomically,
    write_bytes,
    write_text,
)

DATA = bytes(i * 7 % 251 for i in range(300_000))
SHA256 = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "é\r\n")
    assert path.read_bytes() == b"\xc3\xa9\r\n"
    write_bytes(path, b"b")
    assert path.read_bytes() == b"b"
    assert names(path.parent) == ["a.txt"]


def test_a_written_file_has_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_a_write_that_dies_half_way_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with replace_atomically(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_text_that_cannot_be_encoded_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "\ud800")
    assert names(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("sync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("move"), replace(old, new)))
    write_text(tmp_path / "a", "b")
    assert calls == ["sync", "move", "sync"]  # the last one of the folder


def test_an_error_names_the_file_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=r"b\.txt") as caught, replace_atomically(tmp_path / "b.txt"):
        pass  # nothing is written
    assert ".tmp" not in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        ("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("md5", "900150983cd24fb0d6963f7d28e17f72"),
    ],
)
def test_digests_of_abc(tmp_path: Path, algorithm: str, digest: str) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a", algorithm) == digest


def test_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.delenv("BENCH_MODELS", raising=False)
    assert (data_folder(), model_folder()) == (Path("data"), Path("models"))
    monkeypatch.setenv("BENCH_DATA", "~/images")
    monkeypatch.setenv("BENCH_MODELS", "~/nets")
    assert data_folder() == Path("/home/ann/images")
    assert data_folder(Path("other")) == Path("other")
    assert model_folder() == Path("/home/ann/nets")


@dataclass
class Site:
    """What the server answers; `requests` counts how often it was asked."""

    url: str = ""
    data: bytes = DATA
    sent: int | None = None  # it hangs up after so many bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    requests: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        self.site.requests += 1
        self.send_response(self.site.status)
        self.send_header("Content-Length", str(len(self.site.data)))
        for name, value in self.site.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.site.data[: self.site.sent])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    site = Site()
    handler = type("SiteHandler", (Handler,), {"site": site})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    site.url = f"http://127.0.0.1:{server.server_port}/file"
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "deep" / "file.safetensors"


def failure(
    url: str, path: Path, digest: str = "", check: Callable[[Path], object] | None = None
) -> str:
    """The reason of a download that fails; it leaves neither a file nor a folder."""
    top = next(folder for folder in path.parents if folder.exists())
    before = names(top)
    with pytest.raises(DownloadFailed) as caught:
        download(url, path, digest, check=check)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert url in str(caught.value)
    assert names(top) == before
    return caught.value.reason


@pytest.mark.parametrize("digest", ["", SHA256, f"md5:{hashlib.md5(DATA).hexdigest()}"])
def test_a_whole_file(
    site: Site, path: Path, digest: str, capfd: pytest.CaptureFixture[str]
) -> None:
    download(site.url, path, digest)
    assert path.read_bytes() == DATA
    assert names(path.parent) == [path.name]
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_progress(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    download(site.url, path)
    out, err = capfd.readouterr()
    assert out == ""
    assert "300k/300k" in err


def test_a_file_that_is_there_is_left_alone(site: Site, path: Path) -> None:
    write_bytes(path, b"mine")
    download(site.url, path, SHA256)
    assert path.read_bytes() == b"mine"
    assert site.requests == 0


def test_nothing_is_downloaded_that_was_not_asked_for(site: Site, path: Path) -> None:
    with no_downloads(), pytest.raises(DownloadFailed, match="it was not asked for"):
        download(site.url, path, SHA256)
    assert site.requests == 0
    assert not path.parent.exists()
    download(site.url, path, SHA256)
    assert path.read_bytes() == DATA


def test_reads_are_noted_by_the_innermost_block(site: Site, path: Path) -> None:
    write_bytes(path, b"mine")
    note_read(path)
    with note_reads() as outer:
        with note_reads() as inner:
            download(site.url, path, SHA256)
        assert (outer, inner) == (set(), {path})
        note_read(path.parent)
    assert outer == {path.parent}


def test_a_compressed_file_stays_compressed(site: Site, path: Path) -> None:
    site.data = gzip.compress(DATA)
    site.headers = {"Content-Encoding": "x-gzip"}
    download(site.url, path)
    assert path.read_bytes() == site.data


def test_a_wrong_digest_leaves_nothing(site: Site, path: Path) -> None:
    reason = failure(site.url, path, f"sha256:{'0' * 64}")
    assert reason == f"the sha256 of what came is {SHA256[7:23]}, not {'0' * 16}"


def test_a_file_that_fails_its_check_leaves_nothing(site: Site, path: Path) -> None:
    def refuse(downloaded: Path) -> None:
        assert downloaded.read_bytes() == DATA
        raise ValueError("no weights")

    assert failure(site.url, path, check=refuse) == "no weights"


def test_a_download_that_breaks_off_leaves_nothing(site: Site, path: Path) -> None:
    site.sent = 100_000
    assert "100000" in failure(site.url, path)


def test_an_answer_that_is_an_error(site: Site, path: Path) -> None:
    site.status = 404
    assert "404" in failure(site.url, path)


def test_a_full_disk(site: Site, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    assert "No space left" in failure(site.url, path)


def test_an_interrupt_leaves_nothing(site: Site, path: Path, tmp_path: Path) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(site.url, path, check=interrupt)
    assert names(tmp_path) == []


def test_no_network_is_one_line(path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
    assert failure(url, path) == "[Errno 111] Connection refused"


def test_a_server_that_goes_silent(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "timed out" in failure(f"http://127.0.0.1:{silent.getsockname()[1]}/file", path)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/file"])
def test_only_addresses_of_the_web(path: Path, url: str) -> None:
    assert "No connection adapters" in failure(url, path)


def test_a_redirection_leads_to_the_web_only(site: Site, path: Path) -> None:
    site.status = 302
    site.headers = {"Location": "file:///etc/hostname"}
    assert "No connection adapters" in failure(site.url, path)
