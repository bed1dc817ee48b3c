"""Security curves: which points make which lines."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from bench.report import build_leaderboards
from bench.report.figures import collect_curves, draw_curves
from tests.fake_records import cell, record


def boards(**shares: dict[str, int]) -> list:
    """By defence, how many of four examples stand at which eps."""
    records = [
        record(cell(attack, f"{name}[classifier=own:digits-at]", eps=eps), [1] * k + [0] * (4 - k))
        for name, points in shares.items()
        for eps, count in points.items()
        for attack, k in (("none", 4), ("pgd", count))
    ]
    return build_leaderboards(records, {}, {})


def test_a_line_needs_three_eps_and_goes_by_their_size() -> None:
    found = collect_curves(boards(at={"1/5": 2, "1/20": 4, "1/10": 3}, jpeg={"1/5": 0, "1/10": 1}))
    assert list(found) == ["at"]
    assert [(eps, row.robust.mean) for eps, row in found["at"]] == [
        (Fraction(1, 20), 1.0),
        (Fraction(1, 10), 0.75),
        (Fraction(1, 5), 0.5),
    ]


def test_it_is_drawn_only_where_there_is_one_and_always_the_same(tmp_path: Path) -> None:
    assert draw_curves(boards(at={"1/5": 2, "1/10": 3}), tmp_path) == []
    three = boards(at={"1/5": 2, "1/20": 4, "1/10": 3})
    (path,) = draw_curves(three, tmp_path)
    assert path == tmp_path / "digits-linf-curve.png"
    first = path.read_bytes()
    draw_curves(three, tmp_path)
    assert path.read_bytes() == first
