"""A Ray cluster gives the answers of one process; needs the extra `cluster`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli.app import main
from bench.questions.spec import Cell
from bench.results.store import Store
from tests.conftest import TOYS

TOY = [
    "--with",
    str(TOYS),
    "--dataset",
    "toy",
    "--n",
    "40",
    "--batch",
    "7",
    "--defences",
    "toy-coin",
    "--attacks",
    "toy-exact,liar-crashes",
    "--draws",
    "3",
]


def test_without_ray_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main(["run", *TOY, "--ray", "local", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "cluster" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_is_not_there_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    assert main(["run", *TOY, "--ray", "127.0.0.1:1", "--out", str(tmp_path)]) == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def answers_in(folder: Path) -> dict[Cell, object]:
    return {r.cell: (r.ids, r.correct, r.margin) for r in Store(folder).records()}


def test_a_cluster_gives_the_answers_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    alone = tmp_path / "alone"
    cluster = tmp_path / "cluster"
    assert main(["run", *TOY, "--out", str(alone)]) == 1
    assert main(["run", *TOY, "--ray", "local", "--out", str(cluster)]) == 1
    answers = answers_in(alone)
    assert len(answers) == 2
    assert answers_in(cluster) == answers
    assert Store(alone).failures() == Store(cluster).failures()
