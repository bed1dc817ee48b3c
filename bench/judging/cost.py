"""What a prediction takes, and what a plan would cost: the calls of each attack times that."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.errors import BadInput
from bench.judging.setup import load_cached
from bench.judging.surrogates import build_surrogate
from bench.judging.target import to_device_channels_last
from bench.questions import registry
from bench.questions.spec import Cell, Spec


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
    cells: Sequence[Cell], data_dir: Path, device: str = "cpu"
) -> list[CostForecast]:
    """The cost of each cell if no example leaves an attack early.

    The calls are an upper bound. The time is a guess for this machine's `device`.
    """
    return [forecast_cost(cell, data_dir, device) for cell in cells]


def forecast_cost(cell: Cell, data_dir: Path, device: str) -> CostForecast:
    """The cost of one cell; see `forecast_costs`."""
    entry = registry.find_question(cell.attack.name)
    count_calls = entry.facts.calls
    calls = 0
    if count_calls:
        stochastic = registry.is_stochastic(cell.defence)
        calls = round(count_calls(entry.resolve(cell.attack.params), stochastic))
    source = str(cell.attack.params["source"]) if cell.threat.access == "transfer" else ""
    judging_ms = time_of(cell.dataset, cell.defence, "", cell.batch, data_dir, device)
    attack_ms = time_of(cell.dataset, cell.defence, source, cell.batch, data_dir, device)
    if count_calls is None or judging_ms is None or attack_ms is None:
        return CostForecast(calls, None)
    judging_calls = 2 * cell.select + cell.draws
    ms_per_image = calls * attack_ms + judging_calls * judging_ms
    return CostForecast(calls, ms_per_image * count_examples(cell) / 1e3)


def count_examples(cell: Cell) -> int:
    """The examples that the cell asks about; a check may stop at fewer than the dataset has."""
    size = int(cell.dataset.params.get("n", cell.dataset.params.get("first", 0)))
    return min(size, int(cell.attack.params.get("examples", size)))


@functools.lru_cache
def time_of(
    dataset: Spec, defence: Spec, source: str, batch: int, data_dir: Path, device: str
) -> float | None:
    """Milliseconds per image of a prediction of the defence, or of the classifiers `source`.

    The faster of two predictions of one batch; None where data or weights are not there.
    """
    try:
        model = build_surrogate(source) if source else registry.build_defence(defence)
        model = to_device_channels_last(model, torch.device(device))
        x = load_cached(dataset, str(data_dir)).x[:batch].to(device)
        return time_prediction(model, x, repeats=2)
    except BadInput:
        return None


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
