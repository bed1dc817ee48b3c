"""The names that plug-ins written before import from here; they live in `bench.questions.registry`.

The decorators here take the facts under their former names too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.questions import registry
from bench.questions.discover import discover
from bench.questions.registry import (
    Function,
    attacks,
    build_classifier,
    build_defence,
    build_inner,
    check,
    classifiers,
    dataset,
    datasets,
    defences,
    is_stochastic,
)

__all__ = [
    "attack",
    "attacks",
    "build_classifier",
    "build_defence",
    "build_inner",
    "check",
    "classifier",
    "classifiers",
    "dataset",
    "datasets",
    "defence",
    "defences",
    "discover",
    "is_stochastic",
]

FORMER = {
    "alone": "no_inner",
    "costly": "opt_in",
    "ensure": "fetch",
    "follows": "dependent_defaults",
    "later": "added_later",
    "minimal": "minimum_norm",
    "needs_stochastic": "stochastic_only",
    "pins": "pin",
    "reads": "parsers",
}


def attack(name: str, **facts: Any) -> Callable[[Function], Function]:
    return registry.attack(name, **renamed(facts))


def defence(name: str, **facts: Any) -> Callable[[Function], Function]:
    return registry.defence(name, **renamed(facts))


def classifier(scheme: str, **facts: Any) -> Callable[[Function], Function]:
    return registry.classifier(scheme, **renamed(facts))


def renamed(facts: dict[str, Any]) -> dict[str, Any]:
    return {FORMER.get(name, name): value for name, value in facts.items()}
