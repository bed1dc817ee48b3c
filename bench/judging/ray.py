"""The same batches on a Ray cluster: one task a batch, one GPU a task; the answers are those of one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.judging.evaluate import evaluate
from bench.judging.execute import Watch, environment, keep_failure, make_deterministic, same_source
from bench.judging.setup import batch_count, load_cached
from bench.questions.registry import ROOT, discover
from bench.questions.spec import Cell
from bench.results.record import Record, merge
from bench.results.store import Store


def connect(address: str) -> None:
    """Join the cluster at `address`, as Ray takes it, or start one on this machine for `local`; BadInput where there is none, or no Ray."""
    try:
        import ray
    except ImportError:
        raise BadInput(
            "--ray needs Ray, which is not installed; install the extra 'cluster': .venv/bin/uv pip install ray"
        ) from None
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:  # Ray itself tries for minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise BadInput(f"no Ray cluster answers at '{address}': {error}") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    environ = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    try:
        ray.init(
            address=None if address == "local" else address,
            include_dashboard=None,
            runtime_env=environ,
            log_to_driver=False,
        )
    except ConnectionError as error:
        raise BadInput(
            f"no Ray cluster answers at '{address}': {str(error).partition(chr(10))[0]}"
        ) from None


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
    """Answer the cells into the store on the cluster that is connected, and leave it; returns how many failed.

    Every node needs this checkout, the weights and the data at the same paths.
    """
    import ray

    remote: Any = ray.remote(num_gpus=1 if device.startswith("cuda") else 0)(answer)
    where = (
        device.partition(":")[0],
        data_dir.resolve(),
        command,
        tuple(path.resolve() for path in extra),
    )
    done: dict[Cell, dict[int, Record]] = {}
    waiting: dict[Any, tuple[Cell, int]] = {}
    failed: set[Cell] = set()
    try:
        for cell in cells:
            data = load_cached(cell.dataset, str(data_dir))
            env = environment(cell, where[0], command, data.digest)
            done[cell] = {
                index: part
                for index, part in store.parts(cell).items()
                if same_source(part.env, env)
            }
            for index in range(batch_count(cell, len(data.x))):
                if index not in done[cell]:
                    waiting[remote.remote(cell, index, *where)] = (cell, index)
        for cell in cells:
            finish(cell, done[cell], store, watch)
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            cell, index = waiting.pop(ready)
            try:
                done[cell][index] = ray.get(ready)
            except ray.exceptions.RayError as error:
                if cell not in failed:
                    failed.add(cell)
                    watch.failed(
                        cell, keep_failure(cell, store, getattr(error, "cause", None) or error)
                    )
                continue
            store.put_part(done[cell][index], index)
            finish(cell, done[cell], store, watch)
    finally:
        ray.shutdown()
    return len(failed)


def finish(cell: Cell, done: dict[int, Record], store: Store, watch: Watch) -> None:
    """Join the batches of the cell where all of them are there."""
    count = batch_count(
        cell, int(cell.dataset.params.get("n", cell.dataset.params.get("first", 0)))
    )
    if len(done) < count:
        watch.batch(cell, len(done), count)
        return
    record = merge([done[index] for index in range(count)])
    store.put(record)
    watch.answered(cell, record)


def answer(
    cell: Cell, index: int, device: str, data_dir: Path, command: str, extra: tuple[Path, ...]
) -> Record:
    """One batch of one cell, in a worker."""
    make_deterministic()
    discover(extra)
    data = load_cached(cell.dataset, str(data_dir))
    return evaluate(
        cell,
        [index],
        device=device,
        data_dir=str(data_dir),
        env=environment(cell, device, command, data.digest),
    )
