"""How many runs the knobs of an ascent ask for. A report counts them too: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGETS = 9  # classes that the targeted loss is run for, where the knob `targets` says nothing else


def runs(knobs: Mapping[str, Any]) -> int:
    """How often an ascent starts: `restarts` times for each run of each loss."""
    return sum(count for _, count in runs_by_loss(knobs)) * int(knobs["restarts"])


def runs_by_loss(knobs: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The losses in the order in which the attack takes them, with their runs per restart.

    The loss `targeted` has a run for each of its `targets`.
    """
    targets = int(knobs.get("targets", TARGETS))
    return [(name, targets if name == "targeted" else 1) for name in str(knobs["loss"]).split("+")]
