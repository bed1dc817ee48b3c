"""From a store of records to leaderboards: CSV, Markdown, one HTML page. No torch here: it takes a second on a laptop."""

from __future__ import annotations

from pathlib import Path

from bench.files import write_text
from bench.questions.registry import ROOT
from bench.report.boards import build_leaderboards, load_boards
from bench.report.html import page
from bench.report.markdown import BRIEF, brief, markdown
from bench.report.reference import compare_reference, same_question
from bench.report.tables import cells_csv, leaderboard_csv
from bench.results.store import Store

REFERENCE = ROOT / "results" / "reference"

__all__ = [
    "BRIEF",
    "against_reference",
    "brief",
    "build_leaderboards",
    "compare_reference",
    "load_boards",
    "write",
]


def write(root: Path) -> list[Path]:
    """Write the leaderboards, cells.csv and report.html of the store at `root`, and return their paths; the same bytes for the same store."""
    found = load_boards(Store(root))
    folder = root / "leaderboards"
    texts = {
        folder / f"{board.name}{suffix}": make(board)
        for board in found
        for suffix, make in ((".csv", leaderboard_csv), (".md", markdown))
    }
    if found:
        texts |= {folder / "cells.csv": cells_csv(found), root / "report.html": page(found)}
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def against_reference(root: Path, reference: Path = REFERENCE) -> list[str]:
    """In words, where the store at `root` differs from the published one beyond the intervals, or that it does not.

    Nothing where there is no reference, it is `root` itself, or they have no row in common.
    """
    if root.resolve() == reference.resolve() or not (reference / "records").is_dir():
        return []
    theirs = [row for board in load_boards(Store(reference)) for row in board.rows]
    ours = [row for board in load_boards(Store(root)) for row in board.rows]
    if found := compare_reference(ours, theirs):
        return [f"differs from the reference: {text}" for text in found]
    common = sum(
        any(same_question(row) == same_question(other) for other in theirs) for row in ours
    )
    return (
        [
            f"{common} of {len(ours)} rows are in the reference too; on what both answered they agree within the 95% intervals"
        ]
        if common
        else []
    )
