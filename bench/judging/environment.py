"""Where an answer comes from: the code, the device, the versions, the data and the weights."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from bench.entry_points import checkout
from bench.questions.pins import knob_texts, unpinned
from bench.questions.registry import classifiers
from bench.questions.spec import Cell
from bench.results.record import Env

CODE = ("bench", "baselines", "carso", "requirements.txt", ":!baselines/weights")
LIBRARIES = ("numpy", "pyautoattack", "robustbench", "torch")


def environment(cell: Cell, device: str, command: str, data: str) -> Env:
    """Where an answer to `cell` on `device` comes from; `data` is the digest of its images."""
    return Env(
        commit=commit(),
        command=command,
        device=name_device(device),
        versions=versions(),
        weights=digest_weights(cell),
        data=data,
    )


def same_source(one: Env, other: Env) -> bool:
    """Whether parts of two runs belong together: the same code, device, data and weights."""
    names = ("commit", "device", "data", "weights", "versions")
    return all(getattr(one, name) == getattr(other, name) for name in names)


@functools.cache
def commit() -> str:
    """The commit of the code, with `-dirty` where the code differs from it.

    Empty outside of a checkout. Weights do not count: their digests stand for them.
    """
    root = checkout()
    if root is None:
        return ""
    try:
        changed = run_git(root, "status", "--porcelain", "--", *CODE)
        head = run_git(root, "rev-parse", "--short=12", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}-dirty" if changed else head


def run_git(root: Path, *words: str) -> str:
    """What git prints of the checkout at `root`."""
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def name_device(device: str) -> str:
    """The name of the GPU, or the kind of the CPU and its number of threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"CPU {platform.machine()}, {torch.get_num_threads()} thread(s)"


@functools.cache
def versions() -> tuple[tuple[str, str], ...]:
    """Python and the libraries that decide numbers, sorted by name."""
    libraries = [(name, metadata.version(name)) for name in LIBRARIES]
    return tuple(sorted([("python", platform.python_version()), *libraries]))


def digest_weights(cell: Cell) -> tuple[tuple[str, str], ...]:
    """The name and the digest of every weights file that the cell names, sorted by pinned name."""
    texts = knob_texts(cell.defence) | knob_texts(cell.attack)
    pinned = sorted(text for text in texts if unpinned(text) != text and "[" not in text)
    return tuple((unpinned(text), digest_of(text)) for text in pinned)


def digest_of(text: str) -> str:
    """The digest of the files that a pinned text names; the pin itself where no scheme has one."""
    name, _, pin = text.rpartition("@")
    scheme, colon, argument = name.partition(":")
    if not colon or scheme not in classifiers:
        return pin
    find_digest = classifiers.get(scheme).facts.digest
    return (find_digest and find_digest(argument)) or pin
