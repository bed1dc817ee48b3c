"""What code and files an answer to a cell rests on, by name and digest. Standard library only.

It rests on the modules that define its data set, its classifiers, its attack, its defence and those
inside of that. It rests on what these modules import too, and on the files that they read. Packages
of plug-ins count by their code, so that a comment changes nothing; files of the user count by
their bytes. The judging core, the standard library and installed libraries do not count.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import secrets
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.entry_points import declared
from bench.files import file_digest
from bench.questions.pins import knob_texts, unpinned, with_inner_defences
from bench.questions.plugin_calls import call_hook, read_paths
from bench.questions.registry import (
    Entry,
    classifiers,
    datasets,
    defences,
    find_question,
    inner_attack,
)
from bench.questions.source_code import DIGITS, digest_of, read_source, source_cache
from bench.questions.spec import Cell, Spec

Digests = tuple[tuple[str, str], ...]  # (name, digest), sorted

PLUGIN_FILE = "bench_plugin_"  # how the names of modules of `--with` files begin
ROOMS = ("bench.attacks", "bench.checks", "bench.data")  # where this package has its plug-ins
MISSING = "missing"


def sources_of(cell: Cell) -> Digests:
    """The digests of the code and the files that an answer to the cell rests on.

    Each is read once, until `forget_sources`.
    """
    digests: dict[str, set[str]] = {}
    pairs = (
        *closure_of(datasets.get(cell.dataset.name).make.__module__),
        *sources_of_defence(cell.defence),
        *sources_of_attack(cell.attack),
    )
    for name, digest in pairs:
        digests.setdefault(name, set()).add(digest)
    merged = {name: join_digests(values) for name, values in digests.items()}
    return tuple(sorted(merged.items()))


def source_digest(*digests: Digests) -> str:
    """One digest of them all."""
    return digest_of(repr(digests).encode())


def forget_sources() -> None:
    """Read code and files again: what is known of a module that is not imported again stays."""
    source_cache().keep()
    for function in (sources_of_defence, sources_of_attack, closure_of, digest_path, is_of_library):
        function.cache_clear()


@functools.cache
def sources_of_defence(defence: Spec) -> Digests:
    """The digests of what a defence rests on, with those inside of it; names may come twice."""
    entries = [(defences.get(spec.name), spec) for spec in with_inner_defences(defence)]
    return tuple(list_sources(entries))


@functools.cache
def sources_of_attack(attack: Spec) -> Digests:
    """The digests of what an attack or a check rests on, with the attack inside of it."""
    inner = inner_attack(attack)
    specs = [attack, inner] if inner else [attack]
    return tuple(list_sources([(find_question(spec.name), spec) for spec in specs]))


def list_sources(entries: Sequence[tuple[Entry[Any], Spec]]) -> Iterator[tuple[str, str]]:
    """The digests of the modules of plug-ins, and of the files that their knobs name."""
    texts: set[str] = set()
    for entry, spec in entries:
        yield from closure_of(entry.make.__module__)
        yield from digest_files(entry, spec.params)
        texts |= knob_texts(spec)
    for text in sorted(map(unpinned, texts)):
        scheme, colon, argument = text.partition(":")
        if colon and scheme in classifiers:
            entry = classifiers.get(scheme)
            yield from closure_of(entry.make.__module__)
            yield from digest_files(entry, argument)
        path = text.removeprefix("file:")
        if is_file(path):
            yield path, digest_path(Path(path).expanduser())


def digest_files(entry: Entry[Any], knobs: Any) -> Iterator[tuple[str, str]]:
    """The digests of the files that a plug-in says that it reads."""
    for path in list_files(entry, knobs):
        yield path, digest_path(Path(path).expanduser())


def list_files(entry: Entry[Any], knobs: Any) -> list[str]:
    """The paths of a fact `files`: a path, several, or a function of the knobs that gives them."""
    label = f"{entry.title}: its files"
    files = entry.facts.files
    if callable(files):
        files = call_hook(label, files, knobs)
    return (
        [str(files)] if isinstance(files, str | Path) else list(map(str, read_paths(label, files)))
    )


def is_file(text: str) -> bool:
    return os.path.isfile(os.path.expanduser(text))


@functools.cache
def digest_path(path: Path) -> str:
    """The digest of a file, or of all files below a folder; `missing` where nothing is there."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            lines = [f"{file.relative_to(path)} {file_digest(file)}" for file in files]
            return digest_of("\n".join(lines).encode())
        return file_digest(path)[:DIGITS]
    except OSError:
        return MISSING


def join_digests(digests: Collection[str]) -> str:
    """One digest; of several files of one name, that of all of them."""
    if len(digests) == 1:
        return next(iter(digests))
    return digest_of(" ".join(sorted(digests)).encode())


@functools.cache
def closure_of(name: str) -> Digests:
    """The digests of a module and of all that it imports, by the names that messages give them."""
    return tuple(sorted(follow_imports(name).values()))


def follow_imports(name: str) -> dict[str, tuple[str, str]]:
    """Per module its name in messages and its digest: of a module and of all that it imports."""
    modules: dict[str, tuple[str, str]] = {}
    waiting = list(with_parents(name))
    if file_of_module(name) is None:  # what a notebook defines is another one in every run
        modules[name] = (name, secrets.token_hex(DIGITS // 2))
    seen = set(waiting)
    while waiting:
        module = waiting.pop()
        path = file_of_module(module)
        if path is None or not counts(module, path):
            continue
        source = read_source(module, path)
        digest = source.code if is_of_package(module) else source.exact
        modules[module] = (label_of(module, path), digest)
        imports = {*imports_of(module, path, source.imports), *globals_of(module)}
        names = {other for name in imports if is_followed(name) for other in with_parents(name)}
        waiting += names - seen
        seen |= names
    return modules


def imports_of(name: str, path: Path, imports: Collection[str]) -> Iterator[str]:
    """The absolute names of what a module imports."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for imported in imports:
        if not imported.startswith("."):
            yield imported
        elif package:
            with contextlib.suppress(ImportError):
                yield importlib.util.resolve_name(imported, package)


def globals_of(name: str) -> Iterator[str]:
    """The modules behind the globals of a module of the user, who may import by other means."""
    if is_of_package(name):
        return
    for value in tuple(vars(sys.modules.get(name, object)).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(origin := getattr(value, "__module__", None), str):
            yield origin


@functools.cache
def with_parents(name: str) -> list[str]:
    """`a.b.c` -> [`a`, `a.b`, `a.b.c`]: of a user's package, for they are imported too."""
    if is_of_package(name):
        return [name]
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def is_followed(name: str) -> bool:
    """Whether an import may lead to code that counts: not one of a library."""
    top = name.partition(".")[0]
    return top not in sys.stdlib_module_names and not is_of_library(top)


@functools.cache
def is_of_library(top: str) -> bool:
    path = file_of_module(top)
    return path is not None and is_library(path)


def file_of_module(name: str) -> Path | None:
    """The file of a module, imported or not; None where it has none. Nothing is imported."""
    module = sys.modules.get(name)
    if module is None:
        spec = find_spec(name)
        file = spec.origin if spec and spec.has_location else None
    else:
        file = getattr(module, "__file__", None)
    return Path(file) if file and Path(file).is_file() else None


def find_spec(name: str) -> ModuleSpec | None:
    """What an import of the module would load."""
    parent = name.rpartition(".")[0]
    search: Any = None
    if parent in sys.modules:
        search = getattr(sys.modules[parent], "__path__", ())
    elif parent:
        above = find_spec(parent)
        search = (above and above.submodule_search_locations) or ()
    if parent and not search:
        return None
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):  # finders are other people's code
            if spec := finder.find_spec(name, search):
                return spec
    return None


def counts(name: str, path: Path) -> bool:
    """Whether a module is one of a package of plug-ins, or the user's own."""
    if name.partition(".")[0] == "bench":
        return is_of_package(name)
    if is_of_package(name):
        return True
    return not is_library(path)


def is_of_package(name: str) -> bool:
    """Whether a module lies in a package that declares plug-ins; of the bench, in their rooms."""
    top = name.partition(".")[0]
    if top == "bench":
        return name.startswith(ROOMS)
    return top in plugin_packages()


@functools.cache
def plugin_packages() -> frozenset[str]:
    return frozenset(point.value.partition(".")[0] for point in declared("bench.plugins"))


def is_library(path: Path) -> bool:
    """Whether a file is of the standard library or of an installed package."""
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.is_relative_to(folder) for folder in library_folders())


@functools.cache
def library_folders() -> frozenset[str]:
    paths = sysconfig.get_paths()
    return frozenset(paths[name] for name in ("stdlib", "platstdlib"))


def label_of(name: str, path: Path) -> str:
    """What messages call a module: the file name of a user's, the dotted name of a package's."""
    if is_of_package(name):
        return name
    if name.startswith(PLUGIN_FILE) or name == "__main__":
        return path.name
    folders = name.split(".")[: -1 if path.name != "__init__.py" else None]
    return "/".join((*folders, path.name))


def user_modules(name: str) -> Mapping[str, str]:
    """The user's own modules that a module imports, and their digests."""
    return {
        module: digest
        for module, (_, digest) in follow_imports(name).items()
        if module != name and not is_of_package(module)
    }
