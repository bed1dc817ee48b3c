"""Budgets: lists of attacks with their knobs and numbers of draws. Standard library only."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from bench.errors import BadInput, did_you_mean

PLANS = Path(__file__).parent / "plans"


def read_budget(name: str) -> dict[str, Any]:
    """The numbers `select`, `draws` and `batch`, the list `attacks`, and knobs by attack."""
    budgets = read_toml(PLANS / "budgets.toml")
    if name not in budgets:
        raise BadInput(f"budget '{name}' is unknown{did_you_mean(name, budgets)}")
    return dict(budgets[name])


@functools.cache
def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"'{path}' is not TOML: {error}") from None
