"""Which flags and notes the figures of `signal` and `indicators` give a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.judging.evaluate import evaluate
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.report import build_leaderboards
from bench.results.record import Flag, Record
from bench.soundness.assess import audit_checks, audit_row
from bench.soundness.verdict import missing_codes
from tests.fake_records import cell, evidence, record

NOISY = {"defence": "carso[classifier=own:x,samples=8]", "select": 8, "draws": 10}


def checked(name: str, **figures: float) -> Record:
    return replace(record(cell(name), [1] * 40), checks=tuple(sorted(figures.items())))


def audit(checks: Sequence[Record], row: Sequence[Record] = ()) -> tuple[list[Flag], list[str]]:
    known = evidence(row, checks=checks)
    findings = audit_checks(known, audit_row(known))
    flags = [flag for finding in findings for flag in finding.flags]
    return flags, [note for finding in findings for note in finding.notes]


def outcome(check: Record, row: Sequence[Record] = ()) -> tuple[dict[str, str], list[str]]:
    """Code -> severity, and all that is said."""
    flags, notes = audit([check], row)
    return {flag.id: flag.severity for flag in flags}, notes + [flag.message for flag in flags]


def slope(rho: float, cos: float = 0.9, **surrogates: float) -> tuple[dict[str, str], list[str]]:
    return outcome(
        checked(
            "signal",
            **{
                "D13": rho,
                "cos(g1,g2)": cos,
                **{f"D13:{name}": value for name, value in surrogates.items()},
            },
        )
    )


@pytest.mark.parametrize(
    ("rho", "severity"),
    [(0.8, {}), (0.79, {"D13": "soft"}), (0.7, {"D13": "soft"}), (0.69, {"D13": "hard"})],
)
def test_a_gradient_is_flagged_by_how_little_it_agrees(
    rho: float, severity: dict[str, str]
) -> None:
    flags, (message,) = slope(rho)
    assert flags == severity
    assert f"the gradient agrees to {rho:.2f} with that of the smoothed margin" in message


def test_a_surrogate_that_agrees_softens_d13() -> None:
    flags, (message,) = slope(0.1, lse=0.6, identity=0.8)
    assert flags == {"D13": "soft"}
    assert message.endswith("best of the surrogates that of identity, to 0.80")
    assert slope(0.1, lse=0.6, identity=0.79)[0] == {"D13": "hard"}


def test_d13_is_inconclusive_without_a_smoothed_gradient() -> None:
    flags, (message,) = slope(0.0, cos=0.049)
    assert flags == {}
    assert message.startswith("D13: inconclusive")
    assert slope(0.0, cos=0.05)[0] == {"D13": "hard"}


def forecast(
    need: float, noise: float, attacks: Sequence[str], left: Sequence[Sequence[int]] = ()
) -> tuple[dict[str, str], list[str]]:
    asked = cell("signal[draws=16]", **NOISY)
    figures = {"D13": 0.9, "cos(g1,g2)": 0.9, "E.5": need, "U<=0": noise}
    check = replace(record(asked, [10] * 40), checks=tuple(sorted(figures.items())))
    row = [
        record(cell(name, **NOISY), left[i] if left else [10] * 40)
        for i, name in enumerate(attacks)
    ]
    return outcome(check, row)


@pytest.mark.parametrize(
    ("need", "noise", "flagged"),
    [(4.0, 0.1, False), (4.1, 0.0, True), (1.0, 0.11, True), (-1.0, 0.6, True)],
    ids=["enough", "need", "noise", "none"],
)
def test_too_few_averaged_draws_raise_d14(need: float, noise: float, flagged: bool) -> None:
    row = ("none", "pgd-eot[eot=2]", "adaptive[eot=4]", "square[eot=99]")
    assert forecast(need, noise, row)[0] == ({"D14": "soft"} if flagged else {})
    assert forecast(need, noise, ("none", "square[eot=99]"))[0] == {}, (
        "no attack averages gradients"
    )


def test_doubled_draws_that_find_more_outrank_the_forecast() -> None:
    row = ("pgd-eot[eot=2]", "pgd-eot[eot=4]")
    drop = [[10] * 40, [10] * 20 + [0] * 20]
    flags, notes = forecast(9.0, 0.0, row, drop)
    assert flags == {}, "the audit of the doubling flags it itself"
    assert any(
        note.startswith(
            "D14: a mean gradient takes 9 draws for a cosine of 1/2, and 16 of them show none on 0%"
        )
        for note in notes
    )
    assert forecast(9.0, 0.0, row)[0] == {"D14": "soft"}


def failed(
    left: int, *, attack: str = "pgd", met: str = "pgd", **counts: int
) -> tuple[dict[str, str], list[str]]:
    figures = (
        {
            "survive": left,
            **dict.fromkeys(("unavailable", "unstable", "silent", "incomplete"), 0),
            **counts,
        }
        if left
        else {}
    )
    check = checked(
        f"indicators[attack={attack},examples=40]",
        **{f"D11:{name}": float(count) for name, count in figures.items()},
    )
    return outcome(check, [record(cell(met), [1] * 40)])


@pytest.mark.parametrize("name", ["unavailable", "unstable", "silent", "incomplete"])
def test_an_indicator_that_fires_on_over_a_tenth_raises_d11(
    name: str,
) -> None:
    assert failed(40, **{name: 5})[0] == {"D11": "soft"}
    assert failed(40, **{name: 4})[0] == {}
    assert failed(4, **{name: 4})[0] == {}, "of four examples nothing is said"
    assert failed(5, **{name: 1})[0] == {"D11": "soft"}


def test_d11_says_which_indicators_fire_and_how_often() -> None:
    assert failed(40, incomplete=12, unstable=5, silent=1)[1] == [
        "of 40 examples that pgd leaves, predictions unstable under small noise on 5, "
        "still rising at the end on 12"
    ]
    assert failed(40)[1] == [
        "D11: of 40 examples that pgd leaves, no indicator of its failure fires"
    ]
    assert failed(40, silent=1)[1] == [
        "D11: of 40 examples that pgd leaves, a success thrown away on 1"
    ]
    assert failed(0)[1] == ["D11: pgd leaves 0 of 40 examples: too few to say why"]


def test_one_attack_without_a_failure_is_enough() -> None:
    def traced(attack: str, left: int, rising: int) -> Record:
        figures = {
            "survive": left,
            "unavailable": 0,
            "unstable": 0,
            "silent": 0,
            "incomplete": rising,
        }
        return checked(
            f"indicators[attack={attack},examples=40]",
            **{f"D11:{name}": float(count) for name, count in figures.items()},
        )

    row = [record(cell(name), [1] * 40) for name in ("pgd", "pgd[steps=40]")]
    short, long = traced("pgd", 40, 12), traced("pgd[steps=40]", 30, 0)
    flags, notes = audit([short, long], row)
    assert flags == []
    assert notes[0] == "D11: of 40 examples that pgd leaves, still rising at the end on 12"
    assert [flag.id for flag in audit([short, long], row[:1])[0]] == ["D11"], (
        "the row did not meet the longer one"
    )
    assert [flag.id for flag in audit([short, traced("pgd[steps=40]", 30, 9)], row)[0]] == [
        "D11",
        "D11",
    ]
    assert audit([short, traced("pgd[steps=40]", 2, 2)], row)[0] == [], "it leaves next to nothing"


def test_an_attack_that_the_row_did_not_meet_is_noted() -> None:
    flags, (message,) = failed(40, attack="pgd[steps=9]", incomplete=12)
    assert flags == {}
    assert message == (
        "D11: of 40 examples that pgd leaves, still rising at the end on 12, and the row did not "
        "meet it"
    )
    assert failed(40, attack="pgd[steps=9]", met="pgd[steps=9]", incomplete=12)[0] == {
        "D11": "soft"
    }


def test_a_row_has_the_flags_and_notes_of_its_checks() -> None:
    asked = Request(
        dataset="toy-grey",
        defences=("toy-masked",),
        attacks=("pgd", "indicators", "signal[directions=20]"),
        n=12,
        budget="quick",
    )
    records = [evaluate(asked_cell) for asked_cell in plan([asked]).cells]
    (board,) = build_leaderboards(records, {"main": [r.cell for r in records]}, {})
    (plain,) = build_leaderboards(records[:2], {"main": [r.cell for r in records[:2]]}, {})
    (row,), (bare,) = board.rows, plain.rows
    assert board.attacks == ("none", "pgd")
    assert "D11 soft: of 6 examples that pgd leaves, no gradient on 6" in row.reasons
    assert any(reason.startswith("D13 hard: the gradient agrees to 0.00") for reason in row.reasons)
    for name in ("clean", "robust", "strongest_attack", "labels", "accuracies", "complete", "rank"):
        assert getattr(row, name) == getattr(bare, name), name
    attacks, checks = records[:2], records[2:]
    lacking = missing_codes(evidence(attacks, checks=checks))
    assert missing_codes(evidence(attacks)) == lacking, "no verdict needs these checks"
