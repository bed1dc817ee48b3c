"""What a prediction takes, and what a plan would cost: the calls of each attack times that."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.errors import BadInput
from bench.judging.border import place_defence
from bench.judging.containment import Containment
from bench.judging.setup import load_cached
from bench.judging.surrogates import build_surrogate
from bench.questions import registry
from bench.questions.plugin_calls import told_in_one_line
from bench.questions.spec import Cell


@dataclass(frozen=True, slots=True)
class CostForecast:
    """Forward passes per example, and seconds on the device; None without data or weights."""

    calls: int
    seconds: float | None


@torch.no_grad()
def time_prediction(model: nn.Module, x: Tensor, repeats: int = 5) -> float:
    """Milliseconds per image of a prediction: the fastest of `repeats`, after one to warm up."""
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        best = min(best, time.perf_counter() - start)
    return round(best / len(x) * 1e3, 4)


def forecast_costs(
    cells: Sequence[Cell],
    data_dir: Path,
    device: str = "cpu",
    times: MutableMapping[str, float] | None = None,
) -> list[CostForecast]:
    """The cost of each cell if no example leaves an attack early.

    The calls are an upper bound. The time is a guess for this machine's `device`. `times` are
    predictions that were measured before; those that are measured now are added to them.
    """
    watch = Stopwatch(data_dir, device, {} if times is None else times)
    return [forecast_cost(cell, watch) for cell in cells]


def forecast_cost(cell: Cell, watch: Stopwatch) -> CostForecast:
    """The cost of one cell; see `forecast_costs`."""
    entry = registry.find_question(cell.attack.name)
    stochastic = registry.is_stochastic(cell.defence)
    known_calls = registry.count_calls(entry, entry.resolve(cell.attack.params), stochastic)
    calls = round(known_calls or 0)
    judging_ms = watch.time_defence(cell)
    attack_ms = watch.time_surrogate(cell) if cell.threat.access == "transfer" else judging_ms
    if known_calls is None or judging_ms is None or attack_ms is None:
        return CostForecast(calls, None)
    judging_calls = 2 * cell.select + cell.draws
    ms_per_image = calls * attack_ms + judging_calls * judging_ms
    return CostForecast(calls, ms_per_image * count_examples(cell) / 1e3)


def count_examples(cell: Cell) -> int:
    """The examples that the cell asks about; a check may stop at fewer than the dataset has."""
    size = int(cell.dataset.params.get("n", cell.dataset.params.get("first", 0)))
    return min(size, int(cell.attack.params.get("examples", size)))


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Milliseconds per image of predictions of batches; `times` holds those that are known."""

    data_dir: Path
    device: str
    times: MutableMapping[str, float]

    def time_defence(self, cell: Cell) -> float | None:
        return self.time(cell, str(cell.defence), lambda: registry.build_defence(cell.defence))

    def time_surrogate(self, cell: Cell) -> float | None:
        source = str(cell.attack.params["source"])
        return self.time(cell, source, lambda: build_surrogate(source))

    def time(self, cell: Cell, name: str, build: Callable[[], nn.Module]) -> float | None:
        """The faster of two predictions of one batch; None where data or weights are not there."""
        key = f"{name} on {cell.dataset} by {cell.batch}"
        if key not in self.times:
            with Containment(), told_in_one_line(f"{name} cannot be timed:"):
                try:
                    images = load_cached(cell.dataset, str(self.data_dir)).x[: cell.batch]
                    x = images.to(self.device)
                    self.times[key] = time_prediction(place_defence(build(), x[:2]), x, repeats=2)
                except BadInput:
                    return None
        return self.times[key]


def format_duration(seconds: float | None) -> str:
    """`12 s`, `3.4 min`, `2.0 h`: what a reader makes of it at once."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    if seconds < 360_000:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.0f} days"
