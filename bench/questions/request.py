"""What the user asks: one sweep, from flags or from a TOML file. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bench.errors import BadInput, did_you_mean
from bench.questions.budgets import PLANS, read_toml

LISTS = ("defences", "attacks")
TEXTS = ("dataset", "norm", "budget")
CURVES = ("eps", "queries")  # one value, or several
NUMBERS = ("n", "first", "seed", "draws", "select", "batch")


@dataclass(frozen=True, slots=True)
class Request:
    """One sweep as asked for; what is None is the dataset's or the budget's default.

    `eps` and `queries` may be several, joined by commas: a curve. `queries` sets the knob of that
    name of the attacks that have it.
    """

    dataset: str = "digits"
    defences: tuple[str, ...] | None = None
    attacks: tuple[str, ...] | None = None
    norm: str | None = None
    eps: str | None = None
    n: int | None = None
    first: int | None = None
    seed: int = 0
    draws: int | None = None
    select: int | None = None
    batch: int | None = None
    budget: str | None = None
    queries: str | None = None


def read_plan_file(path: Path) -> tuple[str, list[Request]]:
    """The name and the requests of a TOML plan: a file, or the name of one of ours.

    Its keys are those of `Request`. Several sweeps are tables [[sweep]] over shared keys.
    """
    file = path if path.is_file() else PLANS / f"{path}.toml"
    if not file.is_file():
        names = [plan.stem for plan in PLANS.glob("*.toml") if plan.stem != "budgets"]
        hint = did_you_mean(str(path), names)
        raise BadInput(f"plan '{path}' is neither a file nor a plan of ours{hint}")
    shared = dict(read_toml(file))  # a copy: what was read is kept for the next call
    sweeps = shared.pop("sweep", [{}])
    return file.stem, [parse_request({**shared, **sweep}, file) for sweep in sweeps]


def parse_request(data: Mapping[str, Any], path: Path) -> Request:
    """The request that `data` holds; `path` names where it comes from in errors."""
    known = {field.name for field in fields(Request)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in known:
            raise BadInput(f"plan '{path}' has the key '{key}'{did_you_mean(key, known)}")
        if key in NUMBERS and not isinstance(value, int):
            raise BadInput(f"plan '{path}': {key}={value!r} is not a whole number")
        values[key] = read_value(key, value)
    return Request(**values)


def read_value(key: str, value: Any) -> Any:
    """The value of a key of a plan as `Request` has it."""
    if key in LISTS:
        return tuple(map(str, value))
    if key in CURVES and isinstance(value, list):
        return ",".join(map(str, value))
    return str(value) if key in (*TEXTS, *CURVES) else value
