"""How a number moves with eps and with effort: each check fires on the curve that shows its fault, and on no other."""

from __future__ import annotations

import pytest

from bench.leaderboard import leaderboards
from bench.record import Record
from bench.soundness.curves import MEANING, elsewhere, more_effort, over_eps, ran
from bench.soundness.verdict import lacking
from tests.fake_records import cell, record

NOISY = {"defence": "carso[classifier=own:digits-at]", "select": 8, "draws": 16}


def stands(share: float, n: int = 100) -> list[int]:
    return [1] * round(share * n) + [0] * (n - round(share * n))


def at(eps: str, share: float, attack: str = "pgd[steps=20]", **how: object) -> Record:
    return record(cell(attack, eps=eps, **how), stands(share))


def flags(*records: Record) -> dict[str, str]:
    found = over_eps(records[:1], records[1:])
    assert all(flag.id in MEANING and flag.message for flag in found)
    return {flag.id: flag.severity for flag in found}


@pytest.mark.parametrize(("left", "severity"), [(0.0, None), (0.01, None), (0.03, "soft"), (0.05, "soft"), (0.06, "hard"), (0.4, "hard")])
def test_nothing_stands_where_every_image_can_become_any_other(left: float, severity: str | None) -> None:
    assert flags(at("1/5", 0.7), at("1", left)).get("D3") == severity


def test_only_gradient_attacks_in_linf_from_eps_1_on_say_so() -> None:
    assert flags(at("1/5", 0.7), at("1/2", 0.4)) == {}
    assert "D3" not in flags(at("1/5", 0.7), at("1", 0.4, "square"))
    assert "D3" not in flags(at("1/5", 0.7, norm="l2"), at("1", 0.4, norm="l2"))
    both = [at("1", 0.4), at("1", 0.0, "pgd[steps=40]")]
    assert "D3" not in flags(at("1/5", 0.7), *both), "the union of the gradient attacks counts"


def test_accuracy_must_not_rise_with_eps() -> None:
    assert flags(at("1/5", 0.5), at("1/10", 0.7), at("2/5", 0.1)) == {}
    assert flags(at("1/5", 0.5), at("2/5", 0.6)) == {"D4": "hard"}
    assert flags(at("1/5", 0.5), at("2/5", 0.51)) == {}, "one example of a hundred is luck"
    weaker = at("2/5", 0.6, "fgsm")
    assert flags(at("1/5", 0.5), weaker) == {}, "another attack at the larger eps proves nothing"


def test_accuracy_must_not_stand_still_while_eps_grows_fourfold() -> None:
    assert flags(at("1/10", 0.6), at("2/5", 0.57)) == {"D4": "hard"}
    assert flags(at("1/10", 0.6), at("3/10", 0.57)) == {}
    assert flags(at("1/10", 0.1), at("2/5", 0.08)) == {}, "what has fallen cannot fall on"


def test_only_the_same_question_on_the_same_examples_is_compared() -> None:
    here = at("1/5", 0.5)
    others = [at("2/5", 0.6), at("1/5", 0.6), at("2/5", 0.6, seed=1), at("2/5", 0.6, defence="vae"), record(cell("pgd", eps="2/5"), stands(0.6, 50))]
    assert elsewhere([here], others) == others[:1]
    assert elsewhere([], others) == []


@pytest.mark.parametrize(("after", "severity"), [(0.70, None), (0.695, None), (0.69, None), (0.68, None), (0.67, "hard"), (0.5, "hard"), (0.8, None)])
def test_twice_the_steps_must_not_find_more(after: float, severity: str | None) -> None:
    """Two examples of a hundred lie within two standard errors of none; three do not, unless they are traded for others."""
    n = 200
    pair = [record(cell(f"pgd[steps={steps}]"), stands(share, n)) for steps, share in ((20, 0.7), (40, after))]
    found = {flag.id: flag.severity for flag in more_effort(pair)}
    assert found.get("D6") == severity or (severity is None and found.get("D6") == "soft" and 0.005 < 0.7 - after <= 0.02)


def test_a_small_gain_that_is_no_luck_is_soft() -> None:
    pair = [record(cell(f"pgd[steps={steps}]"), stands(share, 1000)) for steps, share in ((20, 0.7), (40, 0.69))]
    assert [(flag.id, flag.severity) for flag in more_effort(pair)] == [("D6", "soft")]


def test_draws_are_another_check_than_steps_and_other_differences_are_none() -> None:
    def gains(one: str, other: str) -> set[str]:
        return {flag.id for flag in more_effort([record(cell(one, **NOISY), [16] * 100), record(cell(other, **NOISY), [8] * 100)])}

    assert gains("pgd-eot[eot=4]", "pgd-eot[eot=8]") == {"D14"}
    assert gains("pgd[restarts=1]", "pgd[restarts=2]") == {"D6"}
    assert gains("pgd[steps=20]", "pgd[steps=30]") == set()
    assert gains("pgd[loss=ce,steps=20]", "pgd[loss=dlr,steps=40]") == set()
    assert gains("pgd[steps=20]", "pgd-eot[steps=40]") == set()
    assert gains("pgd[steps=40]", "pgd[steps=20]") == set(), "more steps that find less are no fault of these"


def test_the_two_of_most_effort_count() -> None:
    row = [record(cell(f"pgd[steps={steps}]"), stands(share)) for steps, share in ((10, 0.9), (40, 0.6), (20, 0.6), (30, 0.9))]
    assert more_effort(row) == [], "from 20 to 40 nothing is gained"
    assert [flag.id for flag in more_effort(row[:2])] == ["D6"]


def test_what_was_run_is_no_longer_lacking() -> None:
    row = [record(cell(name), [1]) for name in ("none", "pgd[steps=20]", "pgd[steps=40]")]
    assert ran(row, []) == {"D6"}
    assert {"D3", "D6"} & set(lacking(row)) == {"D3"}
    whole = [record(cell("pgd[steps=20]", eps="1"), [0])]
    assert not {"D3", "D6"} & set(lacking(row, whole))


def test_a_leaderboard_is_told_of_the_others_of_its_norm() -> None:
    records = [record(cell(name, eps=eps), stands(share)) for name, eps, share in (("none", "1/5", 0.9), ("pgd", "1/5", 0.7), ("pgd", "1", 0.4))]
    boards = leaderboards(records, {}, {})
    assert [board.eps for board in boards] == ["1/5", "1"]
    for board in boards:
        assert {"D3"} <= {flag.id for flag in board.rows[0].flags}
