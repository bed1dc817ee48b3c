"""Checks speak in the flags and reasons of a row, and in none of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.judging.evaluate import evaluate
from bench.questions.plan import plan
from bench.questions.request import Request, read_plan_file
from bench.questions.spec import Cell
from bench.report import build_leaderboards
from bench.results.leaderboard import Row
from bench.results.record import Flag, Planted, Record
from bench.results.worst_case import worst_case
from bench.soundness.assess import audit_checks
from bench.soundness.verdict import missing_codes
from tests.fake_records import cell, evidence, record

NOISY = {"defence": "carso[classifier=own:x,samples=8]", "select": 8, "draws": 10}


def planted(
    detected: int,
    *,
    of: int = 100,
    valid: int | None = None,
    chance: int = 0,
    attack: str = "pgd",
    **how: str,
) -> Record:
    """The check `planted`: of `of` examples the attack finds `detected`, random points `chance`."""
    asked = cell(f"planted[attack={attack},examples={of}]", **how)
    counts = (of if valid is None else valid, detected, chance)
    columns = [tuple(int(i < count) for i in range(of)) for count in counts]
    correct = [int(i >= detected) for i in range(of)]
    return replace(record(asked, correct), planted=Planted(*columns))


def audit(
    checks: Sequence[Record], row: Sequence[Record], controls: Sequence[Record] = ()
) -> tuple[list[Flag], list[str]]:
    findings = audit_checks(evidence(row, checks=checks, controls=controls))
    flags = [flag for finding in findings for flag in finding.flags]
    return flags, [note for finding in findings for note in finding.notes]


def flags(
    checks: Sequence[Record], others: Sequence[Record] = (), met: Sequence[str] = ("pgd",)
) -> tuple[dict[str, str], list[str]]:
    row = [record(cell(text), [1]) for text in met]
    raised, notes = audit(checks, row, [*checks, *others])
    return {flag.id: flag.severity for flag in raised}, notes


JPEG = {"defence": "jpeg[classifier=own:x,quality=75]"}
BARE = {"defence": "undefended[classifier=own:x]"}


def test_an_attack_that_finds_what_was_planted_is_noted() -> None:
    assert flags([planted(95)]) == (
        {},
        ["D17: pgd finds 95.0% of 100 planted examples, random points 0.0%"],
    )
    assert flags([planted(94)])[0] == {"D17": "soft"}


@pytest.mark.parametrize(
    ("bare", "severity"), [(100, "hard"), (81, "hard"), (80, "soft"), (60, "soft")]
)
def test_d17_is_hard_where_the_bare_classifier_gives_ten_points_more(
    bare: int, severity: str
) -> None:
    assert flags([planted(70, **JPEG)], [planted(bare, **BARE)])[0] == {"D17": severity}


def test_d17_compares_only_the_same_attack_classifier_and_threat() -> None:
    for other in (
        {"defence": "undefended[classifier=own:y]"},
        {**BARE, "eps": "1/10"},
        {"defence": "jpeg[classifier=own:x,quality=9]"},
    ):
        assert flags([planted(70, **JPEG)], [planted(100, **other)])[0] == {"D17": "soft"}
    assert flags([planted(70, **JPEG)], [planted(100, attack="apgd", **BARE)])[0] == {"D17": "soft"}


def test_planted_examples_that_are_few_or_easy_say_nothing() -> None:
    for check in (planted(10, chance=16), planted(10, valid=89)):
        raised, (note,) = flags([check])
        assert raised == {}
        assert note.endswith("of 100 that were to be planted: this says nothing")
    assert flags([planted(10, chance=13, valid=90)])[0] == {"D17": "soft"}
    assert flags([planted(70, **JPEG)], [planted(100, chance=30, **BARE)])[0] == {"D17": "soft"}, (
        "nor does such a control"
    )


def test_one_good_attack_that_the_row_met_is_enough() -> None:
    checks = [planted(3), planted(99, attack="apgd")]
    assert flags(checks, met=("pgd", "apgd"))[0] == {}
    assert (
        "D17: pgd finds 3.0% of 100 planted examples, random points 0.0%"
        in flags(checks, met=("pgd", "apgd"))[1]
    )
    assert flags(checks, met=("pgd",))[0] == {"D17": "soft"}, (
        "an attack that the row did not meet does not speak for its number"
    )


def test_an_attack_that_the_row_did_not_meet_raises_nothing() -> None:
    raised, (note,) = flags([planted(3, attack="fgsm")])
    assert raised == {}
    assert note.endswith("and the row did not meet it")


def test_d17_compares_attacks_without_their_loss() -> None:
    """Two classes leave no third for some losses."""
    strong = planted(99, attack="apgd[loss=ce,steps=100]")
    assert (
        flags([planted(3), strong], met=("pgd", "apgd[loss=ce+targeted,steps=100,targets=9]"))[0]
        == {}
    )
    assert flags([planted(3), strong], met=("pgd", "apgd[loss=ce,steps=20]"))[0] == {"D17": "soft"}


def known(
    left: Sequence[int], robust: Sequence[int], **others: Sequence[int]
) -> tuple[list[Flag], list[str]]:
    """D15 where pgd leaves `robust` of ten draws, and `left` where it knows the randomness.

    `others` is what other attacks leave.
    """
    met = {"none": [10] * len(robust), "pgd": robust, **others}
    row = [record(cell(name, **NOISY), counts) for name, counts in met.items() if counts]
    return audit([record(cell("frozen[attack=pgd]", **NOISY), left)], row)


def test_an_attacker_who_knows_more_must_not_do_less() -> None:
    raised, notes = known([10] * 60 + [0] * 40, [10] * 50 + [0] * 50)
    assert [(flag.id, flag.severity) for flag in raised] == [("D15", "hard")]
    assert "by 0.100" in raised[0].message
    assert notes == []


def test_what_is_owed_to_randomness_is_noted() -> None:
    raised, notes = known([0] * 100, [7] * 100)
    assert raised == []
    assert notes == [
        "D15: 0.000 stand where pgd knows the randomness, 0.700 where it does not; "
        "owed to randomness: +0.700"
    ]
    assert known([0] * 100, [0] * 100)[1][0].endswith("owed to randomness: +0.000")


def test_d15_compares_the_same_attack_where_the_row_met_it() -> None:
    frozen, stronger = [10] * 60 + [0] * 40, [10] * 40 + [0] * 60
    assert known(frozen, [10] * 62 + [0] * 38, fgsm=stronger)[0] == [], (
        "a short attack need not be the row's strongest"
    )
    (flag,), _ = known(frozen, [], fgsm=stronger, none=[10] * 100)
    assert flag.severity == "hard"
    assert "0.600 stand where pgd knows the randomness, robust accuracy is 0.400" in flag.message


def test_the_noise_of_draws_does_not_raise_d15() -> None:
    assert known([10] * 52 + [0] * 48, [9, 10] * 26 + [1, 0] * 24)[0] == []


def test_d15_does_not_compare_other_images() -> None:
    assert known([10] * 50, [0] * 100) == ([], [])


def answers(defences: Sequence[str], attacks: Sequence[str]) -> list[Record]:
    asked = Request(
        dataset="toy-grey", defences=tuple(defences), attacks=tuple(attacks), n=12, budget="quick"
    )
    return [evaluate(asked_cell) for asked_cell in plan([asked]).cells]


def rows(
    records: Sequence[Record], failures: Mapping[str, str] | None = None, cells: Sequence[Cell] = ()
) -> tuple[Row, ...]:
    (board,) = build_leaderboards(
        records, {"main": [*cells, *(r.cell for r in records)]}, failures or {}
    )
    assert not any(label.startswith(("frozen", "planted")) for label in board.attacks)
    return board.rows


def test_checks_change_no_figure_of_a_row() -> None:
    records = answers(["toy-key"], ["pgd", "pgd-eot", "frozen[attack=pgd]"])
    (row,), (plain,) = rows(records), rows([r for r in records if r.cell.attack.name != "frozen"])
    for name in ("clean", "robust", "strongest_attack", "labels", "accuracies", "complete", "rank"):
        assert getattr(row, name) == getattr(plain, name), name
    assert [r.cell.attack.name for r in row.records] == ["none", "pgd", "pgd-eot"]
    assert any(
        "0.000 stand where pgd knows the randomness" in reason
        and "owed to randomness: +1.000" in reason
        for reason in row.reasons
    )
    (lacks,), (lacked,) = (
        [r for r in board_row.reasons if r.startswith("not run")] for board_row in (row, plain)
    )
    assert "D15" in lacked
    assert "D15" not in lacks


def test_an_unanswered_check_leaves_the_row_complete() -> None:
    records = answers(["toy-key"], ["pgd", "frozen[attack=pgd]"])
    (check,) = (r.cell for r in records if r.cell.attack.name == "frozen")
    (row,) = rows([r for r in records if r.cell != check], {check.key: "RuntimeError: no"}, [check])
    assert row.complete
    assert any(
        "frozen" in reason and "failed: RuntimeError: no" in reason for reason in row.reasons
    )


def test_a_masked_defence_is_suspicious_by_d17() -> None:
    rows_of = {
        row.defence: row for row in rows(answers(["toy-linear", "toy-masked"], ["pgd", "planted"]))
    }
    (reason,) = (reason for reason in rows_of["toy-masked"].reasons if reason.startswith("D17"))
    assert reason.startswith("D17 hard: pgd finds 0.0% of 12 planted examples")
    assert rows_of["toy-masked"].verdict == "suspicious"
    assert not any(reason.startswith("D17 hard") for reason in rows_of["toy-linear"].reasons)


def test_a_check_is_no_part_of_a_worst_case() -> None:
    with pytest.raises(ValueError, match="a check is no attack"):
        worst_case(
            [record(cell("pgd", **NOISY), [10]), record(cell("frozen[attack=pgd]", **NOISY), [0])]
        )


def test_a_stochastic_row_needs_the_check_of_known_randomness() -> None:
    row = [record(cell(name, **NOISY), [10]) for name in ("none", "pgd-eot")]
    assert "D15" in missing_codes(evidence(row))
    frozen = record(cell("frozen[attack=pgd]", **NOISY), [10])
    assert "D15" not in missing_codes(evidence(row, checks=[frozen]))
    assert "D15" in missing_codes(evidence(row, checks=[planted(1, of=1)]))


def test_the_plan_soundness_asks_each_check_where_it_can() -> None:
    cells = [
        cell
        for cell in plan(read_plan_file(Path("soundness"))[1]).cells
        if cell.dataset.name == "digits"
    ]
    asked = {
        name: {cell.defence.name for cell in cells if cell.attack.name == name}
        for name in ("frozen", "planted", "signal", "indicators")
    }
    everything = {cell.defence.name for cell in cells}
    assert asked["planted"] == everything - {"ensemble"}, "whose heads are several"
    assert asked["frozen"] == {cell.defence.name for cell in cells if cell.draws > 1}
    assert asked["signal"] == asked["indicators"] == everything
    assert {str(cell.threat.eps) for cell in cells if cell.attack.name in asked} == {"1/5"}
