"""Which defences a plan has that names none."""

from __future__ import annotations

from bench.questions.discover import discover
from bench.questions.plan import plan
from bench.questions.registry import defences
from bench.questions.request import Request

discover()


def test_costly_defences_are_left_out_with_a_note_and_there_when_named() -> None:
    costly = {entry.name for entry in defences if entry.facts.opt_in}
    assert "smoothing" in costly
    found = plan([Request(attacks=("none",))])
    assert {"undefended", "at", "carso"} <= {cell.defence.name for cell in found.cells}
    assert not costly & {cell.defence.name for cell in found.cells}
    assert any("they take long" in note and "smoothing" in note for note in found.notes)
    assert {
        cell.defence.name
        for cell in plan([Request(defences=("smoothing",), attacks=("none",))]).cells
    } == {"smoothing"}
