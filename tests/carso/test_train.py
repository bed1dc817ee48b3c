"""The training command, and the defences that read what it wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.data.sample import Dataset, load
from bench.errors import BadInput
from bench.questions.registry import build_classifier, defences, is_stochastic
from bench.questions.spec import Spec
from carso import checkpoint
from carso.batches import unpack_images
from carso.fit import Validation
from carso.model import CARSO
from carso.purifier import Purifier
from carso.resume import Epoch
from carso.train import main

QUICK = ["--dataset", "digits", "--device", "cpu", "--set", "epochs=2", "--set", "pgd_steps=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    paths = {kind: folder / f"{kind}.safetensors" for kind in checkpoint.KINDS}
    for kind, path in paths.items():
        assert main([*QUICK, "--kind", kind, "--out", str(path)]) == 0
    return paths


def test_the_card_says_how_to_do_it_again(trained: dict[str, Path], tmp_path: Path) -> None:
    card = json.loads(trained["carso"].with_suffix(".json").read_text())
    assert (card["dataset"], card["classifier"], card["kind"], card["seed"]) == (
        "digits",
        "own:digits-at",
        "carso",
        0,
    )
    assert card["data"] == load(Spec("digits"), split="train").digest
    assert card["classifier_fingerprint"] == checkpoint.fingerprint(
        build_classifier("own:digits-at")
    )
    assert card["recipe"]["epochs"] == 2
    assert 0 < card["seconds_of_adversaries"] < card["seconds"]
    assert 0 <= card["validation"]["pgd_acc"] <= card["validation"]["clean_acc"] <= 1
    again = tmp_path / "again.safetensors"
    command = card["command"].split()[3:]
    assert main([*command[: command.index("--out")], "--out", str(again)]) == 0
    assert again.read_bytes() == trained["carso"].read_bytes()


@pytest.mark.parametrize("kind", checkpoint.KINDS)
def test_the_defence_reads_it(trained: dict[str, Path], kind: str) -> None:
    knobs = {"classifier": "own:digits-at", "weights": f"file:{trained[kind]}", "samples": 3}
    d = defences.get(kind).make(**knobs)
    x = load(Spec("digits", (("first", 4),))).x
    assert d(x).shape == (4, 10)
    assert not d.training
    assert not any(p.requires_grad for p in d.parameters())
    assert not torch.equal(d(x), d(x))
    assert is_stochastic(Spec.of(kind, {"samples": 3}))
    assert not is_stochastic(Spec.of(kind, {"samples": 0}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": "own:digits-standard"}, "was made for another classifier: own:digits-at"),
        ({"aggregation": "peal"}, "aggregation 'peal' is unknown; did you mean 'peel'"),
        ({"samples": -2}, "samples=-2 is negative"),
        ({"weights": "own:digits-at"}, "describes a"),
        ({"weights": "own:digits-at@01234567"}, "have the digest .*, not 01234567"),
        ({"weights": "file:/nowhere/x.safetensors"}, "does not exist"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    trained: dict[str, Path], change: dict[str, object], message: str
) -> None:
    knobs = {"classifier": "own:digits-at", "weights": f"file:{trained['carso']}", **change}
    with pytest.raises(BadInput, match=message) as caught:
        defences.get("carso").make(**knobs)
    assert "\n" not in str(caught.value)


def test_what_is_held_out_is_not_trained_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes: list[int] = []
    seen: list[torch.Tensor] = []

    def spy(
        purifier: Purifier,
        classifier: torch.nn.Module,
        x: torch.Tensor,
        *rest: Any,
        validation: Validation,
        **others: Any,
    ) -> list[Epoch]:
        sizes.append(len(x))
        seen.append(unpack_images(x))
        purifier.mu.weight.data.fill_(1 / 3)  # no number of half precision
        assert validation.measure(purifier) == (1.0, 0.0)
        return [Epoch(0, 0.0, 0.0, 0.0, 0.0)]

    def check(defence: CARSO, x: torch.Tensor, *rest: Any) -> tuple[float, float]:
        sizes.append(len(x))
        assert not (x[:, None] == seen[0]).flatten(2).all(2).any()
        assert float(defence.purifier.mu.weight[0, 0]) == float(
            torch.tensor(1 / 3).half()
        )  # what is checked is what is kept
        return 1.0, 0.0

    monkeypatch.setattr("carso.train.fit_purifier", spy)
    monkeypatch.setattr("carso.train.validate", check)
    assert main([*QUICK, "--set", "validation=97", "--out", str(tmp_path / "a.safetensors")]) == 0
    assert sizes == [1200, 97]


def test_a_vae_is_no_carso(trained: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="of the kind 'vae', not 'carso'"):
        defences.get("carso").make(classifier="own:digits-at", weights=f"file:{trained['vae']}")
    defences.get("vae").make(
        classifier="own:digits-standard", weights=f"file:{trained['vae']}"
    )  # reads no representation: fits any


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dataset", "digit", "--recipe", "digits"],
            "dataset 'digit' is unknown; did you mean 'digits'",
        ),
        (
            ["--dataset", "digits", "--recipe", "digitz"],
            "recipe 'digitz' is unknown; did you mean 'digits'",
        ),
        (
            ["--dataset", "digits", "--classifier", "own:digits-art"],
            "are not there; did you mean 'digits-at'",
        ),
        (["--dataset", "digits", "--set", "layers=conv4"], "no layer 'conv4'"),
        (["--dataset", "digits", "--set", "epochs"], "'epochs' is not field=value"),
        (["--dataset", "digits", "--set", "validation=5000"], "leaves nothing of the 1297"),
        (["--dataset", "digits", "--set", "mean=0.1,0.2"], "one value for each of the 1 channels"),
        (
            ["--dataset", "digits", "--set", "blocks=3", "--set", "padding=0"],
            "tap 0 (32x4x4) is too small for 3 blocks",
        ),
        (["--dataset", "digits", "--set", "epoch=3"], "no field 'epoch'; did you mean 'epochs'"),
        (["--dataset", "digits", "--set", "pgd_steps=0"], "pgd_steps=0 must be above 0"),
        (["--dataset", "digits", "--set", "epochs=0"], "epochs=0 must be above 0"),
        (
            ["--dataset", "digits", "--set", "eps_unit=pixels"],
            "eps_unit='pixels' is unknown; there are: pixel, std",
        ),
        (["--dataset", "digits", "--set", "batch=1"], "give no batch of 2 images each"),
        (["--dataset", "digits", "--devices", "none"], "must be numbers above 0"),
        (["--dataset", "digits", "--device", "cpu", "--precision", "tf32"], "tf32 needs a GPU"),
        (["--dataset", "digits", "--checkpoint-every", "-1"], "must be 0 or more"),
        (
            ["--dataset", "digits", "--out", "/proc/version/x.safetensors"],
            "is not a folder that may be written to",
        ),
        (["--dataset", "digits", "--out", "x.pt"], "does not end in .safetensors"),
        (["--dataset", "digits", "--out", f"{__file__}/x.safetensors"], "is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_no_number_in_the_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_spoilt(*_: Any, **__: Any) -> Dataset:
        whole = load(Spec("digits"), split="train")
        return replace(whole, x=whole.x.index_fill(0, torch.tensor([700]), float("nan")))

    monkeypatch.setattr("carso.train.load", load_spoilt)
    assert main([*QUICK, "--out", str(tmp_path / "a.safetensors")]) == 2
    message = "error: dataset 'digits': image 984 holds nan, which is not in [0, 1]"
    assert capsys.readouterr().err.startswith(message)
    assert not list(tmp_path.iterdir())


def test_the_rule_that_is_not_followed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                *QUICK,
                "--set",
                "batch=640",
                "--set",
                "lr=0.0128",
                "--out",
                str(tmp_path / "a.safetensors"),
            ]
        )
        == 0
    )
    assert (
        "lr is the recipe's 0.0128; the paper's rule, "
        "0.0001 times the 640 images of one device, would give 0.064 here"
        in capsys.readouterr().out
    )
    assert main([*QUICK, "--out", str(tmp_path / "a.safetensors")]) == 0
    assert "the paper's rule" not in capsys.readouterr().out


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--dataset", "digits", "--device", "cuda"]) == 2
    assert "there is no GPU" in capsys.readouterr().err
