"""Security curves: robust accuracy over eps, one PNG for each dataset and norm that has it. matplotlib is imported only where one is drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from bench.questions.spec import Spec
from bench.report.figures import canvas, save
from bench.results.leaderboard import Leaderboard, Row

LEAST = 3  # eps that make a curve
Key = tuple[str, Spec, int | None, int]


def draw(boards: Iterable[Leaderboard], folder: Path) -> list[Path]:
    """Robust accuracy over eps with its interval, a line per defence that was judged at three or more; `folder/<dataset>-<norm>-curve.png`."""
    groups: dict[tuple[str, str], list[Leaderboard]] = defaultdict(list)
    for board in boards:
        groups[
            str(board.rows[0].cell.dataset.name) if board.rows else board.dataset, board.norm
        ].append(board)
    paths = []
    for (dataset, norm), held in groups.items():
        if found := curves(held):
            paths.append(folder / f"{dataset}-{norm}-curve.png")
            plot(found, f"eps ({norm}), {dataset}", paths[-1])
    return paths


def curves(boards: Sequence[Leaderboard]) -> dict[str, list[tuple[Fraction, Row]]]:
    """By name, the eps and rows of every defence with enough of them, eps rising; clean accuracy is its point at eps 0."""
    lines: dict[Key, list[tuple[Fraction, Row]]] = defaultdict(list)
    for board in boards:
        for row in board.rows:
            if row.robust:
                lines[board.dataset, row.cell.defence, row.n, row.cell.seed].append(
                    (row.cell.threat.eps, row)
                )
    found: dict[str, list[tuple[Fraction, Row]]] = {}
    for points in lines.values():
        if len({eps for eps, _ in points}) >= LEAST:
            row = max(
                (row for _, row in points), key=lambda one: len(one.records)
            )  # named as where most was asked of it
            found[f"{row.defence}{f' on {row.classifier}' if row.defence in found else ''}"] = (
                sorted(points, key=lambda point: point[0])
            )
    return found


def plot(found: dict[str, list[tuple[Fraction, Row]]], label: str, path: Path) -> None:
    figure, axes = canvas(7, 4.2)
    for name, points in found.items():
        clean = points[0][1].clean
        shown = [(0.0, clean)] if clean else []
        shown += [(float(eps), row.robust) for eps, row in points if row.robust]
        xs, held = [x for x, _ in shown], [estimate for _, estimate in shown]
        limits = [[e.mean - e.lo for e in held], [e.hi - e.mean for e in held]]
        axes.errorbar(
            xs,
            [e.mean for e in held],
            yerr=limits,
            label=name,
            marker="o",
            markersize=3,
            linewidth=1,
            elinewidth=0.7,
        )
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(label)
    axes.set_ylabel("robust accuracy (worst case), 95% interval")
    axes.grid(color="#e3e6e9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    save(figure, path)
