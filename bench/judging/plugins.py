"""The user's plug-in files: what one changes in this process while it is imported is put back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.judging.containment import Containment, read_generators
from bench.questions.discover import discover, load_file


def load_plugins(files: Iterable[Path] = ()) -> list[str]:
    """Import the installed plug-ins, then the files; returns notes on what these changed.

    A file may add to `sys.path`: it may need its own folder later. Raises BadInput.
    """
    discover()
    return [note for path in files for note in load_contained(path)]


def load_contained(path: Path) -> list[str]:
    with Containment(spared=("sys.path",)) as row:
        generators = read_generators()
        load_file(path)
        draws = read_generators() != generators
    changed = [*row.conduct.patches, *row.conduct.switches, *(["random generators"] * draws)]
    if not changed:
        return []
    return [f"plug-in file '{path}' changes {', '.join(changed)} when imported; this is put back"]
