"""What a dry run says of the cost of a sweep, and what it keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.judging.cost import forecast_costs, format_duration
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Spec
from tests.cli.commands import TOY, run


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No dry run knows what another one measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_a_dry_run_shows_cells_and_cost_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*TOY, "--dry-run", "--out", str(tmp_path / "results")]) == 0
    text = capsys.readouterr().out
    lines = {line.partition(" (")[0]: line for line in text.splitlines()}
    assert lines["toy-linear / toy-exact"].split()[3:6] == ["(linf", "1/10)", "3"]
    assert max(map(len, lines.values())) <= 140
    assert "2 cells, 2 to answer" in text
    assert "in the store" not in text
    assert "unknown" not in text
    assert not (tmp_path / "results").exists()


def test_a_dry_run_counts_only_what_is_not_in_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prediction of 40 images takes 36 s.

    The attack calls three times, and three calls select and judge: 216 s, without an attack half.
    """
    monkeypatch.setattr("bench.judging.cost.time_prediction", lambda model, x, repeats: 900.0)
    assert run([*TOY, "--dry-run", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert [line.split()[-2:] for line in text.splitlines()[1:3]] == [
        ["1.8", "min"],
        ["3.6", "min"],
    ]
    assert "2 cells, 2 to answer, at most about 5.4 min" in text
    assert run([*TOY[:-1], "none", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert run([*TOY, "--dry-run", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert [line.endswith("(in the store)") for line in text.splitlines()[1:3]] == [True, False]
    assert "2 cells, 1 to answer, at most about 3.6 min" in text


def test_a_second_dry_run_measures_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TOY, "--dry-run", "--out", str(tmp_path)]
    assert run(words) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("bench.judging.cost.time_prediction", lambda *_, **__: pytest.fail("again"))
    monkeypatch.setattr("bench.judging.cost.load_cached", lambda *_: pytest.fail("again"))
    assert run(words) == 0
    assert capsys.readouterr().out == first


def test_a_damaged_file_of_times_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cache" / "carso-bench" / "prediction-times.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run([*TOY, "--dry-run", "--out", str(tmp_path)]) == 0
    (times,) = json.loads(file.read_text()).values()
    assert len(times) == 1


def test_a_transfer_from_an_ensemble_has_a_time() -> None:
    ensemble = Spec.of("transfer", {"source": "own:digits-standard+own:digits-at"})
    cell = replace(
        plan([Request(defences=("undefended",), attacks=("transfer",), n=20)]).cells[-1],
        attack=ensemble,
    )
    (cost,) = forecast_costs([cell], Path("data"))
    assert cost.seconds


def test_times_are_spoken_in_the_unit_that_fits() -> None:
    times = {
        None: "unknown",
        0.2: "0 s",
        59.6: "60 s",
        99: "99 s",
        126: "2.1 min",
        5990: "99.8 min",
        7200: "2.0 h",
        1e6: "12 days",
    }
    assert {seconds: format_duration(seconds) for seconds in times} == times


def test_a_dry_run_says_which_cells_it_cannot_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", "cifar10-jpeg", "--defences", "at", "--n", "20"]
    words += ["--attacks", "spsa[steps=3,samples=2]"]
    words += ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run([*words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[2].split() == ["at", "/", "spsa", "(linf", "8/255)", "15", "unknown"]
    assert "2 of unknown time are not counted in" in text
