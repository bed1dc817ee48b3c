"""Figures: which points make which lines, and the same bytes each time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from bench.report import build_leaderboards
from bench.report.figures import collect_curves, draw_bars, draw_curves
from bench.results.leaderboard import Leaderboard
from tests.fake_records import cell, record


def boards(**shares: dict[str, int]) -> list[Leaderboard]:
    """By defence, how many of four examples stand at which eps."""
    records = [
        record(cell(attack, f"{name}[classifier=own:digits-at]", eps=eps), [1] * k + [0] * (4 - k))
        for name, points in shares.items()
        for eps, count in points.items()
        for attack, k in (("none", 4), ("pgd", count))
    ]
    return build_leaderboards(records, {}, {})


def test_a_curve_needs_three_eps_and_sorts_them() -> None:
    curves = collect_curves(boards(at={"1/5": 2, "1/20": 4, "1/10": 3}, jpeg={"1/5": 0, "1/10": 1}))
    assert list(curves) == ["at"]
    assert [(eps, row.robust.mean) for eps, row in curves["at"] if row.robust] == [
        (Fraction(1, 20), 1.0),
        (Fraction(1, 10), 0.75),
        (Fraction(1, 5), 0.5),
    ]


def test_a_figure_without_a_curve_is_not_drawn(tmp_path: Path) -> None:
    assert draw_curves(boards(at={"1/5": 2, "1/10": 3}), tmp_path) == []


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    three_eps = boards(at={"1/5": 2, "1/20": 4, "1/10": 3})
    (path,) = draw_curves(three_eps, tmp_path)
    assert path == tmp_path / "digits-linf-curve.png"
    first = path.read_bytes()
    draw_curves(three_eps, tmp_path)
    assert path.read_bytes() == first


def test_a_leaderboard_without_an_attack_has_no_bars(tmp_path: Path) -> None:
    assert draw_bars(build_leaderboards([record(cell("none"), [1, 1])], {}, {}), tmp_path) == []
    (path,) = draw_bars(boards(at={"1/5": 2}), tmp_path)
    assert path == tmp_path / "digits-linf-1_5.png"
    assert path.read_bytes().startswith(b"\x89PNG")
