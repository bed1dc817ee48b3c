"""The questions that the bench can ask: names with knobs, threat models and cells.

Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from bench.errors import BadInput, did_you_mean

NORMS = ("linf", "l2", "l1", "l0")
ACCESS = ("white-box", "transfer", "score", "decision")

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Spec:
    """A registered name with its knobs. Text form: `carso[aggregation=logit,samples=16]`."""

    name: str
    items: tuple[tuple[str, Value], ...] = ()

    @property
    def params(self) -> dict[str, Value]:
        return dict(self.items)

    @staticmethod
    def of(name: str, params: Mapping[str, Value]) -> Spec:
        return Spec(name, tuple(sorted(params.items())))

    @staticmethod
    def parse(text: str) -> Spec:
        """Read `name` or `name[knob=value,...]`; a value may itself hold brackets.

        All values are text.
        """
        match = re.fullmatch(r"\s*([^\[\],=\s]+)\s*(?:\[(.*)\])?\s*", text, re.DOTALL)
        if not match:
            raise BadInput(
                f"'{text}' is not a name with knobs, such as carso[samples=16,aggregation=logit]"
            )
        params: dict[str, Value] = {}
        for item in split_commas(match[2] or ""):
            knob, equals, value = item.partition("=")
            if not equals or not knob.strip():
                raise BadInput(f"'{item}' in '{text}' is not knob=value")
            if knob.strip() in params:
                raise BadInput(f"knob '{knob.strip()}' is given twice in '{text}'")
            params[knob.strip()] = value.strip()
        return Spec.of(match[1], params)

    def __str__(self) -> str:
        if not self.items:
            return self.name
        knobs = ",".join(f"{knob}={format_value(value)}" for knob, value in self.items)
        return f"{self.name}[{knobs}]"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "params": self.params}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Spec:
        return Spec.of(data["name"], data["params"])


def format_value(value: Value) -> str:
    """The value as text that reads back as the same value."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def split_commas(text: str) -> list[str]:
    """Split at the commas that lie outside of brackets: `a,b[x=1,y=2]` -> [`a`, `b[x=1,y=2]`]."""
    parts = [""]
    depth = 0  # how many brackets are open
    for char in text:
        if char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
        if depth < 0:
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth != 0:
        raise BadInput(f"the brackets of '{text}' do not match")
    return [part.strip() for part in parts if part.strip()]


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """What the attacker may change (`norm`, `eps`) and see (`access`).

    `eps` is in pixel units of [0,1], for l0 in pixels.
    """

    norm: str
    eps: Fraction
    access: str = "white-box"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise BadInput(f"norm '{self.norm}' is unknown{did_you_mean(self.norm, NORMS)}")
        if self.access not in ACCESS:
            raise BadInput(f"access '{self.access}' is unknown{did_you_mean(self.access, ACCESS)}")
        if self.eps < 0:
            raise BadInput(f"eps '{self.eps}' is negative")

    @property
    def label(self) -> str:
        """`linf-8_255`: the form used in file names."""
        return f"{self.norm}-{str(self.eps).replace('/', '_')}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One question: how does `defence` fare under `attack` on these examples?

    `select` and `draws` are the numbers of selection and of evaluation draws; both are 1 for a
    deterministic defence. `batch` is part of the question: no split of it changes the answer.
    """

    dataset: Spec
    defence: Spec
    attack: Spec
    threat: ThreatModel
    seed: int
    select: int
    draws: int
    batch: int
    key: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "key", hashlib.sha256(canonical.encode()).hexdigest()[:16])

    @property
    def stochastic(self) -> bool:
        """Whether the defence is asked as a stochastic one: several draws of an answer."""
        return self.select > 1 or self.draws > 1

    @property
    def question(self) -> str:
        """The key of the cell less its attack.

        Cells that share it are compared example by example.
        """
        return question_of(self)

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.to_json(),
            "defence": self.defence.to_json(),
            "attack": self.attack.to_json(),
            "threat": {
                "norm": self.threat.norm,
                "eps": str(self.threat.eps),
                "access": self.threat.access,
            },
            "seed": self.seed,
            "select": self.select,
            "draws": self.draws,
            "batch": self.batch,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Cell:
        threat = data["threat"]
        return Cell(
            dataset=Spec.from_json(data["dataset"]),
            defence=Spec.from_json(data["defence"]),
            attack=Spec.from_json(data["attack"]),
            threat=ThreatModel(threat["norm"], Fraction(threat["eps"]), threat["access"]),
            seed=int(data["seed"]),
            select=int(data["select"]),
            draws=int(data["draws"]),
            batch=int(data["batch"]),
        )

    def __str__(self) -> str:
        location = f"{self.dataset} {self.threat.norm} {self.threat.eps}"
        return f"{location}: {self.defence} under {self.attack}"


@functools.cache
def question_of(cell: Cell) -> str:
    threat = replace(cell.threat, access="white-box")
    return replace(cell, attack=Spec("none"), threat=threat).key
