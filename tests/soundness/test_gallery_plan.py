"""The plan `gallery` at a smaller size: defences broken on purpose fall and are flagged."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.judging.evaluate import evaluate
from bench.questions.plan import plan
from bench.questions.request import read_plan_file
from bench.report import build_leaderboards
from bench.results.leaderboard import Row
from bench.results.record import Record

N = 32
# What a hasty author runs, and one transfer.
NAIVE = ("fgsm", "pgd[loss=ce,steps=40]", "pgd-eot[loss=ce]", "transfer")
CONTROLS = ("undefended", "at", "tta")
# No gradient of these is masked: the plan has them for the scoring of draws, for abstentions and
# for eps 1/10.
UNMASKED = ("resize-pad", "gallery-reject", "gallery-kwta")


@functools.cache
def records() -> tuple[Record, ...]:
    first = read_plan_file(Path("gallery"))[1][0]
    assert "adaptive" in first.attacks
    assert first.n == 100
    return tuple(
        evaluate(cell) for cell in plan([replace(first, n=N, attacks=(*NAIVE, "adaptive"))]).cells
    )


def rows(records: Sequence[Record]) -> dict[str, Row]:
    (board,) = build_leaderboards(records, {"gallery": [record.cell for record in records]}, {})
    return {row.cell.defence.name: row for row in board.rows}


@functools.cache
def whole() -> dict[str, Row]:
    return rows(records())


def hard(row: Row) -> list[str]:
    return [flag.id for flag in row.flags if flag.severity == "hard"]


def broken_on_purpose() -> list[str]:
    return [name for name in whole() if name not in CONTROLS]


def test_every_broken_defence_falls_to_within_two_points_of_its_classifier() -> None:
    true = whole()["undefended"].robust
    assert true
    assert len(broken_on_purpose()) == 15
    left = {name: row.robust.mean for name in broken_on_purpose() if (row := whole()[name]).robust}
    assert len(left) == 15
    assert {name: share for name, share in left.items() if share > true.mean + 0.02} == {}


def test_nothing_hard_is_flagged_on_the_honest() -> None:
    assert {name: hard(whole()[name]) for name in CONTROLS} == {name: [] for name in CONTROLS}
    assert {whole()[name].verdict for name in CONTROLS} == {"incomplete"}


def test_the_naive_attack_alone_leaves_a_number_that_is_far_too_high_and_the_verdict_says_so() -> (
    None
):
    naive = rows([answer for answer in records() if answer.cell.attack.name != "adaptive"])
    plain = ("none", "fgsm", "pgd", "pgd-eot")
    blind = rows([answer for answer in records() if answer.cell.attack.name in plain])
    for name in broken_on_purpose():
        if name not in UNMASKED:
            robust = blind[name].robust
            assert robust
            assert robust.mean > 0.2, name
            assert naive[name].verdict == "suspicious", (name, naive[name].reasons)
            assert hard(naive[name]), name
    for name in CONTROLS:
        assert not hard(naive[name]), name


@pytest.mark.parametrize(
    "name",
    [
        "gallery-nan-gradient",
        "gallery-one-hot",
        "gallery-noisy-gradient",
        "gallery-peel-naive",
        "jpeg",
    ],
)
def test_what_a_probe_sees_stays_flagged_though_the_adaptive_attack_got_past_it(name: str) -> None:
    assert hard(whole()[name])
    assert whole()[name].verdict == "suspicious"
