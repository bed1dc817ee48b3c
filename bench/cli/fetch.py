"""`carso-bench fetch`: have the data and the weights of a plan here, and run nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.api import look_into, make_plan
from bench.cli.run import read_request
from bench.questions import plan as plans


def fetch(
    file: Path | None, flags: Mapping[str, Any], data_dir: Path, plugins: tuple[Path, ...]
) -> None:
    """Download what the plan of the file, or of the flags, needs and is not there."""
    from bench.data.sample import load
    from bench.judging.plugins import load_plugins

    for note in load_plugins(plugins):
        print(f"note: {note}")
    plan = make_plan(file, read_request(file, flags), look_into(data_dir))
    for note in plan.notes:
        print(f"note: {note}")
    plans.fetch_missing(plan)
    for dataset in dict.fromkeys(cell.dataset for cell in plan.cells):
        images = load(dataset, data_dir=data_dir)
        print(f"{dataset}: {len(images)} images are there")
    print(f"the data and weights of {len(plan.cells)} cells are there")
