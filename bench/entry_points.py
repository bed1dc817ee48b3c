"""What packages declare for the bench as entry points. Standard library only."""

from __future__ import annotations

import functools
import importlib.metadata
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # of the checkout, or the folder of installed packages
NAME = "carso-bench"


@functools.cache
def checkout() -> Path | None:
    """The folder of this project's checkout; None where the code runs from an installed package."""
    return ROOT if (ROOT / "pyproject.toml").is_file() else None


@functools.cache
def checkout_project() -> dict[str, Any]:
    """The table `[project]` of the checkout's pyproject.toml; empty where there is no checkout."""
    root = checkout()
    if root is None:
        return {}
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return project


def version() -> str:
    project = checkout_project()
    return str(project["version"]) if project else importlib.metadata.version(NAME)


@functools.cache
def declared(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of the group, in the order of their values, which is the same everywhere.

    A checkout speaks for itself, installed or not: its `pyproject.toml` takes the place of what
    was installed of this project.
    """
    installed = list(importlib.metadata.entry_points(group=group))
    if project := checkout_project():
        installed = [point for point in installed if not point.dist or point.dist.name != NAME]
        ours = project["entry-points"][group]
        installed += [EntryPoint(name, value, group) for name, value in ours.items()]
    return tuple(sorted(installed, key=lambda point: point.value))
