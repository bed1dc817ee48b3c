"""Find and import plug-ins: entry points of the group `bench.plugins`, and files of the user."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from bench.entry_points import declared
from bench.errors import BadInput


def discover(files: tuple[Path, ...] = ()) -> None:
    """Import every entry point, of a package every public module in it, and then the `files`."""
    for point in declared("bench.plugins"):
        package = importlib.import_module(point.value)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            if not module.ispkg and not module.name.startswith("_"):
                importlib.import_module(f"{point.value}.{module.name}")
    for path in files:
        load_file(path)


def load_file(path: Path) -> ModuleType:
    """Import a Python file that lies in no package; BadInput where that fails."""
    name = f"bench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise BadInput(f"plug-in file '{path}' does not exist or is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"plug-in file '{path}' cannot be imported: {reason}") from error
    return module
