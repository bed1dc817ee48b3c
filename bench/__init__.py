"""Is this adversarial defence really robust? A bench of defences, attacks and data sets.

A `Plan` is a list of `Cell`s; `evaluate` answers a `Cell` with a `Record`; a `Store` keeps
`Record`s; a `Leaderboard` is a function of `Record`s. `run` does it all.

The names below are loaded when they are asked for: `import bench` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import load_results, run
    from bench.errors import BadInput
    from bench.judging.evaluate import evaluate
    from bench.questions.registry import (
        attack,
        build_classifier,
        build_inner,
        check,
        classifier,
        dataset,
        defence,
    )
    from bench.questions.spec import Cell, Spec, ThreatModel
    from bench.results.record import Record

HOMES = {
    "BadInput": "bench.errors",
    "Cell": "bench.questions.spec",
    "Record": "bench.results.record",
    "Spec": "bench.questions.spec",
    "ThreatModel": "bench.questions.spec",
    "attack": "bench.questions.registry",
    "build_classifier": "bench.questions.registry",
    "build_inner": "bench.questions.registry",
    "check": "bench.questions.registry",
    "classifier": "bench.questions.registry",
    "dataset": "bench.questions.registry",
    "defence": "bench.questions.registry",
    "evaluate": "bench.judging.evaluate",
    "load_results": "bench.api",
    "run": "bench.api",
}

__all__ = [
    "BadInput",
    "Cell",
    "Record",
    "Spec",
    "ThreatModel",
    "attack",
    "build_classifier",
    "build_inner",
    "check",
    "classifier",
    "dataset",
    "defence",
    "evaluate",
    "load_results",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
