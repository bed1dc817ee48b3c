"""Purifiers on disk, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.errors import BadInput
from carso import CARSO, checkpoint
from tests.carso.small import classifier, images, purifier


def write(path: Path, *, half: bool = False) -> Path:
    p = purifier()
    checkpoint.save_purifier(
        path, p, {**checkpoint.describe_purifier(p, classifier()), "classifier": "small"}, half=half
    )
    return path


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tmp_path: Path, half: bool) -> None:
    back, card = checkpoint.load_purifier(write(tmp_path / "a.safetensors", half=half))
    checkpoint.check_classifier(card, classifier())
    x = images()
    got, want = CARSO(classifier(), back, 0).purify(x), CARSO(classifier(), purifier(), 0).purify(x)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-3 if half else 0)
    assert back.layers == purifier().layers
    assert all(t.dtype != torch.float16 for t in back.state_dict().values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_fingerprint_is_of_the_values() -> None:
    f = classifier()
    assert checkpoint.fingerprint(f) == checkpoint.fingerprint(classifier())
    with torch.no_grad():
        f.logits.bias[0] += 1e-6
    assert checkpoint.fingerprint(f) != checkpoint.fingerprint(classifier())
    first, second = (
        nn.ModuleDict({name: nn.PReLU()}) for name in "ab"
    )  # equal values under other names
    assert checkpoint.fingerprint(first) != checkpoint.fingerprint(second)


def test_another_classifier_is_refused(tmp_path: Path) -> None:
    _, card = checkpoint.load_purifier(write(tmp_path / "a.safetensors"))
    with pytest.raises(
        ValueError,
        match=r"made for another classifier: small, fingerprint \w{8}; this one's is \w{8}$",
    ):
        checkpoint.check_classifier(card, classifier(5))
    checkpoint.check_classifier(card | {"kind": "vae"}, classifier(5))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    good, card = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    path.write_bytes(good[:-1] + b"\1")
    with pytest.raises(ValueError, match="is not the one that its card describes"):
        checkpoint.load_purifier(path)
    path.write_bytes(good[:50])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load_purifier(path)
    path.write_bytes(good)
    for change, message in (
        ({"arch": "cnn"}, "describes a 'cnn'"),
        ({"layout": {**card["layout"], "latent": 4}}, "do not fit its layout: decoder"),
    ):
        path.with_suffix(".json").write_text(json.dumps(card | change))
        with pytest.raises(ValueError, match=message):
            checkpoint.load_purifier(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"cannot be read: .*a\.json: No such file"):
        checkpoint.load_purifier(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: [card], "no table of facts"),
        (lambda card: without(card, "layout"), "lacks layout"),
        (lambda card: without(card, "classifier_fingerprint"), "lacks classifier_fingerprint"),
        (lambda card: card | {"layout": 3}, "cannot be built"),
        (lambda card: card | {"layers": None}, "cannot be built"),
        (lambda card: card | {"layout": card["layout"] | {"latent": 1 << 20}}, "do not fit"),
        (lambda card: card | {"layout": card["layout"] | {"latent": "3"}}, "cannot be built"),
    ],
)
def test_a_card_that_is_none_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write(tmp_path / "a.safetensors")
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(change(card)))
    with pytest.raises(BadInput, match=message) as caught:
        checkpoint.load_purifier(path)
    assert "\n" not in str(caught.value)


def without(card: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in card.items() if key != name}


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    before = path.read_bytes()
    p = purifier()
    p.compressors[0][0][1].running_var.fill_(1e5)  # beyond half precision
    with pytest.raises(
        ValueError, match=r"not finite: compressors\.0\.0\.1\.running_var in half precision"
    ):
        checkpoint.save_purifier(path, p, {}, half=True)
    assert path.read_bytes() == before
    checkpoint.save_purifier(path, p, {}, half=False)
