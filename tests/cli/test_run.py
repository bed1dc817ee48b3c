"""The command as a user types it: exit codes, one clear line, nothing lost."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli.app import module_main
from bench.judging.cost import forecast_costs, format_duration
from bench.questions.plan import Request, plan
from bench.questions.spec import Spec
from bench.results.store import Store
from tests.conftest import TOYS

ROOT = Path(__file__).parents[2]
main = functools.partial(module_main, "run")
TOY = [
    "--with",
    str(TOYS),
    "--dataset",
    "toy",
    "--n",
    "40",
    "--defences",
    "toy-linear",
    "--attacks",
    "toy-exact",
]


@pytest.fixture(autouse=True)
def _no_times(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No dry run knows what another one measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_sweep_writes_records_and_leaderboard_and_a_second_one_answers_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert main([*TOY, "--out", str(out)]) == 0
    (row,) = csv.DictReader((out / "leaderboards/toy-linf-1_10.csv").open())
    assert (row["defence"], row["clean_acc"], row["robust_acc"], row["strongest_attack"]) == (
        "toy-linear",
        "1.0000",
        "0.5000",
        "toy-exact",
    )
    assert (row["complete"], row["n"], row["acc_toy-exact"]) == ("yes", "40", "0.5000")
    before = files(out)
    assert "2 cells answered" in capsys.readouterr().out
    assert main([*TOY, "--out", str(out)]) == 0
    assert "all 2 cells are in" in capsys.readouterr().out
    assert files(out) == before


def test_curves_over_eps_and_over_queries_are_lines_of_cells_csv(tmp_path: Path) -> None:
    """The exact attack leaves what lies farther away than eps, of distances .005 to .195; Square may not ask more than it is given."""
    words = [*TOY[:-1], "toy-exact,square", "--eps", "1/20,1/10,3/20", "--queries", "4,8"]
    assert main([*words, "--out", str(tmp_path)]) == 0
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
    main([*TOY, "--out", str(tmp_path)])
    assert main([*TOY, "--out", str(tmp_path), "--rerun"]) == 0
    assert "2 cells answered" in capsys.readouterr().out.partition("wrote")[2]


def test_a_failed_cell_gives_exit_code_1_and_an_incomplete_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TOY[:-1], "toy-exact,liar-crashes", "--out", str(tmp_path)]) == 1
    assert "1 of 3 cells failed" in capsys.readouterr().err
    (row,) = csv.DictReader((tmp_path / "leaderboards/toy-linf-1_10.csv").open())
    assert row["complete"] == "no"
    assert "the attack fell over" in row["reasons"]
    assert not row.get("acc_liar-crashes")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--attacks", "pdg"], "attack 'pdg' is unknown; did you mean 'pgd'?"),
        (["--atacks", "pgd"], "unknown flag --atacks; did you mean '--attacks'?"),
        (["--eps", "many"], "eps 'many' is not a number"),
        (["--eps=-1"], "eps '-1' is negative"),
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
def test_bad_input_is_one_line_and_exit_code_2_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    out = tmp_path / "results"
    assert main([*TOY, "--out", str(out), *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("what", ["defences", "attacks", "datasets", "classifiers"])
def test_lists_show_names_and_knobs(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", what]) == 0
    shown = capsys.readouterr().out
    for word in {
        "defences": "carso samples=8",
        "attacks": "pgd steps",
        "datasets": "digits",
        "classifiers": "own:digits-at",
    }[what].split():
        assert word in shown


def test_the_list_of_classifiers_tells_what_was_published(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--list", "classifiers"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 150
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in shown if line}
    assert sum(name.startswith("robustbench:") for name in rows) == 164 + 1  # and the scheme
    assert (
        rows["robustbench:Wang2023Better_WRN-28-10"]
        == "WRN-28-10 36.48 92.44 67.31 8/255 ICML 2023"
    )
    assert (
        rows["robustbench:Zhang2019Theoretically"] == "WRN-34-10 48.26 84.92 53.08 0.031 ICML 2019"
    )
    assert (
        rows["robustbench:cifar10/L2/Rice2020Overfitting"]
        == "PreActRN-18 11.17 88.67 67.68 0.5 ICML 2020"
    )
    assert (
        rows["robustbench:cifar100/Linf/Cui2023Decoupled_WRN-28-10"]
        == "WRN-28-10 36.54 73.85 39.18 8/255 NeurIPS 2024"
    )
    assert (
        rows["robustbench:cifar100/corruptions/Hendrycks2020AugMix_WRN"]
        == "WRN-40-2 2.26 ICLR 2020"
    )
    assert rows["own:digits-at"] == "cnn 0.05"
    assert {"autoattack:resnet18", "file:..."} <= rows.keys()


def test_a_list_needs_no_library_of_the_zoo() -> None:
    heavy = "robustbench", "timm", "torchvision"
    code = f"import sys; from bench.cli.app import main; main(['list', 'classifiers']); print(sorted({set(heavy)} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_dry_run_shows_cells_and_cost_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TOY, "--dry-run", "--out", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr().out
    lines = {line.partition(" (")[0]: line for line in shown.splitlines()}
    assert lines["toy-linear / toy-exact"].split()[3:6] == ["(linf", "1/10)", "3"]
    assert max(map(len, lines.values())) <= 140
    assert "2 cells, 2 to answer" in shown
    assert "in the store" not in shown
    assert "unknown" not in shown
    assert not (tmp_path / "results").exists()


def test_a_dry_run_tells_what_is_in_the_store_and_counts_only_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 900 ms a prediction of 40 images: three calls of the attack, and three to select and judge, 216 s; without an attack half of that."""
    monkeypatch.setattr("bench.judging.cost.time_prediction", lambda model, x, repeats: 900.0)
    assert main([*TOY, "--dry-run", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[-2:] for line in shown.splitlines()[1:3]] == [
        ["1.8", "min"],
        ["3.6", "min"],
    ]
    assert "2 cells, 2 to answer, at most about 5.4 min" in shown
    assert main([*TOY[:-1], "none", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main([*TOY, "--dry-run", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert [line.endswith("(in the store)") for line in shown.splitlines()[1:3]] == [True, False]
    assert "2 cells, 1 to answer, at most about 3.6 min" in shown


def test_a_second_dry_run_measures_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TOY, "--dry-run", "--out", str(tmp_path)]
    assert main(words) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("bench.judging.cost.time_prediction", lambda *_, **__: pytest.fail("again"))
    monkeypatch.setattr("bench.judging.cost.load_cached", lambda *_: pytest.fail("again"))
    assert main(words) == 0
    assert capsys.readouterr().out == first


def test_a_damaged_file_of_times_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cache" / "carso-bench" / "prediction-times.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([*TOY, "--dry-run", "--out", str(tmp_path)]) == 0
    (times,) = json.loads(file.read_text()).values()
    assert len(times) == 1


def test_an_ensemble_to_transfer_from_takes_the_time_of_its_members() -> None:
    ensemble = Spec.of("transfer", {"source": "own:digits-standard+own:digits-at"})
    cell = replace(
        plan([Request(defences=("undefended",), attacks=("transfer",), n=20)]).cells[-1],
        attack=ensemble,
    )
    (cost,) = forecast_costs([cell], Path("data"))
    assert cost.seconds


def test_the_command_transfers_from_an_ensemble(tmp_path: Path) -> None:
    attack = "transfer[source=own:digits-standard+own:digits-at,steps=20]"
    assert (
        main(
            [
                "--dataset",
                "digits",
                "--defences",
                "undefended",
                "--n",
                "20",
                "--attacks",
                attack,
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    correct = {record.cell.attack.name: sum(record.correct) for record in Store(tmp_path).records()}
    assert correct["transfer"] < correct["none"], "the target is one of the members"


def test_an_ensemble_with_a_member_that_cannot_take_the_images_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "own:digits-standard+own:mnist-at"
    words = [
        "--dataset",
        "digits",
        "--defences",
        "at",
        "--attacks",
        f"transfer[source={source}]",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "own:mnist-at" in complaint
    assert "cannot take the images (1, 8, 8) of 'digits'" in complaint
    assert not (tmp_path / "out").exists()


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


def test_a_dry_run_says_which_cells_it_cannot_time_and_a_knob_that_came_later_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--dataset",
        "cifar10-jpeg",
        "--defences",
        "at",
        "--attacks",
        "spsa[steps=3,samples=2]",
        "--data-dir",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--dry-run", "--n", "20"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[2].split() == ["at", "/", "spsa", "(linf", "8/255)", "15", "unknown"]
    assert "2 of unknown time are not counted in" in shown


def test_an_interrupt_keeps_what_was_finished_and_exits_130(tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nfrom bench.questions.registry import attack\n"
        "@attack('slow', norms={'linf'}, access='score', family='score')\n"
        "def slow(model, x, y, threat):\n    '''Slow.'''\n    time.sleep(0.4)\n    return x\n"
    )
    words = [
        "--with",
        str(TOYS),
        "--with",
        str(slow),
        "--dataset",
        "toy",
        "--defences",
        "toy-linear",
        "--batch",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.run", *words, "--attacks", "toy-exact,slow"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environ,
        preexec_fn=functools.partial(
            signal.signal, signal.SIGINT, signal.SIG_DFL
        ),  # a shell in the background ignores it
    )
    deadline = time.monotonic() + 60
    while (
        not list(tmp_path.glob("out/records/**/slow-*.part*.json")) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode().count("\n") == 1
    assert "interrupted" in said.decode()
    kept = list(tmp_path.glob("out/records/**/*.json"))
    assert any("none-" in path.name for path in kept)
    assert any("toy-exact-" in path.name for path in kept)
    assert any(".part" in path.name for path in kept)
