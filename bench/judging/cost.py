"""What a plan would cost, from what each attack says of its calls and from the time of a forward pass measured here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.errors import BadInput
from bench.judging.clock import time_prediction
from bench.judging.evaluate import load_cached
from bench.judging.surrogates import build_surrogate
from bench.judging.target import to_device_channels_last
from bench.questions import registry
from bench.questions.spec import Cell, Spec


@dataclass(frozen=True, slots=True)
class CostForecast:
    """`calls` per example in forward passes, and `seconds` on the device (None where data or weights are not there)."""

    calls: int
    seconds: float | None


def forecast_costs(
    cells: Sequence[Cell], data_dir: Path, device: str = "cpu"
) -> list[CostForecast]:
    """The cost of each cell if no example leaves an attack early: an upper bound for the calls, a guess for the time on `device`."""
    return [forecast_cost(cell, data_dir, device) for cell in cells]


def forecast_cost(cell: Cell, data_dir: Path, device: str) -> CostForecast:
    entry = registry.attacks.get(cell.attack.name)
    says = entry.facts["calls"]
    calls = (
        round(says(entry.resolve(cell.attack.params), registry.is_stochastic(cell.defence)))
        if says
        else 0
    )
    judged = 2 * cell.select + cell.draws
    prediction = time_of(cell.dataset, cell.defence, "", cell.batch, data_dir, device)
    source = str(cell.attack.params["source"]) if cell.threat.access == "transfer" else ""
    attacked = time_of(cell.dataset, cell.defence, source, cell.batch, data_dir, device)
    if says is None or prediction is None or attacked is None:
        return CostForecast(calls, None)
    size = int(cell.dataset.params.get("n", cell.dataset.params.get("first", 0)))
    size = min(
        size, int(cell.attack.params.get("examples", size))
    )  # the images that a check stops at
    return CostForecast(calls, (calls * attacked + judged * prediction) * size / 1e3)


@functools.lru_cache
def time_of(
    dataset: Spec, defence: Spec, source: str, batch: int, data_dir: Path, device: str
) -> float | None:
    """Milliseconds per image of one prediction, of the defence or the classifiers `source`: the faster of two of a batch as the cells have them."""
    try:
        model = build_surrogate(source) if source else registry.build_defence(defence)
        return time_prediction(
            to_device_channels_last(model, torch.device(device)),
            load_cached(dataset, str(data_dir)).x[:batch].to(device),
            repeats=2,
        )
    except BadInput:
        return None


def format_duration(seconds: float | None) -> str:
    """`12 s`, `3.4 min`, `2.0 h`: what a reader makes of it at once."""
    if seconds is None:
        return "unknown"
    for unit, size, most in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 360_000)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}" if unit == "s" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.0f} days"
