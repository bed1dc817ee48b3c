"""What a plug-in raises in a sweep fails its own cells; only the user's Ctrl-C ends the sweep."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.judging import execute
from bench.results.store import Store
from tests.cli.commands import run
from tests.conftest import TOYS

ROOT = Path(__file__).parents[2]
RAISERS = Path(__file__).parents[1] / "raisers.py"
HOWS = (
    "BadInput",
    "OSError",
    "TimeoutError",
    "GeneratorExit",
    "SystemExit",
    "KeyboardInterrupt",
    "StopIteration",
    "Unprintable",
    "Own",
    "MemoryError",
)


def words(defences: str, attacks: str, out: Path) -> list[str]:
    return [
        *("--with", str(TOYS), "--with", str(RAISERS), "--dataset", "toy", "--n", "12"),
        *("--defences", defences, "--attacks", attacks, "--batch", "6", "--out", str(out)),
    ]


def honest_records(out: Path) -> dict[str, Any]:
    """The records of the honest cells, less what a clock and the words of the command decide."""
    records = {}
    for path in sorted(out.rglob("toy-linear/*.json")):
        if ".failed" in path.name:
            continue
        record = json.loads(path.read_text())
        record["env"].pop("command")
        cost = record["cost"].items()
        record["cost"] = {k: v for k, v in cost if k != "seconds" and "ms_per_image" not in k}
        records[path.name] = record
    return records


@pytest.mark.parametrize("how", HOWS)
def test_what_a_plugin_raises_is_a_failure_of_its_cells(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone"
    assert run(words("toy-linear", "toy-exact,square[queries=8]", alone)) == 0
    out = tmp_path / "out"
    attacks = f"raises[how={how}],toy-exact,square[queries=8]"
    assert run(words(f"raises-later[how={how}],toy-linear", attacks, out)) == 1
    assert honest_records(out) == honest_records(alone)
    failures = Store(out).failures()
    assert len(failures) == 5  # all four of the defence, and the attack on the honest one
    assert all(message.startswith(f"{how}: ") for message in failures.values())
    assert "5 of 8 cells failed" in capsys.readouterr().err


def test_a_full_disk_is_no_fault_of_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Store, record: object) -> None:
        raise OSError(28, "No space left on device", str(self.root / "records"))

    monkeypatch.setattr(execute.Store, "put", fail)
    assert run(words("toy-linear", "toy-exact", tmp_path)) == 1
    assert f"No space left on device: {tmp_path / 'records'}" in capsys.readouterr().err
    assert not Store(tmp_path).failures()


@pytest.mark.parametrize("how", ["waits", "waits-and-catches"])
def test_ctrl_c_ends_the_sweep_whatever_a_plugin_catches(how: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.run"]
    command += words("toy-linear", f"{how},toy-exact", tmp_path / "out")
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    started = tmp_path / "out" / "records"
    for _ in range(600):
        if list(started.rglob("none-*.json")):
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(2)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in error
    assert not Store(tmp_path / "out").failures()
