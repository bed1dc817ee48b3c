"""A folder of answers: one JSON file per cell, written atomically.

Parts of unfinished cells, failures and plans lie beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.files import write_text
from bench.questions.facts import AttackTraits
from bench.questions.spec import Cell
from bench.results.equal_sources import EqualSources
from bench.results.record import Record


class Store:
    """The folder `root`, normally results/. Reading never writes; a file is whole or not there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, cell: Cell, suffix: str = "") -> Path:
        folder = (
            self.root
            / "records"
            / slug(cell.dataset.name)
            / cell.threat.label
            / slug(cell.defence.name)
        )
        return folder / f"{slug(cell.attack.name)}-{cell.key}{suffix}.json"

    def has(self, cell: Cell) -> bool:
        return self.path(cell).is_file()

    def get(self, cell: Cell) -> Record | None:
        return Record.from_json(read_json(self.path(cell))) if self.has(cell) else None

    def put(self, record: Record) -> None:
        """Keep the answer; its parts and an earlier failure go."""
        write_json(self.path(record.cell), record.to_json())
        self.path(record.cell, ".failed").unlink(missing_ok=True)
        self.path(record.cell, ".stale").unlink(missing_ok=True)
        self.drop_parts(record.cell)

    def set_aside(self, cell: Cell) -> None:
        """Rename a stale answer that is asked again: it is on no board, and goes with the new."""
        if self.has(cell):
            self.path(cell).replace(self.path(cell, ".stale"))

    def mark(self, record: Record, changes: str) -> None:
        """Write into a kept answer what has changed since; nothing where it says so."""
        if record.env.stale != changes:
            env = replace(record.env, stale=changes)
            write_json(self.path(record.cell), replace(record, env=env).to_json())

    def put_part(self, record: Record, index: int) -> None:
        write_json(self.path(record.cell, f".part{index}"), record.to_json())

    def parts(self, cell: Cell) -> dict[int, Record]:
        """The batches of an unfinished cell that were already answered, by their index."""
        parts = {}
        for path in self._part_files(cell):
            index = int(path.suffixes[-2].removeprefix(".part"))
            parts[index] = Record.from_json(read_json(path))
        return parts

    def drop_parts(self, cell: Cell) -> None:
        for path in self._part_files(cell):
            path.unlink()

    def fail(self, cell: Cell, message: str, trace: str) -> None:
        write_json(
            self.path(cell, ".failed"),
            {"cell": cell.to_json(), "key": cell.key, "message": message, "trace": trace},
        )

    def equal_sources(self) -> EqualSources:
        """Which code counts as the same in this folder: what its `sources.json` says."""
        path = self.root / "sources.json"
        return EqualSources.from_json(read_json(path) if path.is_file() else {})

    def put_plan(
        self, name: str, cells: Sequence[Cell], traits: Mapping[str, AttackTraits] | None = None
    ) -> None:
        """Keep the plan; `traits` say what its attacks are, by name."""
        data: dict[str, Any] = {"name": name, "cells": [cell.to_json() for cell in cells]}
        if traits:
            data["attack_traits"] = {attack: value.to_json() for attack, value in traits.items()}
        write_json(self.root / "plans" / f"{slug(name)}.json", data)

    def records(self) -> list[Record]:
        """Every whole answer, in the order of the file names."""
        return [Record.from_json(read_json(path)) for path in self._files() if "." not in path.stem]

    def plans(self) -> dict[str, list[Cell]]:
        """Every plan that was run into this folder: what rows must hold to be complete."""
        return {
            data["name"]: [Cell.from_json(cell) for cell in data["cells"]] for data in self._plans()
        }

    def planned_traits(self) -> dict[str, AttackTraits]:
        """What the attacks of the plans are, by name, where a plan file says it."""
        return {
            attack: AttackTraits(**traits)
            for data in self._plans()
            for attack, traits in data.get("attack_traits", {}).items()
        }

    def failures(self) -> dict[str, str]:
        """Cell key -> what went wrong, of the cells whose last try failed."""
        paths = [path for path in self._files() if path.stem.endswith(".failed")]
        failures = map(read_json, paths)
        return {failure["key"]: failure["message"] for failure in failures}

    def _plans(self) -> list[dict[str, Any]]:
        return [read_json(path) for path in sorted((self.root / "plans").glob("*.json"))]

    def _files(self) -> list[Path]:
        return sorted((self.root / "records").glob("*/*/*/*.json"))

    def _part_files(self, cell: Cell) -> list[Path]:
        return sorted(self.path(cell).parent.glob(f"*-{cell.key}.part*.json"))


def slug(name: str) -> str:
    """The name with `_` for what a file name had better not hold."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name)


def read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise BadInput(
            f"'{path}' is not a record of this bench ({error}); move it away and run again"
        ) from None
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write one key a line, keys sorted: a change shows as a diff of the lines that it touches."""
    lines = (
        f" {json.dumps(key)}: {json.dumps(value, sort_keys=True, allow_nan=False)}"
        for key, value in sorted(data.items())
    )
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
