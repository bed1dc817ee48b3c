"""D18: attacks that fail where nothing stands in their way say nothing of a defence."""

from __future__ import annotations

from bench.report import build_leaderboards
from bench.results.record import Flag, Record
from bench.soundness.audits.positive_control import (
    audit_positive_control,
    check_plain_classifier,
)
from bench.soundness.codes import code_questions
from bench.soundness.verdict import missing_codes
from tests.fake_records import cell, evidence, record, stands

PLAIN = "undefended[classifier=own:digits-standard@1a2b3c4d]"


def plain(attack: str, share: float, n: int = 100, **how: str) -> Record:
    return record(cell(attack, PLAIN, **how), stands(share, n))


def compared(row: list[Record], others: list[Record]) -> tuple[float, float] | None:
    control = check_plain_classifier(row, others)
    return (control.left_by_these_attacks, control.left_by_all) if control else None


def flags(row: list[Record], others: list[Record]) -> list[Flag]:
    return audit_positive_control(evidence(row, controls=others))


def ours(attack: str, share: float = 0.7) -> Record:
    return record(cell(attack), stands(share))


def test_a_row_s_attacks_must_find_what_others_find() -> None:
    row = [ours("none", 1.0), ours("fgsm"), ours("pgd[steps=5]"), ours("square")]
    controls = [plain("fgsm", 0.4), plain("pgd[steps=5]", 0.3), plain("square", 0.0)]
    (flag,) = flags(row, [*row, *controls])
    assert (flag.id, flag.severity) == ("D18", "hard")
    assert flag.id in code_questions()
    assert "leave 0.300 of the undefended classifier, of which others leave 0.000" in flag.message
    assert flags(row, [*row, *controls[:2]]) == [], "nothing there says that more can be found"
    assert flags([*row, ours("apgd")], [*row, *controls, plain("apgd", 0.05)]) == [], (
        "together they find it"
    )


def test_only_the_same_attack_with_the_same_knobs_counts() -> None:
    row = [ours("pgd[steps=5]")]
    others = [plain("pgd[steps=40]", 0.0), plain("none", 1.0)]
    assert compared(row, others) is None
    assert compared(row, [*others, plain("pgd[steps=5]", 0.3, eps="1/10")]) is None
    assert compared(row, [*others, plain("pgd[steps=5]", 0.3, norm="l2")]) is None
    assert compared(row, [*others, plain("pgd[steps=5]", 0.3, dataset="mnist[n=4]")]) is None
    assert compared(row, [*others, plain("pgd[steps=5]", 0.3)]) == (0.3, 0.0)
    assert compared([ours("square")], [plain("square", 0.0)]) is None, "an attack by gradients"
    assert compared([], others) is None


def test_the_examples_that_met_most_attacks_are_compared() -> None:
    row = [ours("fgsm"), ours("pgd")]
    few = [
        plain(name, share, 10, dataset="digits[n=10]")
        for name, share in (("fgsm", 0.4), ("pgd", 0.3), ("square", 0.0))
    ]
    many = [plain("fgsm", 0.0), plain("square", 0.0)]
    assert compared(row, many) == (0.0, 0.0)
    assert compared(row, [*many, *few]) == (0.3, 0.0)
    assert compared(row, [*many, *few, plain("pgd", 0.2)]) == (0.0, 0.0), (
        "of two that met all, the larger"
    )


def test_attacks_that_were_not_tried_leave_it_open() -> None:
    row = [ours("fgsm"), ours("pgd"), ours("pgd-eot")]
    weak = [plain("fgsm", 0.4), plain("square", 0.0)]
    assert compared(row, weak) is None, (
        "a weak attack alone is no verdict on the strong one beside it"
    )
    assert compared(row, [*weak, plain("pgd", 0.3)]) == (0.3, 0.0), "it has no draws to average"
    assert compared(row, [plain("fgsm", 0.04), plain("square", 0.0)]) == (0.04, 0.0), (
        "what finds all does so in company, too"
    )


def test_a_row_without_a_control_lacks_d18() -> None:
    row = [
        ours(name) for name in ("none", "fgsm", "pgd", "square", "transfer[source=own:x]", "noise")
    ]
    assert "D18" in missing_codes(evidence(row))
    assert "D18" not in missing_codes(evidence(row, controls=[plain("pgd", 0.0)]))


def test_the_leaderboard_compares_with_its_other_rows() -> None:
    weak = [
        ours("none", 1.0),
        ours("pgd[steps=5]"),
        plain("none", 1.0),
        plain("pgd[steps=5]", 0.5),
        plain("square", 0.0),
    ]
    (board,) = build_leaderboards(weak, {}, {})
    rows = {row.defence: row for row in board.rows}
    assert "D18" in {flag.id for flag in rows["at"].flags}
    assert rows["at"].verdict == "suspicious"
    assert "D18" in {flag.id for flag in rows["undefended"].flags}, "its own gradients fail, too"
