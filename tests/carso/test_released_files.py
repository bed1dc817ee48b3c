"""The authors' files of a small scenario: fetched, checked, loaded around their classifier.

Where that cannot be, the error has one line.
"""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from carso import released
from carso.released_purifier import from_released, load_released
from tests.carso import authors
from tests.carso.test_released import SIZES, classifier, images, names, parts

NAME = "cifar10"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files belong; the scenario's purifier is a small one."""
    layout = from_released(*parts("cifar").values(), layers=names("cifar")).layout
    taps = tuple((n, side, side) for n, side in zip(*SIZES["cifar"][:2], strict=True))
    monkeypatch.setattr(released, "layout", lambda name: replace(layout, taps=taps, flat=0))
    monkeypatch.setattr(released, "layers", lambda name: tuple(names("cifar")))
    monkeypatch.setattr(released, "BASE", "http://127.0.0.1:1/none/")
    monkeypatch.setenv("BENCH_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "models" / "carso2024cnn"


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server's folder, with the three files where the authors' server has them."""
    top = tmp_path / "remote"
    write_files(top)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(top))
    )
    monkeypatch.setattr(released, "BASE", f"http://127.0.0.1:{server.server_port}/")
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    yield top
    server.shutdown()
    server.server_close()


def write_files(top: Path, seed: int = 0) -> None:
    for part, file in released.purifier_files(NAME).items():
        authors.write(top / file, parts("cifar", seed)[part])


def list_files(models: Path) -> list[str]:
    return sorted(str(p.relative_to(models)) for p in models.rglob("*") if p.is_file())


@torch.no_grad()
def test_fetched_and_loaded(remote: Path, models: Path) -> None:
    released.fetch_purifier(NAME)
    assert list_files(models) == sorted(released.purifier_files(NAME).values())
    model = load_released(NAME, classifier("cifar"), samples=3, aggregation="logit")
    state, x, z = parts("cifar"), images("cifar"), torch.randn(3, 3, 4)
    c = authors.condition(
        state["repr_compressors"], state["repr_fcn_compressor"], classifier("cifar").taps(x)
    )
    want = torch.stack(
        [classifier("cifar")(authors.decode(state["decoder"], z[:, e], c)) for e in range(3)], 1
    )
    torch.testing.assert_close(model.sample_logits(x, z), want, rtol=1e-4, atol=1e-5)
    assert model(x).shape == (3, 5)
    torch.testing.assert_close(model.aggregate(want), want.mean(1))


def test_what_is_there_is_not_fetched_again(
    remote: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = models / released.purifier_files(NAME)["decoder"]
    authors.write(decoder, parts("cifar", 50)["decoder"])
    before = decoder.read_bytes()
    released.fetch_purifier(NAME)
    assert decoder.read_bytes() == before
    monkeypatch.setattr(released, "download", lambda *_, **__: pytest.fail("it downloaded"))
    released.fetch_purifier(NAME)


@pytest.mark.parametrize(
    "kind", ["extra key", "other shape", "no safetensors", "truncated", "page"]
)
def test_a_file_of_something_else_is_refused_and_removed(
    remote: Path, models: Path, kind: str
) -> None:
    file = remote / released.purifier_files(NAME)["decoder"]
    state = parts("cifar")["decoder"]
    if kind == "extra key":
        authors.write(file, state | {"more": torch.ones(1)})
    elif kind == "other shape":
        authors.write(file, state | {"5.bias": torch.ones(4)})
    else:
        whole = file.read_bytes()
        file.write_bytes(
            {
                "no safetensors": b"\1\2",
                "truncated": whole[:-9],
                "page": b"<html><body>Sorry</body></html>",
            }[kind]
        )
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is looked at below
        released.fetch_purifier(NAME)
    line = str(caught.value)
    messages = {
        "extra key": "also holds more",
        "other shape": "5.bias of the shape (4,), not (3,)",
    }
    assert messages.get(kind, "is not a safetensors file, or is damaged") in line
    decoder = released.purifier_files(NAME)["decoder"]
    assert f"put {released.BASE}{decoder} at {models / decoder}" in line
    assert "\n" not in line
    assert not [path for path in list_files(models) if "decoder" in path]
    assert len(list_files(models)) == 2  # the others are fine


def test_without_a_network_it_says_what_to_put_where(models: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^the files of purifier 'released:cifar10' are not there: put "
    ) as caught:
        released.fetch_purifier(NAME)
    for file in released.purifier_files(NAME).values():
        assert f"{released.BASE}{file} at {models / file}" in str(caught.value)
    assert "repr_compressors.safetensors failed: " in str(caught.value)
    assert "refused" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not models.parent.exists()


def test_loading_never_fetches(remote: Path, models: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"purifier 'released:cifar10' are not there: put http.*_decoder\.safetensors at ",
    ):
        load_released(NAME, classifier("cifar"))
    assert not models.exists()
    load_released(NAME, classifier("cifar"), folder=remote)


def test_a_damaged_file_of_the_user_is_named_and_kept(models: Path) -> None:
    write_files(models)
    path = models / released.purifier_files(NAME)["repr_fcn_compressor"]
    path.write_bytes(path.read_bytes()[:-5])
    for act in (
        lambda: released.fetch_purifier(NAME),
        lambda: load_released(NAME, classifier("cifar")),
    ):
        with pytest.raises(
            ValueError,
            match=r"^'.*_repr_fcn_compressor\.safetensors' is not a safetensors file, "
            "or is damaged",
        ):
            act()
    assert path.is_file()
    authors.write(
        path,
        {k: v * torch.nan for k, v in parts("cifar")["repr_fcn_compressor"].items() if v.ndim}
        | {"1.1.num_batches_tracked": torch.tensor(0)},
    )
    released.fetch_purifier(NAME)  # which reads no values
    with pytest.raises(ValueError, match=r"repr_fcn_compressor is damaged: .* is not finite"):
        load_released(NAME, classifier("cifar"))


def test_another_classifier_is_refused(models: Path) -> None:
    write_files(models)
    with pytest.raises(ValueError, match=r"has no layer 'convs\.0'"):
        load_released(NAME, torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)))
    with pytest.raises(ValueError, match="made for taps of the shapes"):
        load_released(NAME, classifier("cifar").__class__([16, 9, 4], [11, 9, 7]))
