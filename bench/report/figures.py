"""The figures of the README: one PNG per leaderboard. matplotlib is imported only where one is drawn."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.files import write_bytes
from bench.results.leaderboard import Leaderboard, Row

CLEAN, ROBUST, TICK = "#2b6cb0", "#b3261e", "#8a949d"


def draw(boards: Iterable[Leaderboard], folder: Path) -> list[Path]:
    """Clean and robust accuracy with their intervals and a tick per attack; `folder/<leaderboard>.png`, the same bytes for the same records."""
    paths = []
    for board in boards:
        if any(row.robust for row in board.rows):
            paths.append(folder / f"{board.name}.png")
            plot(board, paths[-1])
    return paths


def named(row: Row, rows: Sequence[Row]) -> str:
    """The defence over its verdict, and the classifier where two rows would read the same."""
    twins = [other.classifier for other in rows if other.defence == row.defence]
    return f"{row.defence}{f' on {row.classifier}' if len(twins) > 1 else ''}\n({row.verdict})"


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of this size in inches, and its axes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("figures need matplotlib; run 'make setup'") from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: Any, path: Path) -> None:
    out = io.BytesIO()
    figure.savefig(
        out, format="png", metadata={"Software": None}
    )  # the version of matplotlib is no part of the figure
    write_bytes(path, out.getvalue())


def plot(board: Leaderboard, path: Path) -> None:
    rows = [row for row in board.rows if row.robust]
    figure, axes = canvas(7, 1.1 + 0.5 * len(rows))
    ticks = [
        (value, y)
        for y, row in enumerate(rows)
        for label, value in row.accuracies.items()
        if label != "none"
    ]
    axes.vlines(
        [x for x, _ in ticks],
        [y + 0.02 for _, y in ticks],
        [y + 0.3 for _, y in ticks],
        color=TICK,
        linewidth=1,
        label="each attack alone",
    )
    clean = [(row.clean, y - 0.16) for y, row in enumerate(rows) if row.clean]
    robust = [(row.robust, y + 0.16) for y, row in enumerate(rows) if row.robust]
    for found, color, fill, name in (
        (clean, CLEAN, "white", "clean"),
        (robust, ROBUST, ROBUST, "robust (worst case)"),
    ):
        if found:
            limits = [[e.mean - e.lo for e, _ in found], [e.hi - e.mean for e, _ in found]]
            means, heights = [e.mean for e, _ in found], [height for _, height in found]
            axes.errorbar(
                means,
                heights,
                xerr=limits,
                label=name,
                fmt="o",
                color=color,
                markerfacecolor=fill,
                markersize=5,
                elinewidth=1.5,
            )
    axes.set_yticks(range(len(rows)), [named(row, rows) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", color="#e3e6e9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    sizes = ", ".join(map(str, sorted({row.n for row in rows if row.n})))
    axes.set_xlabel(
        f"accuracy with 95% interval; {board.dataset}, {board.norm}, eps {board.eps}, n {sizes}"
    )
    figure.legend(loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    save(figure, path)
