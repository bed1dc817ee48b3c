"""The public names of the package, and what loads with them."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.questions.discover import load_file
from bench.questions.plan import plan
from bench.questions.registry import defences
from bench.questions.request import Request
from tests.conftest import TOYS

ROOT = Path(__file__).parents[1]
PLUGIN = """
from bench import build_classifier, defence


@defence("mirrored")
def mirrored(*, classifier: str = "@standard"):
    \"\"\"Only for this test.\"\"\"
    return build_classifier(classifier)
"""


@pytest.mark.parametrize("name", bench.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(bench, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'nothing'"):
        bench.nothing()
    assert dir(bench) == sorted(bench.__all__)


def test_run_is_the_function_where_the_command_has_run() -> None:
    code = """
import contextlib, runpy, sys
import bench
sys.argv = ["bench.run", "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module("bench.run", run_name="__main__")
assert callable(bench.run)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_a_plug_in_needs_the_public_names_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defences, "_entries", {})
    file = tmp_path / "mirrored.py"
    file.write_text(PLUGIN)
    load_file(file)
    assert [entry.name for entry in defences] == ["mirrored"]


def test_a_sweep_from_python_gives_the_boards_of_its_question(tmp_path: Path) -> None:
    boards = bench.run(
        dataset="toy",
        defences=["toy-linear"],
        attacks="toy-exact",
        eps=["1/20", "1/10"],
        n=40,
        out=tmp_path,
        plugins=[TOYS],
    )
    assert {board.eps: board.rows[0].robust.mean for board in boards} == {"1/20": 0.75, "1/10": 0.5}
    results = bench.load_results(tmp_path)
    assert isinstance(results.leaderboard, pd.DataFrame)
    assert dict(zip(results.leaderboard.eps, results.leaderboard.robust_acc, strict=True)) == {
        "1/20": 0.75,
        "1/10": 0.5,
    }
    assert len(results.cells) == 4
    assert set(results.cells.family) == {"none", "gradient"}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"plan": "smoke", "n": 3}, "plan and n exclude each other"),
        ({"dataste": "toy"}, "did you mean 'dataset'?"),
        ({"dataset": "toy", "defences": ["toy-liner"]}, "did you mean 'toy-linear'?"),
    ],
)
def test_a_wrong_question_is_refused(tmp_path: Path, question: dict, message: str) -> None:
    with pytest.raises(bench.BadInput) as refused:
        bench.run(out=tmp_path / "out", **question)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_records_has_no_results(tmp_path: Path) -> None:
    with pytest.raises(bench.BadInput, match="there are no records"):
        bench.load_results(tmp_path)


def test_one_cell_is_answered_without_a_store() -> None:
    request = Request("toy", defences=("toy-linear",), attacks=("toy-exact",), n=40)
    cell = plan([request]).cells[-1]
    record = bench.evaluate(cell)
    assert record.cell.threat == bench.ThreatModel("linf", Fraction(1, 10), cell.threat.access)
    assert record.accuracy == 0.5
