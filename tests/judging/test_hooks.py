"""Judging without the rooms that register with it: it refuses, rather than leave something out."""

from __future__ import annotations

import pytest

from bench.judging import hooks
from bench.judging.evaluate import evaluate_batch
from bench.judging.setup import Setup, prepare
from bench.results.record import Env
from tests.judging.cells import cell


@pytest.fixture
def setup() -> Setup:
    return prepare(cell("none"), "cpu", "data")


def test_no_defence_goes_unprobed(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    monkeypatch.setattr(hooks, "_probes", [])
    x, y, _ = setup.take(slice(0, 4))
    with pytest.raises(RuntimeError, match="no probe is registered"):
        hooks.probe_defence(setup.defence, x, y, 0.1, declared=False)


def test_no_check_is_answered_as_an_attack(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    monkeypatch.setattr(hooks, "_check_runners", [])
    with pytest.raises(RuntimeError, match="checks have no runner"):
        evaluate_batch(cell("signal"), setup, 0, Env())
