"""The rules of the verdict, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from bench.results.published import PublishedResult
from bench.results.record import Flag, Record, Routes
from bench.results.worst_case import WorstCase
from bench.soundness import verdict
from bench.soundness.verdict import expand_ranges, join_ranges
from tests.fake_records import cell, evidence, record, stands

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


def decide(
    flags: Sequence[Flag] = (),
    missing: Sequence[str] = (),
    lacking: Sequence[str] = (),
    robust: float | None = 0.5,
    n: int = 100,
    **known: Any,
) -> tuple[str, tuple[str, ...]]:
    """The verdict on a row whose worst case leaves `robust` of `n` examples."""
    worst = None
    if robust is not None:
        correct = tuple(stands(robust, n))
        worst = WorstCase((0,) * n, correct, correct, draws=1, select=1)
    row = evidence([], worst=worst, missing=missing, **known)
    return verdict.decide_verdict(row, flags, lacking)


def missing_codes(records: Sequence[Record], controls: Sequence[Record] = ()) -> tuple[str, ...]:
    return verdict.missing_codes(evidence(records, controls=controls))


def test_sound_needs_everything() -> None:
    assert decide() == ("sound", ())
    assert decide([SOFT, SOFT])[0] == "sound"
    assert decide(missing=["spsa failed: x"]) == ("incomplete", ("spsa failed: x",))
    assert decide(lacking=["A2", "D3"]) == ("incomplete", ("not run: A2, D3",))
    assert decide(robust=None)[0] == "incomplete"


def test_one_hard_flag_or_three_soft_ones_are_suspicious() -> None:
    assert decide([HARD], ["x failed"], ["D3"]) == (
        "suspicious",
        ("D2 hard: NaN", "x failed", "not run: D3"),
    )
    assert decide([SOFT] * 3)[0] == "suspicious"
    assert decide([SOFT] * 2, lacking=["D3"])[0] == "incomplete"


def test_planted_examples_that_no_attack_finds_keep_a_row_from_sound() -> None:
    assert decide([Flag("D17", "soft", "pgd finds 90%")])[0] == "incomplete"


@pytest.mark.parametrize(
    ("robust", "n", "expected"),
    [
        (0.5, 100, "broken"),
        (0.6, 100, "sound"),
        (0.65, 10_000, "sound"),
        (0.64, 10_000, "broken"),
        (0.9, 100, "sound"),
    ],
)
def test_a_claim_is_broken_beyond_the_interval_and_three_points(
    robust: float, n: int, expected: str
) -> None:
    assert decide(robust=robust, n=n, published=CLAIM)[0] == expected


def test_broken_names_the_attack_and_outranks_flags() -> None:
    word, reasons = decide([HARD], strongest_attack="square", published=CLAIM)
    assert word == "broken"
    assert reasons[0].startswith(
        "by square: published 0.677 (AutoAttack), here 0.500 [0.404, 0.596]"
    )


def test_a_model_that_is_not_the_published_one_breaks_no_claim() -> None:
    flags = [Flag("G1", "soft", "clean differs")]
    assert decide(flags, robust=0.1, published=CLAIM)[0] == "sound"


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


def test_the_adaptive_attack_needs_the_bare_classifier_as_a_way() -> None:
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


def test_an_optimising_defence_asks_for_a8_and_a9() -> None:
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


def test_ranges_are_joined_and_expanded() -> None:
    codes = ("A2", "A3", "A4", "A5", "D3", "D5", "D6", "D12")
    assert join_ranges(codes) == "A2-A5, D3, D5, D6, D12"
    assert expand_ranges(join_ranges(codes)).replace(",", "").split() == list(codes)
