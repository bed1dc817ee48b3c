"""Which defences a plan has that names none."""

from __future__ import annotations

from bench.questions.discover import discover
from bench.questions.plan import plan
from bench.questions.registry import defences
from bench.questions.request import Request

discover()


def test_defences_that_take_long_take_part_only_where_they_are_named() -> None:
    opt_in = {entry.name for entry in defences if entry.facts.opt_in}
    assert "smoothing" in opt_in
    asked = plan([Request(attacks=("none",))])
    assert {"undefended", "at", "carso"} <= {cell.defence.name for cell in asked.cells}
    assert not opt_in & {cell.defence.name for cell in asked.cells}
    assert any("they take long" in note and "smoothing" in note for note in asked.notes)
    named = plan([Request(defences=("smoothing",), attacks=("none",))])
    assert {cell.defence.name for cell in named.cells} == {"smoothing"}


def test_defences_that_are_broken_on_purpose_take_no_part_and_no_note() -> None:
    broken = {entry.name for entry in defences if entry.facts.broken}
    assert len({name for name in broken if name.startswith("gallery-")}) == 12
    asked = plan([Request(attacks=("none",))])
    assert not broken & {cell.defence.name for cell in asked.cells}
    assert not any(name in note for name in broken for note in asked.notes)
    named = plan([Request(defences=("gallery-softmax",), attacks=("none",))])
    assert named.cells
