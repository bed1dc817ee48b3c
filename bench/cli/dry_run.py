"""What a sweep would cost, before it runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape

from bench.api import Settings, with_device
from bench.cli.progress import describe_cells, describe_threat
from bench.files import cache_folder, write_text
from bench.questions.plan import Plan
from bench.questions.spec import Cell


def show_costs(console: Console, plan: Plan, pending: Sequence[Cell], settings: Settings) -> None:
    """A line per cell: its name, the most calls per example, and the time that they would take."""
    from bench.judging.cost import forecast_costs, format_duration
    from bench.judging.execute import make_deterministic

    make_deterministic()
    device = with_device(settings).device
    with kept_times(device) as times:
        costs = forecast_costs(plan.cells, settings.data_dir, device, times)
    names = {
        cell: f"{name} {describe_threat(cell)}" for cell, name in describe_cells(plan.cells).items()
    }
    width = max(map(len, names.values()))
    waiting = {cell.key for cell in pending}
    console.print(f"{'defence / attack':{width}} {'calls':>11} {'time':>9}", soft_wrap=True)
    for cell, cost in zip(plan.cells, costs, strict=True):
        name = escape(names[cell].ljust(width))
        kept = "" if cell.key in waiting else "  (in the store)"
        time = format_duration(cost.seconds)
        console.print(f"{name} {cost.calls:>11,} {time:>9}{kept}", soft_wrap=True)
    where = "one thread of this machine's CPU" if device == "cpu" else f"this machine's {device}"
    console.print(
        "calls: the most forward passes per example, a backward counting as two; "
        f"time: from trial predictions on {where}",
        soft_wrap=True,
    )
    seconds = [
        cost.seconds for cell, cost in zip(plan.cells, costs, strict=True) if cell.key in waiting
    ]
    total = f"at most about {format_duration(sum(known or 0.0 for known in seconds))}"
    unknown = seconds.count(None)
    if unknown:
        total += (
            f"; {unknown} of unknown time are not counted in: their data or weights are not there"
        )
    console.print(f"{len(plan.cells)} cells, {len(waiting)} to answer, {total}", soft_wrap=True)


@contextlib.contextmanager
def kept_times(device: str) -> Iterator[dict[str, float]]:
    """The times that earlier dry runs measured on such a device; new ones are kept after it."""
    from bench.judging.environment import name_device, versions

    path = cache_folder() / "prediction-times.json"
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    where = f"{name_device(device)}, {dict(versions())}"
    times: dict[str, float] = kept.setdefault(where, {})
    known = len(times)
    yield times
    if len(times) > known:
        with contextlib.suppress(OSError):  # it is a convenience
            write_text(path, json.dumps(kept, indent=1, sort_keys=True) + "\n")
