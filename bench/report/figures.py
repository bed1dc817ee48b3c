"""The figures of the README. matplotlib is imported only where one is drawn.

The same records give the same bytes.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.files import write_bytes
from bench.questions.spec import Spec
from bench.results.leaderboard import Leaderboard, Row
from bench.results.statistics import Estimate

CLEAN = "#2b6cb0"
ROBUST = "#b3261e"
TICK = "#8a949d"
GRID = "#e3e6e9"
CURVE_EPS = 3  # the fewest eps that make a curve

Curve = list[tuple[Fraction, Row]]


def draw_figures(boards: Sequence[Leaderboard], folder: Path) -> list[Path]:
    """Draw the bars of every leaderboard and the curves over eps; the paths of the PNG files."""
    return [*draw_bars(boards, folder), *draw_curves(boards, folder)]


def draw_bars(boards: Iterable[Leaderboard], folder: Path) -> list[Path]:
    """Clean and robust accuracy with their intervals and a tick per attack: `<leaderboard>.png`."""
    paths = []
    for board in boards:
        if any(row.robust for row in board.rows):
            path = folder / f"{board.name}.png"
            plot_bars(board, path)
            paths.append(path)
    return paths


def draw_curves(boards: Iterable[Leaderboard], folder: Path) -> list[Path]:
    """Robust accuracy over eps with its interval: `<dataset>-<norm>-curve.png`.

    A line per defence that was judged at `CURVE_EPS` or more eps.
    """
    groups: dict[tuple[str, str], list[Leaderboard]] = defaultdict(list)
    for board in boards:
        groups[board.dataset, board.norm].append(board)
    paths = []
    for (dataset, norm), group in groups.items():
        curves = collect_curves(group)
        if curves:
            path = folder / f"{dataset}-{norm}-curve.png"
            plot_curves(curves, f"eps ({norm}), {dataset}", path)
            paths.append(path)
    return paths


def collect_curves(boards: Sequence[Leaderboard]) -> dict[str, Curve]:
    """By name, the eps and rows of every defence with enough of them, eps rising."""
    points: dict[tuple[str, Spec, int | None, int], Curve] = defaultdict(list)
    for board in boards:
        for row in board.rows:
            if row.robust:
                line = (board.dataset, row.cell.defence, row.n, row.cell.seed)
                points[line].append((row.cell.threat.eps, row))
    curves: dict[str, Curve] = {}
    for curve in points.values():
        if len({eps for eps, _ in curve}) >= CURVE_EPS:
            # The curve is named as the row that was asked the most.
            row = max((row for _, row in curve), key=lambda row: len(row.records))
            name = row.defence
            if name in curves:
                name = f"{name} on {row.classifier}"
            curves[name] = sorted(curve, key=lambda point: point[0])
    return curves


def plot_bars(board: Leaderboard, path: Path) -> None:
    rows = [row for row in board.rows if row.robust]
    figure, axes = make_canvas(7, 1.1 + 0.5 * len(rows))
    plot_ticks(axes, rows)
    clean = {y - 0.16: row.clean for y, row in enumerate(rows) if row.clean}
    robust = {y + 0.16: row.robust for y, row in enumerate(rows) if row.robust}
    plot_points(axes, clean, "clean", color=CLEAN, markerfacecolor="white")
    plot_points(axes, robust, "robust (worst case)", color=ROBUST, markerfacecolor=ROBUST)
    axes.set_yticks(range(len(rows)), [row_label(row, rows) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    sizes = ", ".join(map(str, sorted({row.n for row in rows if row.n})))
    axes.set_xlabel(
        f"accuracy with 95% interval; {board.dataset}, {board.norm}, eps {board.eps}, n {sizes}"
    )
    figure.legend(loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    save_figure(figure, path)


def plot_ticks(axes: Any, rows: Sequence[Row]) -> None:
    """A tick at the accuracy under each attack alone."""
    accuracies = []
    heights = []
    for y, row in enumerate(rows):
        for label, accuracy in row.accuracies.items():
            if label != "none":
                accuracies.append(accuracy)
                heights.append(y)
    bottoms = [y + 0.02 for y in heights]
    tops = [y + 0.3 for y in heights]
    axes.vlines(accuracies, bottoms, tops, color=TICK, linewidth=1, label="each attack alone")


def plot_points(axes: Any, estimates: dict[float, Estimate], label: str, **style: Any) -> None:
    """A point with its interval for each estimate, at its height."""
    if not estimates:
        return
    means = [e.mean for e in estimates.values()]
    limits = error_bars(list(estimates.values()))
    style = {"fmt": "o", "markersize": 5, "elinewidth": 1.5, **style}
    axes.errorbar(means, list(estimates), xerr=limits, label=label, **style)


def plot_curves(curves: dict[str, Curve], label: str, path: Path) -> None:
    """Clean accuracy is the point of a curve at eps 0."""
    figure, axes = make_canvas(7, 4.2)
    for name, curve in curves.items():
        points = [(float(eps), row.robust) for eps, row in curve if row.robust]
        clean = curve[0][1].clean
        if clean:
            points.insert(0, (0.0, clean))
        estimates = [estimate for _, estimate in points]
        axes.errorbar(
            [eps for eps, _ in points],
            [estimate.mean for estimate in estimates],
            yerr=error_bars(estimates),
            label=name,
            marker="o",
            markersize=3,
            linewidth=1,
            elinewidth=0.7,
        )
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(label)
    axes.set_ylabel("robust accuracy (worst case), 95% interval")
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def error_bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """How far the intervals reach below and above the means."""
    return [[e.mean - e.lo for e in estimates], [e.hi - e.mean for e in estimates]]


def row_label(row: Row, rows: Sequence[Row]) -> str:
    """The defence over its verdict, with the classifier where two rows would read the same."""
    same_defence = [other for other in rows if other.defence == row.defence]
    name = f"{row.defence} on {row.classifier}" if len(same_defence) > 1 else row.defence
    return f"{name}\n({row.verdict})"


def make_canvas(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of this size in inches, and its axes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("figures need matplotlib; run 'make setup'") from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_figure(figure: Any, path: Path) -> None:
    out = io.BytesIO()
    # The version of matplotlib is no part of the figure.
    figure.savefig(out, format="png", metadata={"Software": None})
    write_bytes(path, out.getvalue())
