"""Find and import plug-ins: entry points of the group `bench.plugins`, and files of the user."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from bench.entry_points import declared
from bench.errors import BadInput
from bench.questions.plugin_calls import told_in_one_line
from bench.questions.source_code import digest_of, remember_source
from bench.questions.sources import PLUGIN_FILE, user_modules

# The user's modules that a plug-in file imported, and their digests, by the name of its module.
_imported: dict[str, Mapping[str, str]] = {}


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
    """Import a Python file that lies in no package; BadInput where that fails.

    Its bytes are compiled as they are: Python's own cache takes two edits of one second for one.
    """
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise BadInput(f"plug-in file '{path}' does not exist or is no Python file")
    module = importlib.util.module_from_spec(spec)
    forget_edited(name)
    sys.modules[name] = module
    data = path.read_bytes()
    try:
        with told_in_one_line(f"plug-in file '{path}' cannot be imported:"):
            exec(compile(data, str(path), "exec"), vars(module))
    except BadInput:
        del sys.modules[name]
        raise
    remember_source(name, module, data)
    _imported[name] = user_modules(name)
    return module


def module_name(path: Path) -> str:
    """The name of the module that a plug-in file becomes: two files of one stem are two modules."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return f"{PLUGIN_FILE}{path.stem}_{digest}"


def forget_edited(plugin: str) -> None:
    """Have the user's modules that the plug-in file imported imported again where one changed."""
    imported = _imported.get(plugin, {})
    files = {
        name: Path(str(sys.modules[name].__file__)) for name in imported if name in sys.modules
    }
    if all(exact_digest(path) == imported[name] for name, path in files.items()):
        return
    for name, path in files.items():
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
        del sys.modules[name]
    importlib.invalidate_caches()


def exact_digest(path: Path) -> str:
    """The digest of the file as it is now; empty where it is gone."""
    return digest_of(path.read_bytes()) if path.is_file() else ""
