"""A leaderboard as a drawing: clean and robust accuracy with their intervals, a tick per attack. SVG, inline; standard library only."""

from __future__ import annotations

from html import escape

from bench.report.markdown import ranged
from bench.results.leaderboard import Leaderboard, Row
from bench.results.statistics import Estimate

# Names stand above their strips, not beside them: on a phone the drawing shrinks to the width and must stay legible.
WIDTH, LEFT, RIGHT, STRIP, AXIS = 480, 14, 466, 50, 30


def chart(board: Leaderboard) -> str:
    """One strip per row that has a robust accuracy; empty where there is none."""
    shown = [row for row in board.rows if row.robust]
    if not shown:
        return ""
    bottom = STRIP * len(shown)
    grid = [
        f'<line class="grid" x1="{at(v):.1f}" x2="{at(v):.1f}" y1="0" y2="{bottom}"/>'
        f'<text class="axis" x="{at(v):.1f}" y="{bottom + 17}" text-anchor="middle">{v:.1f}</text>'
        for v in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    title = f"Clean and robust accuracy on {board.dataset}, {board.norm}, eps {board.eps}"
    strips = [strip(row, i * STRIP) for i, row in enumerate(shown)]
    drawn = "".join(grid + strips)
    return f'<svg viewBox="0 0 {WIDTH} {bottom + AXIS}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{drawn}</svg>'


def strip(row: Row, top: int) -> str:
    name = escape(f"{row.defence} · {row.classifier}" if row.classifier else row.defence)
    attacks = [
        (at(value), f"{escape(label)} {value:.3f}")
        for label, value in row.accuracies.items()
        if label != "none"
    ]
    ticks = [
        f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 34}" y2="{top + 46}"><title>{says}</title></line>'
        for x, says in attacks
    ]
    dots = dot("clean", row.clean, top + 27) + dot("robust", row.robust, top + 40)
    return (
        f'<g><text class="name" x="{LEFT}" y="{top + 16}">{name}</text>{"".join(ticks)}{dots}</g>'
    )


def dot(kind: str, estimate: Estimate | None, y: int) -> str:
    if not estimate:
        return ""
    return (
        f'<g class="{kind}"><title>{kind} {ranged(estimate)}</title><line x1="{at(estimate.lo):.1f}" x2="{at(estimate.hi):.1f}" y1="{y}" y2="{y}"/>'
        f'<circle cx="{at(estimate.mean):.1f}" cy="{y}" r="4.5"/></g>'
    )


def at(share: float) -> float:
    return LEFT + share * (RIGHT - LEFT)
