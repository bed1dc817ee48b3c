"""How a number moves with eps, effort, scale and rounding: each audit sees its own fault."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.report import build_leaderboards
from bench.results.record import Flag, Record
from bench.soundness.assess import assess
from bench.soundness.audits.curves import audit_over_eps, audit_unbounded
from bench.soundness.audits.effort import audit_effort
from bench.soundness.audits.variants import audit_eight_bits, audit_scales
from bench.soundness.codes import code_questions
from bench.soundness.verdict import missing_codes
from tests.fake_records import cell, evidence, record, stands

NOISY = {"defence": "carso[classifier=own:digits-at]", "select": 8, "draws": 16}


def at(eps: str, share: float, attack: str = "pgd[steps=20]", **how: object) -> Record:
    return record(cell(attack, eps=eps, **how), stands(share))


def flags(*records: Record) -> dict[str, str]:
    row = evidence(records[:1], other_eps=records[1:])
    raised = audit_unbounded(row) + audit_over_eps(row)
    assert all(flag.id in code_questions() and flag.message for flag in raised)
    return {flag.id: flag.severity for flag in raised}


def effort_flags(records: Sequence[Record]) -> list[Flag]:
    return audit_effort(evidence(records))


def scale_flags(records: Sequence[Record]) -> list[Flag]:
    return audit_scales(evidence(records))


def rounding_flags(records: Sequence[Record]) -> list[Flag]:
    return audit_eight_bits(evidence(records))


@pytest.mark.parametrize(
    ("left", "severity"),
    [(0.0, None), (0.01, None), (0.03, "soft"), (0.05, "soft"), (0.06, "hard"), (0.4, "hard")],
)
def test_nothing_survives_an_unbounded_eps(left: float, severity: str | None) -> None:
    assert flags(at("1/5", 0.7), at("1", left)).get("D3") == severity


def test_d3_needs_gradient_attacks_in_linf_from_eps_1_on() -> None:
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


def test_accuracy_must_fall_while_eps_grows_fourfold() -> None:
    assert flags(at("1/10", 0.6), at("2/5", 0.57)) == {"D4": "hard"}
    assert flags(at("1/10", 0.6), at("3/10", 0.57)) == {}
    assert flags(at("1/10", 0.1), at("2/5", 0.08)) == {}, "what has fallen cannot fall on"


@pytest.mark.parametrize(
    ("after", "severity"),
    [
        (0.70, None),
        (0.695, None),
        (0.69, None),
        (0.68, None),
        (0.67, "hard"),
        (0.5, "hard"),
        (0.8, None),
    ],
)
def test_twice_the_steps_must_not_find_more(after: float, severity: str | None) -> None:
    """Two examples of a hundred lie within two standard errors of none; three do not."""
    n = 200
    pair = [
        record(cell(f"pgd[steps={steps}]"), stands(share, n))
        for steps, share in ((20, 0.7), (40, after))
    ]
    raised = {flag.id: flag.severity for flag in effort_flags(pair)}
    assert raised.get("D6") == severity or (
        severity is None and raised.get("D6") == "soft" and 0.005 < 0.7 - after <= 0.02
    )


def test_a_small_gain_beyond_chance_is_soft() -> None:
    pair = [
        record(cell(f"pgd[steps={steps}]"), stands(share, 1000))
        for steps, share in ((20, 0.7), (40, 0.69))
    ]
    assert [(flag.id, flag.severity) for flag in effort_flags(pair)] == [("D6", "soft")]


def test_steps_raise_d6_draws_raise_d14_and_nothing_else_counts() -> None:
    def gains(first: str, second: str) -> set[str]:
        return {
            flag.id
            for flag in effort_flags(
                [record(cell(first, **NOISY), [16] * 100), record(cell(second, **NOISY), [8] * 100)]
            )
        }

    assert gains("pgd-eot[eot=4]", "pgd-eot[eot=8]") == {"D14"}
    assert gains("pgd[restarts=1]", "pgd[restarts=2]") == {"D6"}
    assert gains("pgd[steps=20]", "pgd[steps=30]") == set()
    assert gains("pgd[loss=ce,steps=20]", "pgd[loss=dlr,steps=40]") == set()
    assert gains("pgd[steps=20]", "pgd-eot[steps=40]") == set()
    assert gains("pgd[steps=40]", "pgd[steps=20]") == set(), (
        "more steps that find less are no fault of these"
    )


def test_only_the_two_of_most_effort_count() -> None:
    row = [
        record(cell(f"pgd[steps={steps}]"), stands(share))
        for steps, share in ((10, 0.9), (40, 0.6), (20, 0.6), (30, 0.9))
    ]
    assert effort_flags(row) == [], "from 20 to 40 nothing is gained"
    assert [flag.id for flag in effort_flags(row[:2])] == ["D6"]


def scales(left: dict[str, float], attack: str = "pgd[loss=ce]", n: int = 200) -> list[Flag]:
    """The flags of one attack that leaves these shares, by its scale; empty is the default."""
    without_bracket = attack.rstrip("]")
    return scale_flags(
        [
            record(cell(f"{without_bracket},scale={scale}]" if scale else attack), stands(share, n))
            for scale, share in left.items()
        ]
    )


@pytest.mark.parametrize(
    ("after", "flagged"), [(0.9, False), (0.895, False), (0.885, False), (0.88, True), (0.0, True)]
)
def test_rescaled_logits_must_not_be_easier_to_attack(after: float, flagged: bool) -> None:
    """Of 200, three examples are within two standard errors of none, and four are not."""
    raised = scales({"": 0.9, "0.01": after})
    assert [(flag.id, flag.severity) for flag in raised] == [("D16", "soft")] * flagged
    if raised:
        assert (
            raised[0].message
            == f"pgd leaves 0.900 with scale=1, and {after:.3f} with scale=0.01: keep the strongest"
        )


def test_a_scale_counts_beyond_chance_and_half_a_point() -> None:
    assert scales({"": 0.7, "gap": 0.69}, n=1000)
    assert not scales({"": 0.7, "gap": 0.6951}, n=10000)


def test_the_strongest_scale_is_named() -> None:
    (flag,) = scales({"100": 0.95, "": 0.9, "0.01": 0.5, "gap": 0.2})
    assert "0.900 with scale=1" in flag.message
    assert "0.200 with scale=gap" in flag.message


def test_scales_that_find_less_or_differ_otherwise_raise_nothing() -> None:
    assert not scales({"": 0.5, "100": 0.9, "0.01": 0.6})
    assert not scales({"100": 0.9, "0.01": 0.1}), "nothing says what the logits as they are give"
    assert not scale_flags(
        [
            record(cell("pgd[loss=ce]"), stands(0.9)),
            record(cell("pgd[loss=margin,scale=0.01]"), stands(0.1)),
        ]
    )
    assert not scale_flags(
        [
            record(cell("pgd[loss=ce,steps=20]"), stands(0.9)),
            record(cell("pgd[loss=ce,scale=gap,steps=40]"), stands(0.1)),
        ]
    )
    assert not scale_flags(
        [record(cell("pgd"), stands(0.9)), record(cell("fgsm[scale=gap]"), stands(0.1))]
    )
    assert not scale_flags(
        [record(cell("toy-exact"), stands(0.9)), record(cell("toy-exact[scale=2]"), stands(0.1))]
    ), "a knob of that name, of another attack"


def test_a_stochastic_defence_is_rescaled_too() -> None:
    pair = [
        record(cell(attack, **NOISY), [count] * 100)
        for attack, count in (("pgd-eot[loss=ce]", 16), ("pgd-eot[loss=ce,scale=gap]", 8))
    ]
    (flag,) = scale_flags(pair)
    assert flag.message.startswith("pgd-eot leaves 1.000 with scale=1, and 0.500 with scale=gap")


@pytest.mark.parametrize(
    ("after", "n", "flagged"),
    [
        (0.5, 200, False),
        (0.52, 200, False),
        (0.52, 1000, False),
        (0.53, 200, True),
        (18 / 34, 34, False),
        (0.9, 20, True),
    ],
)
def test_what_falls_must_fall_in_8_bits(after: float, n: int, flagged: bool) -> None:
    """Over two points, and beyond two standard errors."""
    inner = cell("pgd[loss=ce,steps=20]")
    pair = [
        record(inner, stands(0.5, n)),
        record(cell(f"eight-bit[attack={inner.attack}]"), stands(after, n)),
    ]
    raised = rounding_flags(pair)
    assert [(flag.id, flag.severity) for flag in raised] == [("V8", "soft")] * flagged
    if raised:
        assert raised[0].message.startswith(
            f"pgd leaves 0.500, and {after:.3f} with its images in 8 bits"
        )
    assert rounding_flags(pair[::-1]) == raised


def test_v8_compares_only_the_attack_that_was_rounded() -> None:
    outer = record(cell("eight-bit[attack=pgd[loss=ce,steps=20]]"), stands(0.9))
    assert rounding_flags([record(cell("pgd[loss=ce,steps=20]"), stands(0.1)), outer])
    for other in (
        "pgd[loss=ce,steps=40]",
        "pgd[loss=margin,steps=20]",
        "pgd-eot[loss=ce,steps=20]",
        "fgsm",
    ):
        assert not rounding_flags([record(cell(other), stands(0.1)), outer])
    assert not rounding_flags(
        [record(cell("pgd[loss=ce,steps=20]"), stands(0.9)), record(outer.cell, stands(0.1))]
    ), "rounding may help, by luck"


def test_d16_and_v8_are_among_the_flags_of_a_row() -> None:
    row = [
        record(cell(name), stands(share))
        for name, share in (("pgd[loss=ce]", 0.5), ("pgd[loss=ce,scale=gap]", 0.2), ("none", 1.0))
    ]
    row.append(record(cell("eight-bit[attack=pgd[loss=ce]]"), stands(0.9)))
    assert {flag.id for flag in assess(evidence(row)).flags} == {"D16", "V8"}


def test_what_was_run_is_not_lacking() -> None:
    row = [record(cell(name), [1]) for name in ("none", "pgd[steps=20]", "pgd[steps=40]")]
    assert {"D3", "D6"} & set(missing_codes(evidence(row))) == {"D3"}
    whole = [record(cell("pgd[steps=20]", eps="1"), [0])]
    assert not {"D3", "D6"} & set(missing_codes(evidence(row, other_eps=whole)))


def test_a_leaderboard_sees_the_other_eps_of_its_norm() -> None:
    records = [
        record(cell(name, eps=eps), stands(share))
        for name, eps, share in (("none", "1/5", 0.9), ("pgd", "1/5", 0.7), ("pgd", "1", 0.4))
    ]
    boards = build_leaderboards(records, {}, {})
    assert [board.eps for board in boards] == ["1/5", "1"]
    for board in boards:
        assert {"D3"} <= {flag.id for flag in board.rows[0].flags}
