"""What a plan would cost, from what each attack says of its calls and from the time of a forward pass measured here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import registry
from bench.evaluate import build_defence, clock, load_cached
from bench.spec import BadInput, Cell, Spec


@dataclass(frozen=True, slots=True)
class Estimate:
    """`calls` per example in forward passes, and `seconds` on the CPU (None where data or weights are not there)."""

    calls: int
    seconds: float | None


def estimate(cells: Sequence[Cell], data_dir: Path) -> list[Estimate]:
    """The cost of each cell if no example leaves an attack early: an upper bound for the calls, a guess for the time."""
    return [one(cell, data_dir) for cell in cells]


def one(cell: Cell, data_dir: Path) -> Estimate:
    entry = registry.attacks.get(cell.attack.name)
    says = entry.facts["calls"]
    stochastic = registry.is_stochastic(cell.defence)
    judging = 2 * cell.select + cell.draws
    calls = round(says(cell.attack.params, stochastic)) if says else 0
    timed = time_of(cell.dataset, cell.defence, data_dir)
    size = int(cell.dataset.params.get("n", cell.dataset.params.get("first", 0)))
    return Estimate(calls, None if timed is None or says is None else (calls + judging) * timed * size / 1e3)


@functools.lru_cache
def time_of(dataset: Spec, defence: Spec, data_dir: Path) -> float | None:
    """Milliseconds per image of one prediction."""
    try:
        return clock(build_defence(defence), load_cached(dataset, str(data_dir)).x[:32], repeats=2)
    except BadInput:
        return None
