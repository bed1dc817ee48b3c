"""How many runs the knobs of an ascent ask for. Standard library only, since a report counts them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGETS = 9  # classes that the targeted loss is run for, where the knob `targets` says nothing else


def runs(knobs: Mapping[str, Any]) -> int:
    """How often an ascent starts: for each loss as often as `restarts` says, for `targeted` so for each of its `targets`."""
    return sum(count for _, count in runs_by_loss(knobs)) * int(knobs["restarts"])


def runs_by_loss(knobs: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The losses that an attack with these knobs takes in turn, each with its number of runs per restart."""
    targets = int(knobs.get("targets", TARGETS))
    return [(name, targets if name == "targeted" else 1) for name in str(knobs["loss"]).split("+")]
