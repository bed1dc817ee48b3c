"""`carso-bench report`: rebuild everything from the stored records, byte for byte."""

from __future__ import annotations

from pathlib import Path

from bench import report
from bench.api import no_records
from bench.report.figures import draw_figures
from bench.results.store import Store


def rebuild(out: Path) -> None:
    """Write the leaderboards, the page and the figures of the folder."""
    paths = report.write(out)
    if not paths:
        raise no_records(out)
    boards = report.load_boards(Store(out))
    figures = out / "figures"
    for path in (*paths, *draw_figures(boards, figures)):
        print(f"wrote {path}")
