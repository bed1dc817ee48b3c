"""`carso-bench status`: how far the plans of a folder are. No torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.api import no_records
from bench.results.store import Store


def show_status(out: Path) -> None:
    """A row for each plan: its cells, and how many are answered, failed and waiting."""
    store = Store(out)
    plans = store.plans()
    if not plans:
        raise no_records(out)
    failures = store.failures()
    table = Table("plan", box=None, pad_edge=False)
    for title in ("cells", "answered", "failed", "waiting"):
        table.add_column(title, justify="right")
    for name, cells in sorted(plans.items()):
        answered = sum(store.has(cell) for cell in cells)
        failed = sum(cell.key in failures for cell in cells)
        counts = (len(cells), answered, failed, len(cells) - answered - failed)
        table.add_row(name, *map(str, counts))
    Console(highlight=False).print(table)
