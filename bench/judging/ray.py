"""The same batches on a Ray cluster: one task a batch, one GPU a task; the answers are the same."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.entry_points import ROOT
from bench.errors import BadInput
from bench.judging.evaluate import merge_whole
from bench.judging.execute import (
    Run,
    Watch,
    answer_batch,
    keep_failure,
    kept_parts,
    make_deterministic,
)
from bench.judging.plugins import load_plugins
from bench.judging.setup import batch_count
from bench.questions.spec import Cell
from bench.results.record import Record
from bench.results.store import Store


def connect(address: str) -> None:
    """Join the cluster at `address`, as Ray takes it, or start one on this machine for `local`.

    BadInput where there is no such cluster, or no Ray.
    """
    try:
        import ray
    except ImportError:
        raise BadInput(
            "--ray needs Ray, which is not installed; "
            "install the extra 'cluster': .venv/bin/uv pip install ray"
        ) from None
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:  # Ray itself tries for minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise BadInput(f"no Ray cluster answers at '{address}': {error}") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        ray.init(
            address=None if address == "local" else address,
            include_dashboard=None,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
        )
    except ConnectionError as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(f"no Ray cluster answers at '{address}': {reason}") from None


@dataclass(slots=True)
class Progress:
    """The batches of a cell that are answered, of `count` in all."""

    cell: Cell
    count: int
    parts: dict[int, Record]
    failed: bool = False


def execute(
    cells: Sequence[Cell],
    store: Store,
    *,
    device: str,
    data_dir: Path,
    command: str,
    watch: Watch,
    extra: tuple[Path, ...],
) -> int:
    """Answer the cells into the store on the connected cluster, and leave it.

    Returns how many failed. Every node needs this checkout, the weights and the data at the same
    paths.
    """
    import ray

    gpus = 1 if device.startswith("cuda") else 0
    remote: Any = ray.remote(num_gpus=gpus)(answer_on_node)
    run = Run(device.partition(":")[0], data_dir.resolve(), command)
    plugins = tuple(path.resolve() for path in extra)
    cells_progress = []
    tasks: dict[Any, tuple[Progress, int]] = {}
    try:
        for cell in cells:
            count = batch_count(cell, len(run.load(cell)))
            progress = Progress(cell, count, kept_parts(cell, store, run))
            cells_progress.append(progress)
            for index in range(count):
                if index not in progress.parts:
                    tasks[remote.remote(cell, index, run, plugins)] = (progress, index)
        for progress in cells_progress:
            report(progress, store, watch)
        collect(tasks, store, watch)
    finally:
        ray.shutdown()
    return sum(progress.failed for progress in cells_progress)


def collect(tasks: dict[Any, tuple[Progress, int]], store: Store, watch: Watch) -> None:
    """Keep the answer of each task as it comes; the first failure of a cell is kept as its own."""
    import ray

    while tasks:
        (ready,), _ = ray.wait(list(tasks), num_returns=1)
        progress, index = tasks.pop(ready)
        try:
            progress.parts[index] = ray.get(ready)
        except ray.exceptions.RayError as error:
            if not progress.failed:
                progress.failed = True
                cause = getattr(error, "cause", None) or error
                watch.failed(progress.cell, keep_failure(progress.cell, store, cause))
            continue
        store.put_part(progress.parts[index], index)
        report(progress, store, watch)


def report(progress: Progress, store: Store, watch: Watch) -> None:
    """Say how far the cell is; where all batches are there, join them and keep the answer."""
    cell = progress.cell
    if len(progress.parts) < progress.count:
        watch.batch(cell, len(progress.parts), progress.count)
        return
    record = merge_whole([progress.parts[index] for index in range(progress.count)])
    store.put(record)
    watch.answered(cell, record)


def answer_on_node(cell: Cell, index: int, run: Run, plugins: tuple[Path, ...]) -> Record:
    """One batch of one cell, in a worker of the cluster."""
    make_deterministic()
    load_plugins(plugins)
    return answer_batch(cell, index, run)
