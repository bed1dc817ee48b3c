"""Each audit fires on records that show its fault, and is silent on those beside them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bench.questions.registry import ROOT
from bench.results.published import PublishedResult
from bench.results.record import Certificate, Cost, Env, Flag, Record
from bench.results.worst_case import worst_case
from bench.soundness.audits.records import MEANING, audit
from tests.fake_records import cell, record

NOISY = {"defence": "carso[classifier=own:digits-at]", "select": 8, "draws": 16}


def flags(*records: Record, published: PublishedResult | None = None) -> dict[str, str]:
    """Code -> severity."""
    found = audit(records, worst_case(records), published)
    assert all(flag.id in MEANING and flag.message for flag in found)
    return {flag.id: flag.severity for flag in found}


def stands(share: float, n: int = 100) -> list[int]:
    return [1] * round(share * n) + [0] * (n - round(share * n))


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
def test_an_attack_without_gradients_that_beats_those_with_them(
    attack: str, code: str, more: int, severity: str | None
) -> None:
    gradient = [record(cell("fgsm"), stands(0.7)), record(cell("pgd"), stands(0.6))]
    other = record(cell(attack), stands(0.6 - more / 100))
    assert flags(*gradient, other).get(code) == severity


def test_only_what_the_union_of_the_gradient_attacks_leaves_counts() -> None:
    first, second = [1] * 50 + [0] * 50, [0] * 50 + [1] * 50
    assert (
        flags(
            record(cell("pgd[loss=ce]"), first),
            record(cell("pgd[loss=margin]"), second),
            record(cell("square"), stands(0)),
        )
        == {}
    )


def test_autoattack_holds_a_square_attack_and_so_only_softens() -> None:
    pgd, square = record(cell("pgd"), stands(0.9)), record(cell("square"), stands(0.1))
    assert flags(pgd, record(cell("autoattack"), stands(0.1)), square)["D7"] == "soft"
    assert (
        flags(pgd, record(cell("eight-bit[attack=autoattack]"), stands(0.1)), square)["D7"]
        == "soft"
    )
    assert flags(pgd, record(cell("autoattack"), stands(0.8)), square)["D7"] == "hard"


def test_black_box_attacks_without_any_gradient_attack_beside_them_are_not_judged() -> None:
    assert flags(record(cell("none"), stands(0.9)), record(cell("square"), stands(0.1))) == {}


def test_a_random_defence_is_beaten_only_where_the_draws_are_clear_of_each_other() -> None:
    pgd = record(cell("pgd", **NOISY), [12] * 100)
    assert (
        flags(pgd, record(cell("square", **NOISY), [7] * 100)) == {}
    )  # 0.75 and 0.44 of 16 draws: within two standard errors
    assert flags(pgd, record(cell("square", **NOISY), [6] * 5 + [12] * 95)) == {"D7": "hard"}
    assert (
        flags(record(cell("pgd", **NOISY), [16] * 100), record(cell("square", **NOISY), [10] * 100))
        == {}
    )  # it still stands more often than not


def test_fgsm_beats_pgd() -> None:
    assert flags(record(cell("fgsm"), stands(0.0)), record(cell("pgd"), stands(0.68))) == {
        "D5": "hard"
    }
    assert flags(record(cell("fgsm"), stands(0.68)), record(cell("pgd"), stands(0.0))) == {}


@pytest.mark.parametrize(
    ("count", "severity"), [(0, None), (1, "soft"), (39, "soft"), (40, "hard")]
)
def test_gradients_that_are_not_finite(count: int, severity: str | None) -> None:
    cost = Cost(backwards=4000, nonfinite=count)
    assert flags(record(cell("pgd"), stands(0.6), cost=cost)).get("D2") == severity
    # The gradients of another model, in a transfer attack, say nothing of this one.
    assert flags(record(cell("transfer[source=own:x]"), stands(0.6), cost=cost)) == {}


def test_zero_gradients_that_the_fallen_examples_can_account_for_are_no_flag() -> None:
    def met(share: float, zero: float) -> dict[str, str]:
        return flags(
            record(cell("pgd"), stands(share), cost=Cost(backwards=1000, zero=round(zero * 1000)))
        )

    assert met(0.97, 0.97) == {"D1": "hard"}
    assert met(0.5, 0.5) == {}
    assert met(0.5, 0.6) == {
        "D1": "hard"
    }  # at least (0.6 - 0.5) / 0.5 = 20% of those of the standing ones
    assert met(0.0, 1.0) == {}


def test_zero_gradients_under_one_loss_of_two_are_soft() -> None:
    saturated = record(cell("pgd[loss=ce]"), stands(0.97), cost=Cost(backwards=100, zero=97))
    alive = record(cell("pgd[loss=margin]"), stands(0.5), cost=Cost(backwards=100, zero=1))
    assert flags(saturated, alive) == {"D1": "soft"}


def test_zeros_that_the_cross_entropy_can_account_for_are_not_hard() -> None:
    def met(attack: str, zero: int) -> dict[str, str]:
        return flags(record(cell(attack), stands(1.0), cost=Cost(backwards=100, zero=zero)))

    assert met("pgd[loss=ce]", 100) == {"D1": "soft"}
    assert met("pgd[loss=ce+margin]", 50) == {"D1": "soft"}
    assert met("pgd[loss=ce+margin]", 60) == {
        "D1": "hard"
    }  # at least (0.6 - 0.5) / 0.5 = 20% of the margin's
    for attack in (
        "pgd[loss=ce+targeted]",
        "apgd[loss=ce+targeted]",
    ):  # nine of ten runs are targeted, whether the question names their number or not
        assert met(attack, 18) == {"D1": "soft"}
        assert met(attack, 20) == {"D1": "hard"}
    assert met("pgd[loss=ce+targeted,targets=1]", 54) == {"D1": "soft"}
    assert met("autoattack", 54) == {"D1": "soft"}
    assert met("autoattack", 56) == {"D1": "hard"}


def test_an_attack_that_runs_another_is_judged_by_that_one() -> None:
    def met(attack: str, **how: object) -> dict[str, str]:
        return flags(record(cell(attack), stands(1.0), **how))

    assert met("eight-bit[attack=pgd[loss=ce]]", cost=Cost(backwards=100, zero=100)) == {
        "D1": "soft"
    }
    assert met("eight-bit[attack=pgd[loss=margin]]", cost=Cost(backwards=100, zero=100)) == {
        "D1": "hard"
    }
    assert met("eight-bit[attack=autoattack]", distance=[0.0] * 100) == {}
    assert met("eight-bit[attack=pgd]", distance=[0.0] * 100) == {"D10": "hard"}


@pytest.mark.parametrize(
    ("scale", "severity"),
    [("100", None), ("1.5", None), ("1", "soft"), ("0.01", "soft"), ("gap", "soft")],
)
def test_gradients_that_the_attack_itself_made_vanish_are_no_flag(
    scale: str, severity: str | None
) -> None:
    def met(attack: str) -> str | None:
        return flags(record(cell(attack), stands(1.0), cost=Cost(backwards=100, zero=100))).get(
            "D1"
        )

    assert met("toy-exact[loss=ce,scale=big]") == "soft", "a knob of that name, of another attack"
    assert (
        met(f"pgd[loss=ce,scale={scale}]")
        == met(f"eight-bit[attack=pgd[loss=ce,scale={scale}]]")
        == severity
    )


def test_an_attack_that_leaves_the_standing_images_where_they_are() -> None:
    held = stands(0.6)
    still = [0.0] * 4 + [0.2] * 96
    assert flags(record(cell("pgd"), held, distance=[0.0] * 3 + [0.2] * 97)) == {}  # 3 of 60: 5%
    assert flags(record(cell("pgd"), held, distance=still)) == {"D10": "hard"}
    assert (
        flags(record(cell("pgd"), held, distance=[0.2] * 60 + [0.0] * 40)) == {}
    )  # those fell as they were
    assert (
        flags(record(cell("pgd"), held, distance=still), record(cell("fgsm"), held)) == {}
    )  # another one moved them
    assert (
        flags(record(cell("autoattack"), held, distance=[0.0] * 100)) == {}
    )  # returns the clean image where it fails
    assert flags(record(cell("square"), held, distance=[0.0] * 100)) == {}
    assert flags(record(cell("pgd", eps="0"), held, distance=[0.0] * 100)) == {}


def test_proposals_that_are_not_finite_or_lie_outside() -> None:
    assert flags(record(cell("pgd"), stands(0.6), strayed=[-1.0] + [0.0] * 99)) == {"V1": "hard"}
    assert flags(record(cell("pgd"), stands(0.6, 2000), strayed=[-1.0] + [0.0] * 1999)) == {
        "V1": "soft"
    }
    assert flags(record(cell("pgd"), stands(0.6), strayed=[0.1] + [0.0] * 99)) == {"V3": "soft"}
    assert flags(record(cell("boundary"), stands(0.6), strayed=[0.1] * 100)) == {}


def test_answers_of_a_deterministic_defence_that_change() -> None:
    assert flags(record(cell("pgd"), [1] * 99 + [0], selected=[1] * 100)) == {"P1": "hard"}
    assert flags(record(cell("pgd"), [1] * 999 + [0], selected=[1] * 1000)) == {"P1": "soft"}
    assert flags(record(cell("pgd", **NOISY), [16] * 99 + [0], selected=[8] * 100)) == {}


def test_robust_above_clean_accuracy_and_the_gap_between_the_draws() -> None:
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


def test_one_name_with_two_weights_files() -> None:
    def used(digest: str) -> Env:
        return Env(weights=(("robustbench:X", digest),))

    assert flags(
        record(cell("pgd"), [1], env=used("a")), record(cell("square"), [1], env=used("b"))
    ) == {"E1": "hard"}
    assert (
        flags(record(cell("pgd"), [1], env=used("a")), record(cell("square"), [1], env=used("a")))
        == {}
    )


def test_against_the_published_figures() -> None:
    claim = PublishedResult(
        "digits", "linf", Fraction(1, 5), "at", "own:digits-at", "AutoAttack", 0.95, 0.6, "a source"
    )

    def met(clean: float, robust: float) -> dict[str, str]:
        return flags(
            record(cell("none"), stands(clean)),
            record(cell("pgd"), stands(robust)),
            published=claim,
        )

    assert met(0.95, 0.6) == {}
    assert met(0.8, 0.6) == {"G1": "soft"}
    assert met(0.95, 0.75) == {"G2": "soft"}


def test_the_probes_of_every_cell_are_one_flag_the_hardest() -> None:
    found = [("none", "soft", "2%"), ("pgd", "hard", "41%"), ("square", "soft", "1%")]
    rows = [
        record(cell(name), [1], flags=[Flag("D2", severity, message)])
        for name, severity, message in found
    ]
    assert audit(rows, None) == [Flag("D2", "hard", "41%")]


@pytest.mark.parametrize(
    ("fallen", "norm", "flagged"),
    [(0, "l2", False), (1, "l2", False), (3, "l2", True), (3, "linf", False)],
)
def test_what_is_certified_cannot_fall(fallen: int, norm: str, flagged: bool) -> None:
    """Ten examples are certified beyond 1/4; one of a hundred may fall by the bad luck that alpha allows, three may not."""
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


def test_the_page_explains_every_code() -> None:
    text = (ROOT / "docs" / "soundness.md").read_text()
    ranges = {"G1", "G2", "G3"}
    assert {code for code in MEANING if code not in text} <= ranges
    assert "G1 to G3" in text
