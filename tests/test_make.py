"""`make` hands its variables on, and refuses what it does not know."""

from __future__ import annotations

import subprocess

import pytest
import typer

from bench.cli.app import app
from bench.entry_points import ROOT


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """What `make` would run; nothing is run."""
    command = ["make", "--dry-run", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["bench", "test", "train", "report"])
def test_an_unknown_variable_is_refused_with_the_nearest(target: str) -> None:
    done = make(target, "ATTACK=pgd")
    assert done.returncode == 2
    assert not done.stdout
    assert "unknown variable ATTACK; did you mean 'ATTACKS'?" in done.stderr


def test_variables_and_args_are_flags_of_the_sweep() -> None:
    words = ("DATASET=mnist", "ATTACKS=pgd[steps=10],square", "QUERIES=100", "ARGS=--rerun --n 4")
    last = make("bench", *words).stdout.splitlines()[-1].split()
    assert last[1:] == [
        *("-m", "bench.run"),
        *("--dataset", '"mnist"'),
        *("--attacks", '"pgd[steps=10],square"'),
        *("--queries", '"100"'),
        *("--rerun", "--n", "4"),
    ]


def test_every_variable_of_the_sweep_is_a_flag_of_the_command() -> None:
    command = typer.main.get_command(app).commands["run"]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    lines = (ROOT / "Makefile").read_text().splitlines()
    (names,) = [line.partition(":=")[2].split() for line in lines if "SWEEP_FLAGS :=" in line]
    assert {f"--{name}" for name in names} <= flags
