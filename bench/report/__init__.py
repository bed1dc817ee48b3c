"""From a store of records to leaderboards: CSV, Markdown, one HTML page. No torch here."""

from __future__ import annotations

from pathlib import Path

from bench.files import write_text
from bench.report.boards import build_leaderboards, load_boards
from bench.report.markdown import BRIEF_COLUMNS, brief_row, render_markdown
from bench.report.page import render_page
from bench.report.reference import compare_with_reference, list_differences
from bench.report.tables import cells_csv, leaderboard_csv
from bench.results.store import Store

__all__ = [
    "BRIEF_COLUMNS",
    "brief_row",
    "build_leaderboards",
    "compare_with_reference",
    "list_differences",
    "load_boards",
    "write",
]


def write(root: Path) -> list[Path]:
    """Write the leaderboards, cells.csv and report.html of the store at `root`.

    Returns their paths. The same store gives the same bytes; an empty one gives no files.
    """
    boards = load_boards(Store(root))
    if not boards:
        return []
    folder = root / "leaderboards"
    texts: dict[Path, str] = {}
    for board in boards:
        texts[folder / f"{board.name}.csv"] = leaderboard_csv(board)
        texts[folder / f"{board.name}.md"] = render_markdown(board)
    texts[folder / "cells.csv"] = cells_csv(boards)
    texts[root / "report.html"] = render_page(boards)
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)
