"""A killed, interrupted or starved training: its last good state survives.

That state leads to the weights of an uninterrupted training.
"""

from __future__ import annotations

import errno
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from carso import tensors
from carso.resume import Checkpoint, Epoch, State
from carso.train import main

SMALL = [
    "--dataset",
    "digits",
    "--device",
    "cpu",
    "--set",
    "epochs=4",
    "--set",
    "pgd_steps=1",
    "--set",
    "validation=8",
]
STEPS = 11  # of an epoch: 1289 images in batches of 128

DYING = """
import os, signal, sys
from carso.adversary import Adversaries

attack_batch, calls = Adversaries.attack_batch, []

def dying(*args):
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return attack_batch(*args)

Adversaries.attack_batch = dying
from carso.train import main
sys.exit(main(sys.argv[2:]))
"""


def curve(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in out.with_suffix(".curve.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "adversaries")}
        for row in rows
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, validated at the end only."""
    out = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    assert main([*SMALL, "--out", str(out)]) == 0
    return out


def test_killed_in_the_middle_of_an_epoch(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "killed.safetensors"
    command = [*SMALL, "--out", str(out)]
    ended = subprocess.run(
        [sys.executable, "-c", DYING, str(2 * STEPS + 5), *command],
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL
    assert not out.exists()
    assert [row["epoch"] for row in curve(out)] == [0, 1]
    assert main(command) == 0
    assert "going on after epoch 2 of 4" in capsys.readouterr().out
    assert out.read_bytes() == whole.read_bytes()
    assert curve(out) == curve(whole)
    assert [row["epoch"] for row in curve(out)] == [0, 1, 2, 3]
    assert not out.with_suffix(".training").exists()


def test_validating_and_saving_more_often_changes_no_weight(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "often.safetensors"
    assert (
        main([*SMALL, "--validate-every", "3", "--checkpoint-every", "0", "--out", str(out)]) == 0
    )
    assert out.read_bytes() == whole.read_bytes()
    assert [row["clean_acc"] is None for row in curve(out)] == [True, True, False, False]
    assert curve(out)[3] == curve(whole)[3]  # and the draws of the last check are the same


@contextmanager
def small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_space(_: Any, path: Path, **__: Any) -> None:
    path.write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, "No space left on device")


def too_large(tensors: Any, path: Path, **kwargs: Any) -> None:
    with small_files():
        SAVE(tensors, path, **kwargs)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


SAVE = tensors.save_file


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (no_space, 1, "No space left on device"),
        (too_large, 1, "too large"),
        (interrupted, 130, "interrupted"),
    ],
)
def test_the_last_good_state_survives(
    fault: Callable[..., None],
    code: int,
    message: str,
    *,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, saved = tmp_path / "a.safetensors", []

    def save(tensors: Any, path: Path, **kwargs: Any) -> None:
        saved.append(path)
        (fault if len(saved) == 3 else SAVE)(tensors, path, **kwargs)

    monkeypatch.setattr("carso.tensors.save_file", save)
    assert main([*SMALL, "--out", str(out)]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "epoch 2 of 4 is kept: the same command goes on from it" in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.curve.jsonl", "a.training"]
    monkeypatch.setattr("carso.tensors.save_file", SAVE)
    assert main([*SMALL, "--out", str(out)]) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_no_room_for_the_final_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    command = [*SMALL, "--checkpoint-every", "3", "--out", str(out)]

    def save_checkpoints_alone(tensors: Any, path: Path, metadata: Any = None) -> None:
        (SAVE if metadata else no_space)(tensors, path, metadata=metadata)

    monkeypatch.setattr("carso.tensors.save_file", save_checkpoints_alone)
    assert main(command) == 1
    assert (
        "a.safetensors' cannot be written: [Errno 28] No space left on device; the checkpoint"
        in capsys.readouterr().err
    )
    monkeypatch.undo()
    monkeypatch.setattr(
        "carso.adversary.Adversaries.attack_batch", interrupted
    )  # no step is needed any more
    assert main(command) == 0


def test_divergence_keeps_the_state_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    assert main([*SMALL, "--set", "epochs=16", "--set", "lr=1e38", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "training diverged in epoch 1" in said
    assert said.endswith("of epoch 1 of 16 is kept\n")
    assert all(bool(v.isfinite().all()) for v in load_file(out.with_suffix(".training")).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set", "lr=0.5"], "its recipe.lr is 0.0128, here it is 0.5"),
        (["--set", "layers=conv1"], 'its recipe.layers is ["conv3", "fc"], here it is ["conv1"]'),
        (["--seed", "7"], "its seed is 0, here it is 7"),
        (["--classifier", "own:digits-standard"], "its classifier is"),
        (["--devices", "2"], "its devices is 1, here it is 2"),
        (["--kind", "vae"], 'its kind is "carso", here it is "vae"'),
    ],
)
def test_a_state_of_another_run_is_refused(
    change: list[str],
    message: str,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path_factory.getbasetemp() / "stopped.safetensors"
    command = [*SMALL, "--out", str(out)]
    if not out.with_suffix(".training").exists():
        monkeypatch.setattr("carso.train.write", interrupted)
        assert main(command) == 130
        monkeypatch.undo()
    capsys.readouterr()
    before = out.with_suffix(".training").read_bytes()
    assert main([*command, *change]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert out.with_suffix(".training").read_bytes() == before
    if change[0] == "--seed":
        assert main([*command, *change, "--fresh"]) == 0


def test_another_dataset_is_refused(tmp_path: Path) -> None:
    epoch = Epoch(0, 0.1, 0.0, 1.0, 1.0)
    state = State({"a": torch.ones(2)}, 3, 5, [epoch])
    question = {"data": "1234", "recipe": {"layers": ("a", "b")}}
    first = Checkpoint(tmp_path / "x.training", tmp_path / "x.curve.jsonl", question)
    first.save(state, 2)
    assert Checkpoint(first.path, first.curve, question).load().history == [epoch]
    with pytest.raises(ValueError, match='its data is "1234", here it is "5678"'):
        Checkpoint(first.path, first.curve, {**question, "data": "5678"}).count_epochs()


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"not one", lambda b: b""]
)
def test_a_damaged_state_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "x.training", tmp_path / "x.curve.jsonl", {})
    kept.save(State({"a": torch.ones(200)}, 3, 5, [Epoch(0, 0.1, 0.0, 1.0, 1.0)]), 2)
    kept.path.write_bytes(damage(kept.path.read_bytes()))
    with pytest.raises(ValueError, match=r"is damaged .* --fresh"):
        kept.load()
    with pytest.raises(FloatingPointError, match="a is not finite"):
        kept.save(
            State({"a": torch.tensor([float("nan")])}, 3, 5, [Epoch(0, 0.1, 0.0, 1.0, 1.0)]), 2
        )
