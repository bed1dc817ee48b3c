"""A user's own attacks and checks count as ours do: by what they are, not by their names."""

from __future__ import annotations

import contextlib
import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.checks.target import CheckTarget
from bench.judging.evaluate import evaluate
from bench.questions import registry
from bench.questions.facts import AttackTraits
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.report import load_boards
from bench.results.record import Flag, Record
from bench.results.store import Store
from bench.soundness.assess import assess
from bench.soundness.verdict import missing_codes
from tests.fake_records import cell, evidence, record
from tests.pages import ROOT, fenced_blocks

PGD = AttackTraits(family="gradient", iterated=True)
FGSM = AttackTraits(family="gradient", single_step=True)
NOISE = AttackTraits(family="noise")
SEARCH = AttackTraits(family="score", random_search=True)


def answer(attack: str, traits: AttackTraits, correct: int = 100) -> Record:
    stands = [1] * correct + [0] * (100 - correct)
    return record(cell(attack), stands, traits=traits)


@pytest.mark.parametrize(
    ("code", "records"),
    [
        ("D5", [answer("my-fgsm", FGSM), answer("my-pgd", PGD)]),
        ("D7", [answer("my-square", SEARCH)]),
        ("D9", [answer("my-noise", NOISE)]),
    ],
)
def test_an_own_attack_satisfies_what_ours_would(code: str, records: list[Record]) -> None:
    none = record(cell("none"), [1] * 100)
    assert code in missing_codes(evidence([none]))
    assert code not in missing_codes(evidence([none, *records]))
    plain = [answer(r.cell.attack.name, PLAIN) for r in records]
    assert code in missing_codes(evidence([none, *plain]))


PLAIN = AttackTraits(family="gradient")


def test_own_noise_that_beats_the_gradients_is_flagged_as_noise() -> None:
    flags = assess(evidence([answer("my-pgd", PGD, 90), answer("my-noise", NOISE, 60)])).flags
    assert [(flag.id, flag.severity) for flag in flags] == [("D9", "hard")]


def test_one_own_step_that_beats_own_iterations_is_flagged() -> None:
    flags = assess(evidence([answer("my-pgd", PGD, 90), answer("my-fgsm", FGSM, 60)])).flags
    assert ("D5", "hard") in [(flag.id, flag.severity) for flag in flags]


@pytest.fixture
def own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check `toy-mean` of the mean pixel, which flags images that are too bright."""
    monkeypatch.setattr(registry.checks, "_entries", dict(registry.checks._entries))

    def flag_bright(answer: Record) -> list[Flag]:
        mean = dict(answer.checks)["X1"]
        return [Flag("X1", "hard", f"the mean pixel is {mean:.2f}")] if mean > 0.4 else []

    @registry.check("toy-mean", norms={"linf"}, together=True, audit=flag_bright)
    @contextlib.contextmanager
    def toy_mean(
        defence: Any,
        x: Any,
        y: Any,
        threat: Any,
        classes: int,
        stochastic: bool,
        *,
        examples: int = 8,
    ) -> Iterator[CheckTarget]:
        """X1, a check and no attack: how bright the images are."""
        mean = float(x.mean())
        yield CheckTarget(defence, y, classes, stochastic, measure=lambda *_: {"X1": mean})


@pytest.mark.usefixtures("own_check")
def test_an_own_check_is_planned_run_and_audited(tmp_path: Path) -> None:
    question = plan(
        [Request(dataset="toy", defences=("toy-linear",), attacks=("toy-mean", "toy-exact"))]
    )
    assert [cell.attack.name for cell in question.cells] == ["none", "toy-mean", "toy-exact"]
    store = Store(tmp_path)
    store.put_plan(question.name, question.cells, question.attack_traits)
    for cell_ in question.cells:
        store.put(evaluate(cell_))
    answer = store.get(question.cells[1])
    assert answer is not None
    assert dict(answer.checks)["X1"] == pytest.approx(0.5, abs=0.02)
    assert len(answer.ids) == 8
    ((row,),) = [board.rows for board in load_boards(store)]
    assert list(row.accuracies) == ["none", "toy-exact"]
    assert ("X1", "hard") in [(flag.id, flag.severity) for flag in row.flags]
    assert row.verdict == "suspicious"
    assert "X1 hard: the mean pixel is 0.49" in row.reasons


@pytest.mark.usefixtures("own_check")
def test_an_own_check_that_waits_is_no_missing_attack(tmp_path: Path) -> None:
    question = plan([Request(dataset="toy", defences=("toy-linear",), attacks=("toy-mean",))])
    store = Store(tmp_path)
    store.put_plan(question.name, question.cells, question.attack_traits)
    store.put(evaluate(question.cells[0]))
    ((row,),) = [board.rows for board in load_boards(store)]
    assert list(row.accuracies) == ["none"]
    assert "not yet run: toy-mean" in row.reasons


def run_module(*words: str) -> None:
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, cwd=ROOT)


def test_a_check_in_a_file_reaches_the_verdict_and_its_flag_is_kept(tmp_path: Path) -> None:
    """The check of CONTRIBUTING.md, with a threshold that every answer passes."""
    blocks = fenced_blocks(ROOT / "CONTRIBUTING.md", "python")
    (text,) = [block for block in blocks if block.startswith('"""my_check.py')]
    plugin = tmp_path / "my_check.py"
    plugin.write_text(text.replace("SHARE = 0.1", "SHARE = -1.0"))
    out = tmp_path / "results"
    question = ["--dataset", "digits", "--n", "4", "--defences", "at", "--attacks", "brightness"]
    run_module("bench.run", *question, "--with", str(plugin), "--out", str(out))
    table = out / "leaderboards" / "digits-linf-1_5.csv"
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert "D100 soft: 0% of the answers change with the brightness" in row["reasons"]
    before = table.read_bytes()
    run_module("bench.report", "--out", str(out))
    assert table.read_bytes() == before, "a report needs no plug-in"
