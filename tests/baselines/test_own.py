"""Classifiers from files: the card says what is built; what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from baselines.own import make_network, own_classifiers
from baselines.train import measure
from bench import weights
from bench.data.sample import load
from bench.errors import BadInput
from bench.questions.registry import build_classifier, datasets
from bench.questions.spec import Spec

ARCH: dict[str, Any] = {
    "name": "cnn",
    "params": {"shape": [1, 8, 8], "classes": 10, "width": 4, "hidden": 8},
}


def write_weights(path: Path, tensors: dict[str, Tensor], arch: object) -> str:
    """Write weights and card without the checks of `weights.save`; return their name."""
    save_file(tensors, path)
    path.with_suffix(".json").write_text(
        json.dumps({"arch": arch, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    )
    return f"file:{path}"


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("cnn", (1, 8, 8), {"width": 4}),
        ("cnn", (3, 28, 28), {"width": 4}),
        ("mlp", (1, 8, 8), {}),
        ("resnet", (3, 32, 32), {"width": 4}),
    ],
)
def test_a_network_comes_back_as_it_was_kept(
    tmp_path: Path, name: str, shape: tuple[int, int, int], size: dict[str, int]
) -> None:
    arch = {"name": name, "params": {"shape": shape, "classes": 7, **size}}
    net = make_network(arch, "net").eval()
    net.get_buffer("mean").fill_(0.25)
    weights.save(tmp_path / "net.safetensors", net.state_dict(), {"arch": arch})
    again = build_classifier(f"file:{tmp_path / 'net.safetensors'}")
    x = torch.rand(3, *shape)
    assert again(x).shape == (3, 7)
    assert torch.equal(again(x), net(x))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_images_are_normalised_inside(tmp_path: Path) -> None:
    net = make_network(ARCH, "net").eval()
    x = torch.rand(2, 1, 8, 8)
    before = net(x)
    net.get_buffer("mean").fill_(0.5)
    net.get_buffer("std").fill_(2.0)
    assert torch.allclose(net(2 * x + 0.5), before, atol=1e-6)


BROKEN_ARCHS = {
    "no arch": None,
    "purifier": {"name": "carso", "params": {}},
    "typo": {"name": "cn", "params": {}},
    "knob": {"name": "cnn", "params": {**ARCH["params"], "widht": 4}},
    "size": {"name": "cnn", "params": {**ARCH["params"], "shape": [1, 9, 9]}},
    "sign": {"name": "cnn", "params": {**ARCH["params"], "width": -4}},
}


def break_weights(change: str) -> tuple[dict[str, Tensor], object]:
    """Tensors and `arch` of a network, one of them changed."""
    tensors = make_network(ARCH, "net").state_dict()
    if change == "lack":
        del tensors["fc.bias"]
    elif change == "extra":
        tensors["fc2.bias"] = torch.zeros(2)
    elif change == "shape":
        tensors["fc.bias"] = torch.zeros(9)
    elif change == "nan":
        tensors["fc.bias"][3] = torch.nan
    return tensors, BROKEN_ARCHS.get(change, ARCH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lack", "they lack fc.bias"),
        ("extra", "they also hold fc2.bias"),
        ("shape", r"fc.bias is \(9,\), not \(8,\)"),
        ("nan", "fc.bias is not finite"),
        ("no arch", "'arch' must have a name and params"),
        ("purifier", "hold a 'carso', which is no classifier; there are: cnn, mlp, resnet"),
        ("typo", "did you mean 'cnn'"),
        ("knob", "cannot be built: .*widht"),
        ("size", "9x9 pixels"),
        ("sign", "cannot be built"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, change: str, message: str
) -> None:
    text = write_weights(tmp_path / "net.safetensors", *break_weights(change))
    with pytest.raises(BadInput, match=message) as caught:
        build_classifier(text)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    text = write_weights(path, *break_weights(""))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(BadInput, match="not the one that its card describes"):
        build_classifier(text)
    path.with_suffix(".json").write_text(
        json.dumps({"arch": ARCH, "sha256": hashlib.sha256(whole[:-8]).hexdigest()})
    )
    with pytest.raises(BadInput, match="damaged"):
        build_classifier(text)
    path.with_suffix(".json").unlink()
    with pytest.raises(BadInput, match="have no card"):
        build_classifier(text)
    with pytest.raises(BadInput, match="did you mean 'digits-at'"):
        build_classifier("own:digits-ta")


def test_a_stray_file_among_the_models_is_no_classifier(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_MODELS", str(tmp_path))
    known = own_classifiers()
    for name, card in (("a", None), ("b", "{"), ("c", "[]"), ("d", '{"arch": "resnet"}')):
        save_file({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors")
        if card is not None:
            (tmp_path / f"{name}.json").write_text(card)
    assert own_classifiers() == known


def test_a_pin_must_hold() -> None:
    build_classifier(weights.pin("own:digits-at"))
    with pytest.raises(BadInput, match="not 00000000"):
        build_classifier("own:digits-at@00000000")


@pytest.mark.parametrize("name", own_classifiers())
def test_every_committed_classifier_is_what_its_card_says(name: str) -> None:
    """On the very images of the card; one of a thousand may round otherwise on another machine."""
    card = weights.card(f"own:{name}")
    if card["dataset"] != "digits" and not os.environ.get("BENCH_DATA"):
        pytest.skip("reads real files: set BENCH_DATA to the folder that holds them")
    n = int(card["accuracy"]["n"])
    data = load(Spec.of(card["dataset"], {"n": n}))
    net = build_classifier(f"own:{name}")
    right = sum(
        int((net(x).argmax(1) == y).sum())
        for x, y in zip(data.x.split(100), data.y.split(100), strict=True)
    )
    assert abs(right / n - card["accuracy"]["clean"]) <= 0.001
    assert sum(p.numel() for p in net.parameters()) == card["parameters"]
    assert card["data"]["test"] == data.digest


def test_adversarial_training_makes_the_difference() -> None:
    """At the default eps PGD leaves little of the standard classifiers, most of the trained one."""
    data = load(Spec.parse("digits[n=100]"))
    eps = float(Fraction(datasets.get("digits").facts.eps["linf"]))
    torch.manual_seed(0)
    clean, robust = measure(
        build_classifier("own:digits-at"), data, eps, "cpu", steps=20, restarts=1
    )
    assert clean >= 0.97
    assert 0.65 <= robust <= 0.9
    for name in ("own:digits-standard", "own:digits-other"):
        assert measure(build_classifier(name), data, eps, "cpu", steps=20, restarts=1)[1] <= 0.02
