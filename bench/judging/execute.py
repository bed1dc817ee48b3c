"""Answer the cells of a plan in one process, keeping every finished batch.

A cell that fails is kept as a failure, and the rest goes on.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from bench.data.sample import Dataset
from bench.errors import BadInput
from bench.judging.environment import environment, same_source
from bench.judging.evaluate import evaluate, merge_whole
from bench.judging.interrupts import CellFailed, Interrupts
from bench.judging.setup import batch_count, load_cached
from bench.questions.plugin_calls import first_line
from bench.questions.spec import Cell
from bench.results.record import Env, Record
from bench.results.store import Store


class Watch(Protocol):
    """Who is told how the sweep goes."""

    def batch(self, cell: Cell, done: int, count: int) -> None: ...

    def answered(self, cell: Cell, record: Record) -> None: ...

    def failed(self, cell: Cell, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Run:
    """What all answers of a sweep share."""

    device: str
    data_dir: Path
    command: str

    def load(self, cell: Cell) -> Dataset:
        """The images of the cell."""
        return load_cached(cell.dataset, str(self.data_dir))

    def environment(self, cell: Cell) -> Env:
        """Where an answer to the cell comes from."""
        return environment(cell, self.device, self.command, self.load(cell).digest)


def execute(
    cells: Iterable[Cell], store: Store, *, device: str, data_dir: Path, command: str, watch: Watch
) -> int:
    """Answer the cells into the store; returns how many failed.

    Whatever a plug-in raises fails its cell. Interrupted, the sweep has kept every whole batch, and
    the next run goes on from there.
    """
    run = Run(device, data_dir, command)
    failed = 0
    with Interrupts() as interrupts:
        for cell in cells:
            try:
                record = answer_cell(cell, store, run, watch, interrupts)
            except CellFailed as failure:
                failed += 1
                error = failure.__cause__ or failure
                watch.failed(cell, keep_failure(cell, store, error))
            else:
                store.put(record)
                watch.answered(cell, record)
    return failed


def answer_cell(cell: Cell, store: Store, run: Run, watch: Watch, interrupts: Interrupts) -> Record:
    """Answer the batches that no earlier run has kept, and join them with those that are kept.

    Raises CellFailed where other people's code raises; what the store raises passes.
    """
    with interrupts.foreign_code():
        count = batch_count(cell, len(run.load(cell)))
        run.environment(cell)
    parts = kept_parts(cell, store, run)
    watch.batch(cell, len(parts), count)
    for index in range(count):
        if index in parts:
            continue
        with interrupts.foreign_code():
            parts[index] = answer_batch(cell, index, run)
        if count > 1:
            store.put_part(parts[index], index)
        watch.batch(cell, len(parts), count)
    with interrupts.foreign_code():
        return merge_whole([parts[index] for index in range(count)])


def kept_parts(cell: Cell, store: Store, run: Run) -> dict[int, Record]:
    """The batches that an earlier run kept and that come from where this run's come from."""
    env = run.environment(cell)
    parts = store.parts(cell)
    return {index: part for index, part in parts.items() if same_source(part.env, env)}


def answer_batch(cell: Cell, index: int, run: Run) -> Record:
    """One batch of one cell."""
    env = run.environment(cell)
    return evaluate(cell, [index], device=run.device, data_dir=str(run.data_dir), env=env)


def keep_failure(cell: Cell, store: Store, error: BaseException) -> str:
    """Keep the failure of the cell in the store; returns its one line."""
    message = f"{type(error).__name__}: {first_line(error)}"
    store.fail(cell, message, "".join(traceback.format_exception(error)))
    return message


def pick_device(text: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:1` as the device that is there; BadInput where it is not."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name, colon, index = text.partition(":")
    indexed = name == "cuda" and index.isdigit()
    if name not in ("cpu", "cuda") or (colon and not indexed):
        raise BadInput(f"device '{text}' is unknown; there are: auto, cpu, cuda, cuda:0")
    count = torch.cuda.device_count()
    if name == "cuda" and int(index or 0) >= count:
        raise BadInput(
            f"device '{text}' was asked for, but {count} CUDA devices are to be had here; "
            "use --device auto or cpu"
        )
    return text


def make_deterministic() -> None:
    """Make arithmetic repeat: one thread, unless OMP_NUM_THREADS says otherwise.

    Two threads reorder sums, and were measured to be slower than one on small models. On a GPU
    float32 is taken in full: cuDNN's default rounds the factors of convolutions to the 10 bits of
    TF32. Sums have one order there.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
