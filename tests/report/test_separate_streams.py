"""Answers under separate random streams agree with those under one, as chance allows."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev

import pytest

from bench.results.record import Record
from bench.results.statistics import estimate
from bench.results.store import Store

RESULTS = Path(__file__).parents[2] / "results"
# Of differences by chance 95% lie within two standard errors: of 78, four more may lie outside.
WITHIN_TWO_ERRORS = 0.9


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Record, Record]]:
    """The answers to the same question, under one stream and under two."""
    reference = Store(RESULTS / "reference")
    records = Store(RESULTS / "studies" / "separate-streams").records()
    return [(earlier, record) for record in records if (earlier := reference.get(record.cell))]


def test_all_answers_of_the_study_are_in_the_reference(pairs: list[tuple[Record, Record]]) -> None:
    assert len(pairs) == 90
    assert {record.cell.defence.name for _, record in pairs} == {
        "carso",
        "noise",
        "resize-pad",
        "tta",
        "tv",
        "vae",
    }
    assert all(earlier.ids == record.ids for earlier, record in pairs)


def test_clean_answers_are_the_same(pairs: list[tuple[Record, Record]]) -> None:
    """Judging draws what it drew before."""
    clean = [(one_stream, two) for one_stream, two in pairs if two.family == "none"]
    assert len(clean) == 12
    assert all(one_stream.correct == two.correct for one_stream, two in clean)


def test_accuracies_under_attack_agree_within_their_intervals(
    pairs: list[tuple[Record, Record]],
) -> None:
    for one_stream, two in pairs:
        before = estimate(one_stream.correct, one_stream.cell.draws)
        after = estimate(two.correct, two.cell.draws)
        assert before.lo <= after.hi, two.cell
        assert after.lo <= before.hi, two.cell


def test_paired_differences_are_those_of_chance(pairs: list[tuple[Record, Record]]) -> None:
    attacked = [(one_stream, two) for one_stream, two in pairs if two.family != "none"]
    differences = []
    within = 0
    for one_stream, two in attacked:
        gaps = [
            (b - a) / two.cell.draws for a, b in zip(one_stream.correct, two.correct, strict=True)
        ]
        error = stdev(gaps) / math.sqrt(len(gaps))
        differences.append(fmean(gaps))
        within += abs(fmean(gaps)) <= 2 * error
    assert within >= WITHIN_TWO_ERRORS * len(attacked)
    assert abs(fmean(differences)) < 0.005
