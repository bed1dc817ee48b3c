"""Weights that are damaged, missing, or cannot be fetched: one line says what to do.

Nothing of a failed download stays.
"""

from __future__ import annotations

import io
import socket
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdown
import pytest
import torch

from baselines import zoo, zoo_files
from bench import files
from tests.baselines.zoo_fakes import PAGE, SMALL, put, random_state, refusal

XCIT = "Debenedetti2022Light_XCiT-S12"
XCIT_FILE = "debenedetti2022light-xcit-s-cifar10-linf.pth.tar"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "models"


def to_bytes(content: Any, *, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def fake_download(monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], object]) -> None:
    def drive(*, id: str, output: str, timeout: float) -> None:
        assert id
        assert timeout <= 60
        act(Path(output))

    def address(url: str, output: str, _: object) -> None:
        assert url.startswith("https://")
        act(Path(output))

    monkeypatch.setattr(gdown, "download", drive)
    monkeypatch.setattr(files, "http_downloader", lambda: address)


SMALL_STATE = {
    "state_dict": {f"layer{i}.weight": torch.arange(12.0).view(3, 4) for i in range(3)},
    "note": "ü" * 300,
}
OLD = to_bytes(SMALL_STATE, zipped=False)
NEW = to_bytes(SMALL_STATE, zipped=True)
NOT_READ = "damaged, or holds more than tensors"
DAMAGED = [
    (PAGE, "a web page"),
    (b"  \n" + PAGE, "a web page"),
    (b"", "empty"),
    (b"text", "no weights file"),
    (NEW[:-1000], "truncated"),
    (NEW[:10], "truncated"),
    (OLD[:-1], NOT_READ),
    (OLD[:100], NOT_READ),
]


def test_an_old_file_that_is_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    assert zoo_files.find_defect(put(path, OLD)) == ""
    for length in range(1, len(OLD), 7):
        assert zoo_files.find_defect(put(path, OLD[:length])) == NOT_READ


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_a_damaged_file_that_lies_there_is_refused_and_left_alone(
    models: Path, content: bytes, message: str
) -> None:
    path = put(models / f"{SMALL}.pt", content)
    line = (
        f"weights file '{path}' of 'robustbench:{SMALL}' is {message}; "
        "remove it, and fetch it again"
    )
    assert refusal(zoo.fetch, SMALL) == line
    assert refusal(zoo.robustbench, SMALL) == line
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [{"state_dict": {"foreign": torch.zeros(2)}}, {"state_dict": {}}, {}, [1, 2]]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_sound_file_of_something_else(models: Path, content: Any, zipped: bool) -> None:
    path = put(models / f"{SMALL}.pt", content, zipped=zipped)
    assert f"'robustbench:{SMALL}' cannot be loaded from {path}: " in refusal(
        zoo.robustbench, SMALL
    )
    assert path.is_file()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Wong2020Fast", "models/cifar10/Linf/Wong2020Fast.pt"),
        (XCIT, f"home/hub/checkpoints/{XCIT_FILE}"),
    ],
)
@pytest.mark.parametrize(("content", "defect"), DAMAGED)
def test_a_damaged_download_is_refused_and_removed(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    file: str,
    *,
    content: bytes,
    defect: str,
) -> None:
    fake_download(monkeypatch, lambda path: put(path, content))
    path = models.parent / file
    assert refusal(zoo.fetch, name) == (
        f"weights of 'robustbench:{name}' are not there: put {path.name} into {path.parent} "
        f"(their download failed: what came is {defect})"
    )
    assert list(models.parent.iterdir()) == []


def test_a_download_goes_to_its_place(
    models: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    state = random_state()

    def fetch(path: Path) -> None:
        print("Downloading")
        path.with_suffix(".rest").touch()
        put(path, {"state_dict": state})

    fake_download(monkeypatch, fetch)
    zoo.fetch(SMALL)
    assert [path.name for path in (models / "cifar10/corruptions").iterdir()] == [
        "Hendrycks2020AugMix_WRN.pt"
    ]
    assert capfd.readouterr().out == ""
    fake_download(monkeypatch, lambda path: pytest.fail("it downloaded again"))
    zoo.fetch(SMALL)
    zoo.robustbench(SMALL)


def test_all_files_of_an_ensemble_are_fetched(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_download(monkeypatch, lambda path: put(path, {"name": path.name}))
    kept = put(zoo.own_files(zoo.find_model("Chen2020Adversarial"))[1], {"mine": 1})
    content = kept.read_bytes()
    zoo.fetch("Chen2020Adversarial")
    assert sorted(path.name for path in kept.parent.iterdir()) == [
        f"Chen2020Adversarial.pt_m{i}.pt" for i in range(3)
    ]
    assert kept.read_bytes() == content
    assert (
        torch.load(zoo.own_files(zoo.find_model("Chen2020Adversarial"))[2])["name"]
        == "Chen2020Adversarial.pt_m2.pt"
    )


def test_a_download_that_brings_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_download(monkeypatch, lambda path: None)
    assert refusal(zoo.fetch, "Wong2020Fast").endswith(
        "(their download failed: what came is nothing)"
    )


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("Wong2020Fast", "models/cifar10/Linf", "Wong2020Fast.pt"),
        ("Chen2020Adversarial", "models/cifar10/Linf", "Chen2020Adversarial.pt_m0.pt"),
        (XCIT, "home/hub/checkpoints", XCIT_FILE),
    ],
)
def test_without_a_network_one_line_says_what_to_put_where(
    models: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, file: str
) -> None:
    def fail(path: Path) -> None:
        put(path, PAGE)
        raise urllib.error.URLError("no network")

    fake_download(monkeypatch, fail)
    message = (
        f"weights of 'robustbench:{name}' are not there: put {file} into {models.parent / folder}"
    )
    assert (
        refusal(zoo.fetch, name) == f"{message} (their download failed: <urlopen error no network>)"
    )
    fake_download(monkeypatch, lambda path: pytest.fail("loading never downloads"))
    assert refusal(zoo.robustbench, name) == message
    assert list(models.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["Wong2020Fast", XCIT])
def test_the_real_downloaders_without_a_network(
    models: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    assert "(their download failed: " in refusal(zoo.fetch, name)
    assert list(models.parent.iterdir()) == []
