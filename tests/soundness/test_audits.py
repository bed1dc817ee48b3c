"""Each audit raises its flag on records that show its fault, and on no others."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bench.results.published import PublishedResult
from bench.results.record import Certificate, Cost, Env, Flag, Record
from bench.soundness.assess import assess
from bench.soundness.codes import code_questions
from tests.fake_records import cell, evidence, record, stands

NOISY = {"defence": "carso[classifier=own:digits-at]", "select": 8, "draws": 16}


def flags(*records: Record, published: PublishedResult | None = None) -> dict[str, str]:
    """Code -> severity."""
    raised = assess(evidence(records, published=published)).flags
    assert all(flag.id in code_questions() and flag.message for flag in raised)
    return {flag.id: flag.severity for flag in raised}


def test_an_honest_row_raises_nothing() -> None:
    cost = Cost(forwards=4000, backwards=4000, zero=300)
    row = [
        record(cell("none"), stands(0.96)),
        record(cell("fgsm"), stands(0.7)),
        record(cell("pgd"), stands(0.6), cost=cost),
    ]
    row += [
        record(cell(attack), stands(share))
        for attack, share in (("square", 0.65), ("transfer[source=own:x]", 0.8), ("noise", 0.95))
    ]
    assert flags(*row) == {}


@pytest.mark.parametrize(
    ("attack", "code"),
    [("square", "D7"), ("boundary", "D7"), ("transfer[source=own:x]", "D8"), ("noise", "D9")],
)
@pytest.mark.parametrize(("more", "severity"), [(1, None), (2, "soft"), (3, "soft"), (4, "hard")])
def test_an_attack_without_gradients_must_not_beat_gradients(
    attack: str, code: str, more: int, severity: str | None
) -> None:
    gradient = [record(cell("fgsm"), stands(0.7)), record(cell("pgd"), stands(0.6))]
    other = record(cell(attack), stands(0.6 - more / 100))
    assert flags(*gradient, other).get(code) == severity


def test_gradient_attacks_are_compared_as_a_union() -> None:
    first, second = [1] * 50 + [0] * 50, [0] * 50 + [1] * 50
    assert (
        flags(
            record(cell("pgd[loss=ce]"), first),
            record(cell("pgd[loss=margin]"), second),
            record(cell("square"), stands(0)),
        )
        == {}
    )


def test_the_square_attack_inside_autoattack_softens_d7() -> None:
    pgd, square = record(cell("pgd"), stands(0.9)), record(cell("square"), stands(0.1))
    assert flags(pgd, record(cell("autoattack"), stands(0.1)), square)["D7"] == "soft"
    assert (
        flags(pgd, record(cell("eight-bit[attack=autoattack]"), stands(0.1)), square)["D7"]
        == "soft"
    )
    assert flags(pgd, record(cell("autoattack"), stands(0.8)), square)["D7"] == "hard"


def test_black_box_attacks_alone_raise_nothing() -> None:
    assert flags(record(cell("none"), stands(0.9)), record(cell("square"), stands(0.1))) == {}


def test_a_random_defence_is_beaten_only_beyond_the_noise_of_draws() -> None:
    pgd = record(cell("pgd", **NOISY), [12] * 100)
    assert (
        flags(pgd, record(cell("square", **NOISY), [7] * 100)) == {}
    )  # 0.75 and 0.44 of 16 draws: within two standard errors
    assert flags(pgd, record(cell("square", **NOISY), [6] * 5 + [12] * 95)) == {"D7": "hard"}
    assert (
        flags(record(cell("pgd", **NOISY), [16] * 100), record(cell("square", **NOISY), [10] * 100))
        == {}
    )  # it still stands more often than not


def test_fgsm_must_not_beat_pgd() -> None:
    assert flags(record(cell("fgsm"), stands(0.0)), record(cell("pgd"), stands(0.68))) == {
        "D5": "hard"
    }
    assert flags(record(cell("fgsm"), stands(0.68)), record(cell("pgd"), stands(0.0))) == {}


@pytest.mark.parametrize(
    ("count", "severity"), [(0, None), (1, "soft"), (39, "soft"), (40, "hard")]
)
def test_nonfinite_gradients_raise_d2(count: int, severity: str | None) -> None:
    cost = Cost(backwards=4000, nonfinite=count)
    assert flags(record(cell("pgd"), stands(0.6), cost=cost)).get("D2") == severity
    # The gradients of another model, in a transfer attack, say nothing of this one.
    assert flags(record(cell("transfer[source=own:x]"), stands(0.6), cost=cost)) == {}


def test_zero_gradients_of_fallen_examples_do_not_raise_d1() -> None:
    def flags_under(share: float, zero: float) -> dict[str, str]:
        return flags(
            record(cell("pgd"), stands(share), cost=Cost(backwards=1000, zero=round(zero * 1000)))
        )

    assert flags_under(0.97, 0.97) == {"D1": "hard"}
    assert flags_under(0.5, 0.5) == {}
    assert flags_under(0.5, 0.6) == {
        "D1": "hard"
    }  # at least (0.6 - 0.5) / 0.5 = 20% of those of the standing ones
    assert flags_under(0.0, 1.0) == {}


def test_zero_gradients_under_one_loss_of_two_are_soft() -> None:
    saturated = record(cell("pgd[loss=ce]"), stands(0.97), cost=Cost(backwards=100, zero=97))
    alive = record(cell("pgd[loss=margin]"), stands(0.5), cost=Cost(backwards=100, zero=1))
    assert flags(saturated, alive) == {"D1": "soft"}


def test_zero_gradients_of_the_cross_entropy_are_soft() -> None:
    def flags_under(attack: str, zero: int) -> dict[str, str]:
        return flags(record(cell(attack), stands(1.0), cost=Cost(backwards=100, zero=zero)))

    assert flags_under("pgd[loss=ce]", 100) == {"D1": "soft"}
    assert flags_under("pgd[loss=ce+margin]", 50) == {"D1": "soft"}
    assert flags_under("pgd[loss=ce+margin]", 60) == {
        "D1": "hard"
    }  # at least (0.6 - 0.5) / 0.5 = 20% of the margin's
    for attack in (
        "pgd[loss=ce+targeted]",
        "apgd[loss=ce+targeted]",
    ):  # nine of ten runs are targeted, whether the question names their number or not
        assert flags_under(attack, 18) == {"D1": "soft"}
        assert flags_under(attack, 20) == {"D1": "hard"}
    assert flags_under("pgd[loss=ce+targeted,targets=1]", 54) == {"D1": "soft"}
    assert flags_under("autoattack", 54) == {"D1": "soft"}
    assert flags_under("autoattack", 56) == {"D1": "hard"}


def test_an_attack_that_runs_another_is_judged_by_that_one() -> None:
    def flags_under(attack: str, **how: object) -> dict[str, str]:
        return flags(record(cell(attack), stands(1.0), **how))

    assert flags_under("eight-bit[attack=pgd[loss=ce]]", cost=Cost(backwards=100, zero=100)) == {
        "D1": "soft"
    }
    assert flags_under(
        "eight-bit[attack=pgd[loss=margin]]", cost=Cost(backwards=100, zero=100)
    ) == {"D1": "hard"}
    assert flags_under("eight-bit[attack=autoattack]", distance=[0.0] * 100) == {}
    assert flags_under("eight-bit[attack=pgd]", distance=[0.0] * 100) == {"D10": "hard"}


@pytest.mark.parametrize(
    ("scale", "severity"),
    [("100", None), ("1.5", None), ("1", "soft"), ("0.01", "soft"), ("gap", "soft")],
)
def test_gradients_that_the_attack_makes_vanish_raise_nothing(
    scale: str, severity: str | None
) -> None:
    def flags_under(attack: str) -> str | None:
        return flags(record(cell(attack), stands(1.0), cost=Cost(backwards=100, zero=100))).get(
            "D1"
        )

    assert flags_under("toy-exact[loss=ce,scale=big]") == "soft", (
        "a knob of that name, of another attack"
    )
    assert (
        flags_under(f"pgd[loss=ce,scale={scale}]")
        == flags_under(f"eight-bit[attack=pgd[loss=ce,scale={scale}]]")
        == severity
    )


def test_surviving_images_that_do_not_move_raise_d10() -> None:
    surviving = stands(0.6)
    still = [0.0] * 4 + [0.2] * 96
    assert (
        flags(record(cell("pgd"), surviving, distance=[0.0] * 3 + [0.2] * 97)) == {}
    )  # 3 of 60: 5%
    assert flags(record(cell("pgd"), surviving, distance=still)) == {"D10": "hard"}
    assert (
        flags(record(cell("pgd"), surviving, distance=[0.2] * 60 + [0.0] * 40)) == {}
    )  # those fell as they were
    assert (
        flags(record(cell("pgd"), surviving, distance=still), record(cell("fgsm"), surviving)) == {}
    )  # another one moved them
    assert (
        flags(record(cell("autoattack"), surviving, distance=[0.0] * 100)) == {}
    )  # returns the clean image where it fails
    assert flags(record(cell("square"), surviving, distance=[0.0] * 100)) == {}
    assert flags(record(cell("pgd", eps="0"), surviving, distance=[0.0] * 100)) == {}


def test_proposals_that_are_not_finite_or_lie_outside() -> None:
    assert flags(record(cell("pgd"), stands(0.6), strayed=[-1.0] + [0.0] * 99)) == {"V1": "hard"}
    assert flags(record(cell("pgd"), stands(0.6, 2000), strayed=[-1.0] + [0.0] * 1999)) == {
        "V1": "soft"
    }
    assert flags(record(cell("pgd"), stands(0.6), strayed=[0.1] + [0.0] * 99)) == {"V3": "soft"}
    assert flags(record(cell("boundary"), stands(0.6), strayed=[0.1] * 100)) == {}


def test_changing_answers_of_a_deterministic_defence_raise_p1() -> None:
    assert flags(record(cell("pgd"), [1] * 99 + [0], selected=[1] * 100)) == {"P1": "hard"}
    assert flags(record(cell("pgd"), [1] * 999 + [0], selected=[1] * 1000)) == {"P1": "soft"}
    assert flags(record(cell("pgd", **NOISY), [16] * 99 + [0], selected=[8] * 100)) == {}


def test_robust_above_clean_accuracy_and_disagreeing_draws() -> None:
    none, pgd = cell("none", **NOISY), cell("pgd", **NOISY)
    assert flags(
        record(none, [8] * 100, selected=[8] * 100), record(pgd, [11, 13] * 50, selected=[6] * 100)
    ) == {"W1": "soft"}
    # One draw in 16 more on average, between examples that differ by ten: no more than chance.
    assert (
        flags(
            record(none, [8] * 100),
            record(pgd, [13, 4] * 49 + [13, 6], selected=[4] * 100, margin=[1] * 100),
        )
        == {}
    )
    assert flags(record(none, [16] * 100), record(pgd, [8] * 100, selected=[3] * 100)) == {
        "W2": "soft"
    }
    assert flags(record(none, [16] * 100), record(pgd, [8] * 100, selected=[4] * 100)) == {}


def test_one_name_with_two_weights_files_raises_e1() -> None:
    def used(digest: str) -> Env:
        return Env(weights=(("robustbench:X", digest),))

    assert flags(
        record(cell("pgd"), [1], env=used("a")), record(cell("square"), [1], env=used("b"))
    ) == {"E1": "hard"}
    assert (
        flags(record(cell("pgd"), [1], env=used("a")), record(cell("square"), [1], env=used("a")))
        == {}
    )


def test_figures_far_from_the_published_ones() -> None:
    claim = PublishedResult(
        "digits", "linf", Fraction(1, 5), "at", "own:digits-at", "AutoAttack", 0.95, 0.6, "a source"
    )

    def flags_under(clean: float, robust: float) -> dict[str, str]:
        return flags(
            record(cell("none"), stands(clean)),
            record(cell("pgd"), stands(robust)),
            published=claim,
        )

    assert flags_under(0.95, 0.6) == {}
    assert flags_under(0.8, 0.6) == {"G1": "soft"}
    assert flags_under(0.95, 0.75) == {"G2": "soft"}


def test_of_one_code_the_hardest_flag_is_kept() -> None:
    raised = [("none", "soft", "2%"), ("pgd", "hard", "41%"), ("square", "soft", "1%")]
    rows = [
        record(cell(name), [1], flags=[Flag("D2", severity, message)])
        for name, severity, message in raised
    ]
    assert assess(evidence(rows)).flags == (Flag("D2", "hard", "41%"),)


@pytest.mark.parametrize(
    ("fallen", "norm", "flagged"),
    [(0, "l2", False), (1, "l2", False), (3, "l2", True), (3, "linf", False)],
)
def test_what_is_certified_cannot_fall(fallen: int, norm: str, flagged: bool) -> None:
    """Ten of a hundred are certified beyond 1/4; alpha allows one of them to fall, not three."""
    smooth = {
        "defence": "smoothing[classifier=own:x]",
        "select": 8,
        "draws": 16,
        "norm": norm,
        "eps": "1/4",
    }
    proof = Certificate((0.3,) * 10 + (0.25,) * 90, (("alpha", 0.001), ("n", 1000.0)))
    none = record(cell("none", **smooth), [16] * 100, certificate=proof)
    attacked = record(
        cell("pgd", **smooth),
        [0] * fallen + [16] * (10 - fallen) + [0] * 90,
        selected=[0] * fallen + [8] * (10 - fallen) + [0] * 90,
    )
    assert ("W3" in flags(none, attacked)) == flagged
