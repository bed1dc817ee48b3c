"""Run the cells of a plan in one process, keeping every finished batch; a cell that fails is kept as a failure and the rest goes on."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import traceback
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from bench import weights
from bench.data.sample import Dataset
from bench.entry_points import checkout
from bench.errors import BadInput
from bench.judging.evaluate import evaluate
from bench.judging.setup import batch_count, load_cached
from bench.judging.surrogates import build_surrogate
from bench.questions import registry
from bench.questions.plan import PINNED, knob_texts
from bench.questions.spec import Cell
from bench.results import names as labels
from bench.results.record import Env, Record, merge
from bench.results.store import Store


class Watch(Protocol):
    """Who is told how the sweep goes."""

    def batch(self, cell: Cell, done: int, count: int) -> None: ...

    def answered(self, cell: Cell, record: Record) -> None: ...

    def failed(self, cell: Cell, message: str) -> None: ...


def pick_device(text: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:1` as the device that is there."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name, colon, index = text.partition(":")
    if name not in ("cpu", "cuda") or (colon and not (name == "cuda" and index.isdigit())):
        raise BadInput(f"device '{text}' is unknown; there are: auto, cpu, cuda, cuda:0")
    if name == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise BadInput(
            f"device '{text}' was asked for, but {torch.cuda.device_count()} CUDA devices are to be had here; use --device auto or cpu"
        )
    return text


def preflight(cells: Iterable[Cell], data_dir: Path) -> None:
    """Load the data, build every defence and surrogate, and predict one image with each, before anything is written; raises BadInput."""
    cells = tuple(cells)
    for cell in {(c.dataset, c.defence): c for c in cells}.values():
        data = load_cached(cell.dataset, str(data_dir))
        name, classifier = cell.defence.name, labels.classifier_of(cell.defence) or "?"
        try_one(
            registry.build_defence(cell.defence),
            data,
            f"defence '{name}' with classifier '{classifier}'",
        )
    for cell in {(c.dataset, c.attack): c for c in cells if c.threat.access == "transfer"}.values():
        source = str(cell.attack.params["source"])
        try_one(
            build_surrogate(source),
            load_cached(cell.dataset, str(data_dir)),
            f"classifier '{source}'",
        )


@torch.no_grad()
def try_one(model: nn.Module, data: Dataset, what: str) -> None:
    shape = tuple(data.x.shape[1:])
    try:
        logits = model(data.x[:1])
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"{what} cannot take the images {shape} of '{data.name}': {str(error).partition(chr(10))[0]}"
        ) from error
    if logits.shape != (1, data.classes):
        raise BadInput(
            f"{what} answers {tuple(logits.shape)} for an image of '{data.name}', which has {data.classes} classes"
        )


def execute(
    cells: Iterable[Cell], store: Store, *, device: str, data_dir: Path, command: str, watch: Watch
) -> int:
    """Answer the cells into the store; returns how many failed.

    Interrupted, it has kept every whole batch, and the next run goes on from there.
    """
    failed = 0
    for cell in cells:
        try:
            record = run_cell(
                cell, store, device=device, data_dir=data_dir, command=command, watch=watch
            )
        except (BadInput, OSError):
            raise
        except Exception as error:
            failed += 1
            watch.failed(cell, keep_failure(cell, store, error))
        else:
            store.put(record)
            watch.answered(cell, record)
    return failed


def run_cell(
    cell: Cell, store: Store, *, device: str, data_dir: Path, command: str, watch: Watch
) -> Record:
    data = load_cached(cell.dataset, str(data_dir))
    count = batch_count(cell, len(data.x))
    env = environment(cell, device, command, data.digest)
    done = {index: part for index, part in store.parts(cell).items() if same_source(part.env, env)}
    watch.batch(cell, len(done), count)
    for index in range(count):
        if index not in done:
            done[index] = evaluate(cell, [index], device=device, data_dir=str(data_dir), env=env)
            if count > 1:
                store.put_part(done[index], index)
            watch.batch(cell, len(done), count)
    return merge([done[index] for index in range(count)])


def same_source(one: Env, other: Env) -> bool:
    """Whether parts of two runs belong together: the same code, device, data and weights."""
    return (one.commit, one.device, one.data, one.weights, one.versions) == (
        other.commit,
        other.device,
        other.data,
        other.weights,
        other.versions,
    )


def keep_failure(cell: Cell, store: Store, error: BaseException) -> str:
    message = f"{type(error).__name__}: {error}".partition("\n")[0]
    store.fail(cell, message, "".join(traceback.format_exception(error)))
    return message


def environment(cell: Cell, device: str, command: str, data: str) -> Env:
    pinned = sorted(
        text
        for text in knob_texts(cell.defence) | knob_texts(cell.attack)
        if labels.unpinned(text) != text and "[" not in text
    )
    digests = tuple((labels.unpinned(text), digest_of(text)) for text in pinned)
    on_gpu = device.startswith("cuda")
    kind = (
        torch.cuda.get_device_name(torch.device(device))
        if on_gpu
        else f"CPU {platform.machine()}, {torch.get_num_threads()} thread(s)"
    )
    return Env(
        commit=commit(),
        command=command,
        device=kind,
        versions=versions(),
        weights=digests,
        data=data,
    )


def digest_of(text: str) -> str:
    """Of the weights that a pinned text names: the whole SHA-256 of a file with a card, the pin itself of others."""
    return (
        weights.digest(weights.locate(text)) if text.startswith(PINNED) else text.rpartition("@")[2]
    )


@functools.cache
def commit() -> str:
    """The commit of the code, with `-dirty` where the code differs from it; empty outside of a checkout. (Weights are told by their digests.)"""
    root = checkout()
    if root is None:
        return ""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git(
            "status",
            "--porcelain",
            "--",
            "bench",
            "baselines",
            "carso",
            "requirements.txt",
            ":!baselines/weights",
        )
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


@functools.cache
def versions() -> tuple[tuple[str, str], ...]:
    names = ("numpy", "pyautoattack", "robustbench", "torch")
    return tuple(
        sorted(
            (
                ("python", platform.python_version()),
                *((name, metadata.version(name)) for name in names),
            )
        )
    )


def make_deterministic() -> None:
    """Arithmetic that repeats: one thread, unless OMP_NUM_THREADS says otherwise (two were measured to be slower than one on small models, and they
    reorder sums); on a GPU float32 in full, where cuDNN's default rounds what convolutions multiply to the 10 bits of TF32, and sums in one order.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
