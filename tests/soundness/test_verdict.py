"""The rules of the verdict, one by one."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from bench.results.published import PublishedResult
from bench.results.record import Flag, Routes
from bench.results.statistics import Estimate, estimate
from bench.soundness.verdict import decide_verdict, missing_codes, ranges, spelt
from tests.fake_records import cell, record

CLAIM = PublishedResult(
    "cifar10",
    "linf",
    Fraction(8, 255),
    "at",
    "robustbench:X",
    "AutoAttack",
    0.92,
    0.677,
    "a source",
)
SOFT, HARD = Flag("V3", "soft", "strayed"), Flag("D2", "hard", "NaN")


def at(share: float, n: int = 100) -> Estimate:
    return estimate([1] * round(share * n) + [0] * (n - round(share * n)), 1)


def test_sound_needs_everything() -> None:
    assert decide_verdict([], [], [], at(0.5), "pgd", None) == ("sound", ())
    assert decide_verdict([SOFT, SOFT], [], [], at(0.5), "pgd", None)[0] == "sound"
    assert decide_verdict([], ["spsa failed: x"], [], at(0.5), "pgd", None) == (
        "incomplete",
        ("spsa failed: x",),
    )
    assert decide_verdict([], [], ["A2", "D3"], at(0.5), "pgd", None) == (
        "incomplete",
        ("not run: A2, D3",),
    )
    assert decide_verdict([], [], [], None, "", None)[0] == "incomplete"


def test_one_hard_flag_or_three_soft_ones_are_suspicious() -> None:
    assert decide_verdict([HARD], ["x failed"], ["D3"], at(0.5), "pgd", None) == (
        "suspicious",
        ("D2 hard: NaN", "x failed", "not run: D3"),
    )
    assert decide_verdict([SOFT] * 3, [], [], at(0.5), "pgd", None)[0] == "suspicious"
    assert decide_verdict([SOFT] * 2, [], ["D3"], at(0.5), "pgd", None)[0] == "incomplete"


def test_what_no_attack_finds_though_it_was_planted_keeps_a_row_from_sound() -> None:
    assert (
        decide_verdict([Flag("D17", "soft", "pgd finds 90%")], [], [], at(0.5), "pgd", None)[0]
        == "incomplete"
    )


@pytest.mark.parametrize(
    ("robust", "n", "verdict"),
    [
        (0.5, 100, "broken"),
        (0.6, 100, "sound"),
        (0.65, 10_000, "sound"),
        (0.64, 10_000, "broken"),
        (0.9, 100, "sound"),
    ],
)
def test_a_claim_is_broken_outside_of_the_interval_and_by_three_points(
    robust: float, n: int, verdict: str
) -> None:
    assert decide_verdict([], [], [], at(robust, n), "pgd", CLAIM)[0] == verdict


def test_broken_names_the_attack_and_outranks_flags() -> None:
    verdict, reasons = decide_verdict([HARD], [], [], at(0.5), "square", CLAIM)
    assert verdict == "broken"
    assert reasons[0].startswith(
        "by square: published 0.677 (AutoAttack), here 0.500 [0.404, 0.596]"
    )


def test_a_model_that_is_not_the_published_one_breaks_no_claim() -> None:
    assert (
        decide_verdict([Flag("G1", "soft", "clean differs")], [], [], at(0.1), "pgd", CLAIM)[0]
        == "sound"
    )


def test_what_a_row_lacks_is_read_from_its_records() -> None:
    bare = [
        record(cell(name), [1])
        for name in ("none", "fgsm", "pgd", "square", "transfer[source=own:x]", "noise")
    ]
    assert missing_codes(bare) == ("D3", "D6", "D12", "D18")
    assert missing_codes(bare[:2]) == ("D3", "D5", "D6", "D7", "D8", "D9", "D12", "D18")
    assert missing_codes(bare[:1])[0] == "A1"
    assert missing_codes([]) == ()
    noisy = {"defence": "carso[classifier=own:x@1a2b3c4d,samples=8]", "select": 2, "draws": 4}
    carso = [
        record(cell(name, **noisy), [4])
        for name in ("none", "fgsm", "pgd", "square", "transfer[source=own:x@1a2b3c4d]", "noise")
    ]
    assert missing_codes(carso) == (
        "A3",
        "A4",
        "A5",
        "A6",
        "A7",
        "D3",
        "D6",
        "D12",
        "D14",
        "D15",
        "D18",
    )
    assert missing_codes(carso[:4])[0] == "A2"


def test_the_adaptive_attack_stands_for_the_ways_around_where_it_had_the_bare_classifier() -> None:
    noisy = {"defence": "carso[classifier=own:x@1a2b3c4d,samples=8]", "select": 2, "draws": 4}
    rest = [
        record(cell(name, **noisy), [4])
        for name in ("none", "fgsm", "pgd", "square", "transfer[source=own:y]", "noise")
    ]
    tried = record(cell("adaptive", **noisy), [4])
    assert "A2" in missing_codes([*rest, tried])
    without, having = (
        replace(tried, routes=Routes(names, (0,)))
        for names in (("warm", "full"), ("lse", "classifier", "full"))
    )
    assert missing_codes([*rest, without])[:6] == ("A2", "A3", "A4", "A5", "A6", "A7")
    assert missing_codes([*rest, having]) == ("D3", "D6", "D12", "D14", "D15", "D18")
    single = replace(
        record(cell("adaptive[only=classifier]", **noisy), [4]),
        routes=Routes(("classifier",), (0,)),
    )
    assert "A3" in missing_codes([*rest, single]), "one way alone is not the ensemble"


def test_a_defence_that_optimises_asks_for_gradients_through_its_steps_and_past_them() -> None:
    tried = record(cell("adaptive", defence="anti-adversary[classifier=own:x,steps=2]"), [1])
    assert not {"A8", "A9"} & set(
        missing_codes([replace(tried, routes=Routes(("classifier", "full"), (0,)))])
    )
    for names, missing in (
        (("classifier", "full"), {"A9"}),
        (("classifier", "identity"), {"A8"}),
        (("classifier", "identity+lse", "full"), set()),
    ):
        seen = replace(tried, routes=Routes(names, (0,)), checks=(("P14", 1.0),))
        assert {"A8", "A9"} & set(missing_codes([seen])) == missing


def test_ranges_are_short_and_can_be_spelt_out() -> None:
    codes = ("A2", "A3", "A4", "A5", "D3", "D5", "D6", "D12")
    assert ranges(codes) == "A2-A5, D3, D5, D6, D12"
    assert spelt(ranges(codes)).replace(",", "").split() == list(codes)
