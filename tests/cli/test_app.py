"""The application: its commands, what it says of mistakes, and what each command loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli.app import main
from bench.cli.main import Parser, run_main
from bench.entry_points import ROOT, declared, version
from bench.errors import BadInput
from bench.results.store import Store
from tests.conftest import TOYS
from tests.fake_records import cell, record

COMMANDS = ("run", "list", "compare", "report", "status", "fetch", "train")
LIGHT = {"torch", "scipy.stats", "numpy", "pandas"}
HEAVY = {
    "diffusers",
    "lightning",
    "matplotlib",
    "pandas",
    "robustbench",
    "scipy.stats",
    "sklearn",
    "timm",
    "torchvision",
}


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that is said of bad input."""
    assert main(words) == 2
    caught = capsys.readouterr()
    assert caught.err.count("\n") == 1
    assert not caught.out
    return caught.err.strip()


def loaded(*words: str, cache: Path) -> set[str]:
    """The modules that the command leaves in memory."""
    code = (
        "import sys\nfrom bench.cli.app import main\n"
        f"code = main({list(words)!r})\nprint(*sys.modules, file=sys.stderr)\nsys.exit(code)"
    )
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the answers of two defences, of which one failed on one attack."""
    store = Store(tmp_path)
    cells = [
        cell(attack, defence) for defence in ("at", "jpeg") for attack in ("none", "pgd", "square")
    ]
    store.put_plan("both", cells)
    for asked in cells[:-1]:
        store.put(record(asked, [1, 1, 0, 1]))
    store.put(record(cell("none", "tta"), [1, 1, 1, 1]))
    store.put_plan("alone", [cell("none", "tta"), cell("pgd", "tta")])
    store.fail(cells[-1], "it fell over", "")
    return tmp_path


def test_help_names_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert f"For example: carso-bench {name}" in capsys.readouterr().out


def test_the_version_is_the_one_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"carso-bench {version()}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["status", "--otu", "x"], "unknown flag --otu; did you mean '--out'?"),
        (["run", "--n"], "Option '--n' requires an argument."),
        (["list"], "argument what: is missing"),
        (["list", "defence"], "argument what: invalid choice: 'defence' (choose from 'attacks'"),
        (["train", "purifer"], "'purifer' cannot be trained; did you mean 'purifier'?"),
        (["status", "--out", "nowhere"], "there are no records in 'nowhere'"),
        (["report", "--out", "nowhere"], "there are no records in 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_right_word(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert error_of(capsys, *words).startswith(f"bench: {message}")


def test_status_counts_the_cells_of_each_plan(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--out", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["plan", "cells", "answered", "failed", "waiting"],
        ["alone", "2", "1", "0", "1"],
        ["both", "6", "5", "1", "0"],
    ]


def test_list_shows_a_plug_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attacks", "--with", str(TOYS)]) == 0
    assert "toy-exact" in capsys.readouterr().out


def test_fetch_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--with", str(TOYS), "--dataset", "toy", "--defences", "toy-linear"]
    assert main(["fetch", *words]) == 0
    assert "are there" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_train_hands_its_flags_to_the_package_that_trains(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert {point.name for point in declared("bench.train")} == {
        "classifiers",
        "diffusion",
        "purifier",
    }
    with pytest.raises(SystemExit) as ended:
        main(["train", "purifier", "--help"])
    assert ended.value.code == 0
    assert "--checkpoint-every" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BadInput("no such thing"), 2, "it: no such thing"),
        (FileNotFoundError(2, "No such file", "x"), 1, "it: No such file: x"),
        (KeyboardInterrupt(), 130, "it: stopped"),
    ],
)
def test_an_error_is_an_exit_code_and_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert run_main(fail, "it", interrupted="stopped") == code
    assert capsys.readouterr().err == line + "\n"
    assert run_main(lambda: None, "it") == 0
    assert run_main(lambda: 1, "it") == 1


def test_a_parser_refuses_an_unknown_flag_with_the_nearest() -> None:
    parser = Parser()
    parser.add_argument("--seed", type=int)
    assert parser.read(["--seed", "3"]).seed == 3
    with pytest.raises(BadInput, match="unknown flag --sede; did you mean '--seed'"):
        parser.read(["--sede", "3"])
    with pytest.raises(BadInput, match="argument --seed: invalid int value: 'x'"):
        parser.read(["--seed", "x"])


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"]])
def test_help_loads_nothing_of_the_bench(words: list[str], tmp_path: Path) -> None:
    modules = loaded(*words, cache=tmp_path)
    assert not modules & {*LIGHT, "rich", "bench.api"}


def test_what_reads_results_loads_no_torch(folder: Path) -> None:
    for words in (["status"], ["compare", "at", "jpeg"]):
        assert not loaded(*words, "--out", str(folder), cache=folder) & LIGHT
    assert not loaded("report", "--out", str(folder), cache=folder) & {"torch", "scipy.stats"}


@pytest.mark.parametrize("what", ["attacks", "classifiers"])
def test_a_list_loads_torch_and_nothing_else_that_is_heavy(what: str, tmp_path: Path) -> None:
    assert not loaded("list", what, cache=tmp_path) & HEAVY


def test_a_dry_run_that_knows_its_times_loads_no_more_than_a_list(tmp_path: Path) -> None:
    words = ("run", "--dry-run", "--defences", "at", "--attacks", "fgsm", "--out", str(tmp_path))
    loaded(*words, cache=tmp_path)
    assert not loaded(*words, cache=tmp_path) & HEAVY


def test_importing_the_package_loads_nothing_of_it() -> None:
    code = "import sys, bench; print(*[name for name in sys.modules if name.startswith('bench.')])"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
