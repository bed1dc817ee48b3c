"""How a sweep goes: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.questions.spec import Cell
from bench.results import names
from bench.results.record import Record


def describe_cells(cells: Sequence[Cell]) -> dict[Cell, str]:
    """`carso / pgd`, with the knobs that tell a cell from the others."""
    attacks = names.short_names(cell.attack for cell in cells)
    defences = names.short_names(cell.defence for cell in cells)
    return {cell: f"{defences[cell.defence]} / {attacks[cell.attack]}" for cell in cells}


def describe_threat(cell: Cell) -> str:
    return f"({cell.threat.norm} {cell.threat.eps})"


class Live:
    """Bars on a terminal (cells, batches, time left), plain lines elsewhere."""

    def __init__(self, console: Console, cells: Sequence[Cell]) -> None:
        self.count = len(cells)
        self.done = 0
        self.start = time.monotonic()
        self.names = describe_cells(cells)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            speed_estimate_period=600,
        )
        self.cells_bar = self.bars.add_task("cells", total=self.count)
        self.batches_bar = self.bars.add_task("batches", total=None)

    def __enter__(self) -> Live:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def batch(self, cell: Cell, done: int, count: int) -> None:
        name = self.names[cell]
        self.bars.update(self.batches_bar, description=name, completed=done, total=count)
        self.bars.update(self.cells_bar, completed=self.done + done / count)

    def answered(self, cell: Cell, record: Record) -> None:
        size = f"(n {len(record.ids)}, {record.cost.seconds:.1f} s)"
        self.print_line(cell, f"accuracy {record.accuracy:.3f}  {size}")

    def failed(self, cell: Cell, message: str) -> None:
        self.print_line(cell, f"FAILED: {escape(message)}")

    def print_line(self, cell: Cell, text: str) -> None:
        self.done += 1
        self.bars.update(self.cells_bar, completed=self.done)
        width = len(str(self.count))
        name = f"{self.names[cell]} {describe_threat(cell)}"
        so_far = f"{self.done:{width}}/{self.count}  {time.monotonic() - self.start:5.0f} s"
        self.bars.console.print(f"{so_far}  {escape(name.ljust(56))} {text}", soft_wrap=True)
