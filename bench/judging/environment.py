"""Where an answer comes from: the code, the device, the versions, the data and the weights."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from bench.entry_points import checkout
from bench.questions import registry
from bench.questions.pins import PIN, knob_texts, unpinned
from bench.questions.registry import build_defence, files_read
from bench.questions.sources import digest_path, source_digest, sources_of
from bench.questions.spec import Cell, Spec
from bench.results.record import Env

CODE = ("bench", "baselines", "carso", "requirements.txt", ":!baselines/weights")
LIBRARIES = ("numpy", "pyautoattack", "robustbench", "torch")


def environment(cell: Cell, device: str, command: str, data: str) -> Env:
    """Where an answer to `cell` on `device` comes from; `data` is the digest of its images."""
    sources = sources_of(cell)
    files = digest_files_read(cell.defence)
    return Env(
        commit=commit(),
        command=command,
        device=name_device(device),
        versions=versions(),
        weights=digest_weights(cell),
        data=data,
        source=source_digest(sources, files),
        sources=sources,
        files=files,
    )


def digest_files_read(defence: Spec) -> tuple[tuple[str, str], ...]:
    """Path and digest of what our loaders read while the defence was built, sorted.

    A file whose pin stands in a knob is left out: it is part of the question.
    """
    if defence not in files_read:
        build_defence(defence)
    pins = PIN.findall(str(defence))
    digests = {path_text(path): digest_path(path) for path in files_read[defence]}
    return tuple(sorted(item for item in digests.items() if f"@{item[1][:8]}" not in pins))


def path_text(path: Path) -> str:
    """The path as a record keeps it: from the working folder where it lies below that."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def same_source(first: Env, second: Env) -> bool:
    """Whether parts of two runs belong together: the same code, device, data and weights."""
    names = ("commit", "device", "data", "weights", "versions", "source")
    return all(getattr(first, name) == getattr(second, name) for name in names)


@functools.cache
def commit() -> str:
    """The commit of the code, with `-dirty-` and a digest of the changes where there are some.

    Empty outside of a checkout. Weights do not count: their digests stand for them.
    """
    root = checkout()
    if root is None:
        return ""
    try:
        changes = digest_changes(root)
        head = run_git(root, "rev-parse", "--short=12", "HEAD").decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}-dirty-{changes}" if changes else head


def digest_changes(root: Path) -> str:
    """8 digits of what differs from the commit: the diff, and files that git does not follow."""
    changes = run_git(root, "diff", "--no-ext-diff", "--binary", "HEAD", "--", *CODE)
    others = run_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE)
    digest = hashlib.sha256(changes)
    for name in sorted(filter(None, others.split(b"\0"))):
        digest.update(name + (root / os.fsdecode(name)).read_bytes())
    return digest.hexdigest()[:8] if changes or others else ""


def run_git(root: Path, *words: str) -> bytes:
    """What git prints of the checkout at `root`."""
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, check=True).stdout


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
    if not colon or scheme not in registry.classifiers:
        return pin
    return registry.digest_of(registry.classifiers.get(scheme), argument) or pin
