"""A training that can be killed: all its state in one safetensors file, replaced at once, and the curve of its epochs beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.files import write_text
from carso.tensors import write_tensors


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the curve.

    Losses are means per image: `reconstruction` (binary cross-entropy, nats per image) and `kl` (nats), unweighted. `adversaries`: how many
    of the `seconds` they took. Accuracies of the whole defence on the held-out images, in [0,1]; None where the epoch was not validated.
    """

    epoch: int
    lr: float
    beta: float
    reconstruction: float
    kl: float
    seconds: float = 0.0
    adversaries: float = 0.0
    clean_acc: float | None = None
    pgd_acc: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """`tensors` by name, and what else must be known to go on after the epochs of `history`."""

    tensors: Mapping[str, Tensor]
    steps: int
    seed: int
    history: Sequence[Epoch]


class Checkpoint:
    """The state of a run in the file `path`, and its curve in `curve` (JSON lines, one epoch each).

    `question` is all that the run's weights depend on, JSON-like: a state of another question is refused. Written after every `every` epochs,
    and after the last; 0: never, the curve alone.
    """

    def __init__(
        self, path: Path, curve: Path, question: Mapping[str, Any], *, every: int = 1
    ) -> None:
        self.path, self.curve, self.every = path, curve, every
        self.question: dict[str, Any] = json.loads(json.dumps(question))

    def epochs(self) -> int:
        """How many epochs the file holds, 0 where there is none; ValueError, one line, where it is damaged or of another question."""
        return len(self._facts()["history"]) if self.path.exists() else 0

    def load(self) -> State:
        """ValueError as in `epochs`."""
        facts = self._facts()
        try:
            with safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            return State(
                tensors, facts["steps"], facts["seed"], [Epoch(**row) for row in facts["history"]]
            )
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise ValueError(
                f"checkpoint '{self.path}' is damaged ({error}); remove it, or start anew with --fresh"
            ) from None

    def _facts(self) -> dict[str, Any]:
        try:
            with safe_open(self.path, "pt") as file:
                facts: dict[str, Any] = json.loads((file.metadata() or {})["training"])
            found = facts["question"]
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"checkpoint '{self.path}' is damaged ({error}); remove it, or start anew with --fresh"
            ) from None
        if odd := next(_differences(found, self.question), ""):
            raise ValueError(
                f"checkpoint '{self.path}' is of another run: {odd}; remove it, start anew with --fresh, or give another --out"
            )
        return facts

    def save(self, state: State, epochs: int) -> None:
        """After an epoch of a run of `epochs`. OSError where the disk is full or the like; FloatingPointError where the state is not finite."""
        done = len(state.history)
        if self.every and (done % self.every == 0 or done == epochs):
            if bad := [
                name
                for name, value in state.tensors.items()
                if not bool(torch.isfinite(value).all())
            ]:
                raise FloatingPointError(
                    f"training diverged in epoch {done - 1}: {bad[0]} is not finite"
                )
            facts = {
                "question": self.question,
                "steps": state.steps,
                "seed": state.seed,
                "history": [asdict(row) for row in state.history],
            }
            write_tensors(self.path, state.tensors, {"training": json.dumps(facts)})
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in state.history)
        write_text(self.curve, lines)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """What differs, in words, down to the field."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}".strip("."))
    elif there != here:
        yield f"its {name} is {_short(there)}, here it is {_short(here)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
