"""What the user asks: one sweep, from flags or from a TOML file. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from bench.errors import BadInput, did_you_mean
from bench.questions.budgets import PLANS, read_toml
from bench.questions.spec import Spec, split_commas

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
    if not isinstance(sweeps, list) or not all(isinstance(sweep, dict) for sweep in sweeps):
        raise BadInput(f"plan '{file}': sweep={brief(sweeps)} is not tables [[sweep]]")
    if not sweeps:
        raise BadInput(f"plan '{file}': its list of sweeps is empty; leave it out")
    return file.stem, [parse_request({**shared, **sweep}, file) for sweep in sweeps]


def parse_request(data: Mapping[str, Any], path: Path) -> Request:
    """The request that `data` holds; `path` names where it comes from in errors."""
    known = {field.name for field in fields(Request)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in known:
            raise BadInput(f"plan '{path}' has the key '{key}'{did_you_mean(key, known)}")
        try:
            values[key] = read_value(key, value)
        except BadInput as error:
            raise BadInput(f"plan '{path}': {key}={brief(value)} {error}") from None
    return Request(**values)


def read_value(key: str, value: Any) -> Any:
    """The value of a key of a plan as `Request` has it; BadInput, the end of a line."""
    if key in LISTS:
        return read_names(value)
    if key in CURVES:
        return read_curve(value)
    if key in NUMBERS and (not isinstance(value, int) or isinstance(value, bool)):
        raise BadInput("is not a whole number")
    if key in TEXTS and not isinstance(value, str):
        raise BadInput("is not a text")
    return value


def read_names(value: Any) -> tuple[str, ...]:
    """A list of names with knobs, or the same as a text."""
    if isinstance(value, str):
        return tuple(split_commas(value))
    if not isinstance(value, list | tuple) or not all(isinstance(v, str | Spec) for v in value):
        raise BadInput('is not a list of names, such as ["pgd[steps=100]", "square"]')
    return tuple(map(str, value))


def read_curve(value: Any) -> str:
    """A number or a text, or a list of them, as a text."""
    values = value if isinstance(value, list | tuple) else [value]
    for number in values:
        if isinstance(number, bool) or not isinstance(number, str | int | float | Fraction):
            raise BadInput('is not a number or a text, such as "8/255", or a list of them')
    if not values:
        raise BadInput("is an empty list; name some, or leave it out")
    return ",".join(map(str, values))


def brief(value: Any) -> str:
    """The value as it was written, on one line, cut where it is long."""
    text = repr(value)
    return f"{text[:60]}..." if len(text) > 60 else text
