"""The leaderboards of a sweep, as a table each."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import report
from bench.api import boards_of
from bench.questions.plan import Plan
from bench.results.leaderboard import Leaderboard
from bench.results.store import Store


def show_leaderboards(console: Console, plan: Plan, out: Path) -> None:
    """Write all leaderboards of the folder; show those of the plan, and the reference's word."""
    written = report.write(out)
    for board in boards_of(plan, Store(out)):
        console.print(make_table(board))
    for text in report.compare_with_reference(out):
        console.print(escape(text), soft_wrap=True)
    for path in written:
        if path.suffix in (".csv", ".html"):
            console.print(f"wrote {path}", soft_wrap=True)


def make_table(board: Leaderboard) -> Table:
    table = Table(
        title=f"{board.dataset} {board.norm} {board.eps}",
        box=None,
        title_justify="left",
        title_style="bold",
    )
    for name in report.BRIEF_COLUMNS:
        table.add_column(name, no_wrap=name != "strongest attack", overflow="fold")
    for row in board.rows:
        table.add_row(*(escape(cell) for cell in report.brief_row(row)))
    return table
