"""A sweep: failures are kept, batches outlive an interrupt, and other sources do not join."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.judging.evaluate import evaluate
from bench.judging.execute import Run, execute
from bench.questions.spec import Cell
from bench.results.record import Record
from bench.results.store import Store
from tests.judging.cells import cell


class Notes:
    """A watch that notes what became of each cell."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def batch(self, cell: Cell, done: int, count: int) -> None: ...

    def answered(self, cell: Cell, record: Record) -> None:
        self.lines.append(("answered", cell.key))

    def failed(self, cell: Cell, message: str) -> None:
        self.lines.append(("failed", cell.key))


class Interrupt(Notes):
    """Interrupts the sweep after three batches."""

    def batch(self, cell: Cell, done: int, count: int) -> None:
        if done == 3:
            raise KeyboardInterrupt


def answer(cell: Cell, store: Store) -> Record:
    """What a sweep over this cell keeps."""
    failed = execute([cell], store, device="cpu", data_dir=store.root, command="b", watch=Notes())
    assert failed == 0
    record = store.get(cell)
    assert record is not None
    return record


def test_a_crash_is_a_failure_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    notes = Notes()
    cells = [cell("liar-crashes"), cell("none")]
    failed = execute(cells, store, device="cpu", data_dir=tmp_path, command="a", watch=notes)
    assert failed == 1
    assert store.failures() == {cells[0].key: "RuntimeError: the attack fell over"}
    assert [record.cell for record in store.records()] == [cells[1]]
    assert notes.lines == [("failed", cells[0].key), ("answered", cells[1].key)]


def test_an_interrupted_cell_goes_on_from_its_last_batch(tmp_path: Path) -> None:
    store = Store(tmp_path)
    asked = cell("toy-exact", "toy-coin", draws=3)
    with pytest.raises(KeyboardInterrupt):
        execute([asked], store, device="cpu", data_dir=tmp_path, command="a", watch=Interrupt())
    assert sorted(store.parts(asked)) == [0, 1, 2]
    assert not store.has(asked)
    record = answer(asked, store)
    assert store.parts(asked) == {}
    assert record.env.command == "a"
    assert sum(record.correct) == sum(evaluate(asked).correct)


def keep_wrong_part(cell: Cell, store: Store, **changes: object) -> None:
    """Keep a first batch that calls every answer wrong, as an earlier run with another source."""
    env = replace(Run("cpu", store.root, "a").environment(cell), **changes)
    part = evaluate(cell, [0], data_dir=str(store.root), env=env)
    store.put_part(replace(part, correct=(0,) * len(part.ids)), 0)


def test_a_part_of_the_same_source_is_joined(tmp_path: Path) -> None:
    """The part is wrong on purpose: the record shows whether it is in it."""
    asked = cell("none")
    keep_wrong_part(asked, Store(tmp_path))
    record = answer(asked, Store(tmp_path))
    assert record.correct.count(0) == asked.batch


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("commit", "0123456789ab"),
        ("device", "another device"),
        ("data", "0123456789abcdef"),
        ("weights", (("own:digits-at", "0" * 64),)),
        ("versions", (("torch", "0.0"),)),
        ("source", "0123456789abcdef"),
    ],
)
def test_a_part_of_another_source_is_not_joined(tmp_path: Path, field: str, value: object) -> None:
    asked = cell("none")
    keep_wrong_part(asked, Store(tmp_path), **{field: value})
    record = answer(asked, Store(tmp_path))
    assert record.accuracy == 1.0
    assert record.env == Run("cpu", tmp_path, "b").environment(asked)
