"""The sweep as a user types it: exit codes, one clear line, nothing lost."""

from __future__ import annotations

import csv
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.questions.registry import datasets
from bench.results.store import Store
from tests.cli.commands import TOY, run

ROOT = Path(__file__).parents[2]
SLOW = """
import time
from bench import attack


@attack("slow", norms={"linf"}, access="score", family="score")
def slow(model, x, y, threat):
    \"\"\"Slow.\"\"\"
    time.sleep(0.4)
    return x
"""
FEW = """
import torch
from bench import dataset
from bench.data.sample import dataset_of, load
from bench.questions.spec import Spec


@dataset("few", norm="linf", eps={"linf": "1/5"}, n=200, roles={"standard": "own:digits-standard"})
def few(split, data_dir):
    \"\"\"31 digits.\"\"\"
    digits = load(Spec("digits"))
    x, y = digits.x[:31], digits.y[:31]
    # change
    return dataset_of("few", x, y, classes=10)
"""


def read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_writes_a_board_and_a_second_one_answers_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert run([*TOY, "--out", str(out)]) == 0
    (row,) = csv.DictReader((out / "leaderboards/toy-linf-1_10.csv").open())
    assert row["defence"] == "toy-linear"
    assert row["clean_acc"] == "1.0000"
    assert row["robust_acc"] == row["acc_toy-exact"] == "0.5000"
    assert row["strongest_attack"] == "toy-exact"
    assert (row["complete"], row["n"]) == ("yes", "40")
    before = read_files(out)
    assert "2 cells answered" in capsys.readouterr().out
    assert run([*TOY, "--out", str(out)]) == 0
    assert "all 2 cells are in" in capsys.readouterr().out
    assert read_files(out) == before


def test_curves_over_eps_and_queries_are_lines_of_cells_csv(tmp_path: Path) -> None:
    """The exact attack leaves what lies farther away than eps, of distances .005 to .195.

    Square may not ask more than it is given.
    """
    words = [*TOY[:-1], "toy-exact,square", "--eps", "1/20,1/10,3/20", "--queries", "4,8"]
    assert run([*words, "--out", str(tmp_path)]) == 0
    lines = list(csv.DictReader((tmp_path / "leaderboards/cells.csv").open()))
    exact = {line["eps"]: line["acc"] for line in lines if line["attack"].startswith("toy-exact")}
    assert exact == {"1/20": "0.7500", "1/10": "0.5000", "3/20": "0.2500"}
    square = {
        (line["eps"], line["attack"]): float(line["queries"])
        for line in lines
        if line["attack"].startswith("square")
    }
    assert set(square) == {
        (eps, f"square[eot=2,queries={queries}]") for eps in exact for queries in (4, 8)
    }
    assert all(
        asked <= int(attack.rpartition("=")[2].rstrip("]")) for (_, attack), asked in square.items()
    )
    assert square["1/20", "square[eot=2,queries=8]"] > 4


def test_rerun_answers_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([*TOY, "--out", str(tmp_path)])
    assert run([*TOY, "--out", str(tmp_path), "--rerun"]) == 0
    assert "2 cells answered" in capsys.readouterr().out.partition("wrote")[2]


def test_a_failed_cell_gives_exit_code_1_and_an_incomplete_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*TOY[:-1], "toy-exact,liar-crashes", "--out", str(tmp_path)]) == 1
    assert "1 of 3 cells failed" in capsys.readouterr().err
    (row,) = csv.DictReader((tmp_path / "leaderboards/toy-linf-1_10.csv").open())
    assert row["complete"] == "no"
    assert "the attack fell over" in row["reasons"]
    assert not row.get("acc_liar-crashes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attacks", "pdg"], "attack 'pdg' is unknown; did you mean 'pgd'?"),
        (["--atacks", "pgd"], "unknown flag --atacks; did you mean '--attacks'?"),
        (["--eps", "many"], "eps 'many' is not a number"),
        (["--eps=-1"], "eps '-1' is negative"),
        (["--eps", "8"], "eps 8 is more than the whole box in linf; did you mean 8/255?"),
        (["--eps", "1e-9999999"], "eps '1e-9999999' is not a number"),
        (["--defences", ""], "the list of defences is empty"),
        (["--attacks", ","], "the list of attacks is empty"),
        (["--n", "many"], "invalid int value: 'many'"),
        (["--n", "41"], "n=41 is more than the 40 images of its test split"),
        (["--device", "cuda:99"], "device 'cuda:99' was asked for, but"),
        (["--device", "gpu"], "device 'gpu' is unknown"),
        (["--plan", "nowhere"], "--attacks and --plan exclude each other"),
        (["--list", "attack"], "invalid choice: 'attack'"),
        (
            ["--defences", "toy-linear[classifier=own:digits-at]"],
            "cannot take the images (1, 2, 3) of 'toy'",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    out = tmp_path / "results"
    assert run([*TOY, "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.fixture
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it: each writes a file of its own."""
    monkeypatch.setattr(datasets, "_entries", dict(vars(datasets)["_entries"]))


@pytest.mark.usefixtures("_registry")
def test_a_default_n_of_a_small_dataset_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "few.py"
    plugin.write_text(FEW)
    words = ["--with", str(plugin), "--dataset", "few", "--defences", "undefended"]
    assert run([*words, "--attacks", "noise", "--out", str(tmp_path / "out")]) == 0
    assert "n is 31, not 200" in capsys.readouterr().out
    records = list(Store(tmp_path / "out").records())
    assert {record.cell.dataset.params["n"] for record in records} == {31}
    assert {len(record.ids) for record in records} == {31}
    words += ["--attacks", "noise", "--n", "32"]
    assert run([*words, "--out", str(tmp_path / "none")]) == 2
    assert "n=32 is more than the 31 images" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("x = 2 * x - 1", "its images lie in [-1, 1], not in [0, 1] (the first is image 0)"),
        ("x[3, 0, 2, 2] = torch.nan", "image 3 holds nan"),
        ("y = y + 1", "they begin at 1; subtract 1"),
        ("y = y[:30]", "it has 30 labels, not 31"),
        ("return x, y", "gives a tuple, and no Dataset"),
        ("{}['images']", "cannot be loaded: KeyError: 'images' (few.py:13)"),
    ],
)
def test_a_dataset_that_breaks_its_contract_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    plugin = tmp_path / "few.py"
    plugin.write_text(FEW.replace("    # change", f"    {change}"))
    words = ["--with", str(plugin), "--dataset", "few", "--defences", "undefended"]
    for more in ([], ["--n", "5"], ["--dry-run"]):
        assert run([*words, *more, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("bench: dataset 'few'")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_transfers_from_an_ensemble(tmp_path: Path) -> None:
    attack = "transfer[source=own:digits-standard+own:digits-at,steps=20]"
    words = ["--dataset", "digits", "--defences", "undefended", "--n", "20", "--attacks", attack]
    assert run([*words, "--out", str(tmp_path)]) == 0
    correct = {record.cell.attack.name: sum(record.correct) for record in Store(tmp_path).records()}
    assert correct["transfer"] < correct["none"], "the target is one of the members"


def test_an_ensemble_of_unfit_members_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = "transfer[source=own:digits-standard+own:mnist-at]"
    words = ["--dataset", "digits", "--defences", "at", "--attacks", attack]
    assert run([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "own:mnist-at" in error
    assert "cannot take the images (1, 8, 8) of 'digits'" in error
    assert not (tmp_path / "out").exists()


def test_an_interrupt_keeps_what_was_finished_and_exits_130(tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW)
    words = ["--with", str(slow), "--batch", "2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.run", *TOY[:-1], "toy-exact,slow", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell in the background ignores the signal.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if list(tmp_path.glob("out/records/**/slow-*.part*.json")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == (
        "bench: interrupted; every finished batch is kept, "
        "and the same command goes on from there\n"
    )
    kept = [path.name for path in tmp_path.glob("out/records/**/*.json")]
    assert any(name.startswith("none-") for name in kept)
    assert any(name.startswith("toy-exact-") for name in kept)
    assert any(".part" in name for name in kept)
