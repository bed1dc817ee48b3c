"""A training that can be killed: all its state in one safetensors file, and its curve beside it.

The file is replaced at once; the curve has a line for every epoch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.errors import BadInput
from bench.files import write_text
from carso.tensors import write_tensors


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the curve.

    Losses are means per image, unweighted: `reconstruction` (binary cross-entropy) and `kl`, both
    in nats. `adversaries`: how many of the `seconds` the adversaries took. Accuracies are those of
    the whole defence on the held-out images, in [0,1]; None where the epoch was not validated.
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
    """The state of a run in the file `path`, and its curve in `curve` (JSON lines, one an epoch).

    `question` is all that the run's weights depend on, JSON-like: a state of another question is
    refused. The state is written after every `every` epochs, and after the last. With 0 the curve
    alone is written.
    """

    def __init__(
        self, path: Path, curve: Path, question: Mapping[str, Any], *, every: int = 1
    ) -> None:
        self.path = path
        self.curve = curve
        self.every = every
        self.question: dict[str, Any] = json.loads(json.dumps(question))

    def count_epochs(self) -> int:
        """How many epochs the file holds, 0 where there is none.

        BadInput where the file is damaged or of another question.
        """
        return len(self._read_facts()["history"]) if self.path.exists() else 0

    def load(self) -> State:
        """BadInput as in `count_epochs`."""
        facts = self._read_facts()
        try:
            with safe_open(self.path, "pt") as file:
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
            history = [Epoch(**row) for row in facts["history"]]
            return State(tensors, facts["steps"], facts["seed"], history)
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise self._damaged(error) from None

    def _read_facts(self) -> dict[str, Any]:
        try:
            with safe_open(self.path, "pt") as file:
                facts: dict[str, Any] = json.loads((file.metadata() or {})["training"])
            question = facts["question"]
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise self._damaged(error) from None
        difference = next(list_differences(question, self.question), "")
        if difference:
            raise BadInput(
                f"checkpoint '{self.path}' is of another run: {difference}; "
                "remove it, start anew with --fresh, or give another --out"
            )
        return facts

    def _damaged(self, error: Exception) -> BadInput:
        return BadInput(
            f"checkpoint '{self.path}' is damaged ({error}); remove it, or start anew with --fresh"
        )

    def save(self, state: State, epochs: int) -> None:
        """Write the state after an epoch of a run of `epochs`.

        OSError where the disk is full or the like; FloatingPointError where the state is not
        finite.
        """
        done = len(state.history)
        if self.every and (done % self.every == 0 or done == epochs):
            self._save_state(state)
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in state.history)
        write_text(self.curve, lines)

    def _save_state(self, state: State) -> None:
        for name, value in state.tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise FloatingPointError(
                    f"training diverged in epoch {len(state.history) - 1}: {name} is not finite"
                )
        facts = {
            "question": self.question,
            "steps": state.steps,
            "seed": state.seed,
            "history": [asdict(row) for row in state.history],
        }
        write_tensors(self.path, state.tensors, {"training": json.dumps(facts)})

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def list_differences(theirs: Any, ours: Any, name: str = "") -> Iterator[str]:
    """What differs, in words, down to the field."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            path = f"{name}.{key}".strip(".")
            yield from list_differences(theirs.get(key), ours.get(key), path)
    elif theirs != ours:
        yield f"its {name} is {shorten(theirs)}, here it is {shorten(ours)}"


def shorten(value: Any) -> str:
    """The value as JSON, in at most 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
