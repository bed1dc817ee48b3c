"""The source of one module, as far as it decides answers: a digest, and what it imports.

Standard library only.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.files import cache_folder, write_text

DIGITS = 16
FORM = 1  # of what is kept: one more where the digest of the same source changes
WITH_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
IGNORED = ("ctx", "kind", "type_comment", "type_ignores")


@dataclass(frozen=True, slots=True)
class Source:
    """`exact` is a digest of the bytes, `code` one that comments, docstrings and formatting leave.

    `imports` are the modules that the source names, or attributes of modules; relative ones begin
    with dots.
    """

    exact: str
    code: str
    imports: tuple[str, ...]


# What was read of a module, beside the very module object: one that is imported again is read again
_read: dict[str, tuple[ModuleType | None, Source]] = {}


def read_source(name: str, path: Path) -> Source:
    """The source of the module `name` at `path`, as it was when it was first read."""
    module = sys.modules.get(name)
    known = _read.get(name)
    if known and known[0] is module and module is not None:
        return known[1]
    return remember_source(name, module, path.read_bytes())


def remember_source(name: str, module: ModuleType | None, data: bytes) -> Source:
    """Keep that the module was made of these bytes."""
    source = parse_source(data)
    _read[name] = (module, source)
    return source


def parse_source(data: bytes) -> Source:
    """The source of these bytes; what was parsed before, in this run or an earlier one, is kept."""
    exact = digest_of(data)
    entries = source_cache().entries
    if exact not in entries:
        entries[exact] = summarise(data)
    code, imports = entries[exact]
    return Source(exact, code or exact, tuple(imports))


class SourceCache:
    """What earlier runs parsed, by the digest of the bytes: to parse a module takes 5 ms."""

    def __init__(self) -> None:
        self.path = cache_folder() / f"sources-{FORM}.json"
        self.entries: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self.entries = dict(json.loads(self.path.read_text()))
        self.kept = len(self.entries)

    def keep(self) -> None:
        """Write what is new for later runs."""
        if len(self.entries) > self.kept:
            self.kept = len(self.entries)
            with contextlib.suppress(OSError):  # it is a convenience
                write_text(self.path, json.dumps(self.entries, sort_keys=True) + "\n")


@functools.cache
def source_cache() -> SourceCache:
    return SourceCache()


def summarise(data: bytes) -> tuple[str, list[str]]:
    """The digest of the code, and the imports; empty where the bytes are no Python."""
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return "", []
    imports = dict.fromkeys(name for node in ast.walk(tree) for name in names_imported(node))
    return digest_of("\n".join(list_tokens(tree)).encode()), list(imports)


def names_imported(node: ast.AST) -> Iterator[str]:
    """What an import statement names; nothing of another node."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        yield base
        separator = "." if node.module else ""
        yield from (f"{base}{separator}{alias.name}" for alias in node.names if alias.name != "*")


def list_tokens(value: Any) -> Iterator[str]:
    """A tree less docstrings and positions, in words that are the same in every Python version."""
    if isinstance(value, list):
        yield "["
        for item in value:
            yield from list_tokens(item)
        yield "]"
    elif isinstance(value, ast.AST):
        yield type(value).__name__
        for field in value._fields:
            child = getattr(value, field, None)
            if field == "body" and isinstance(value, WITH_DOCSTRINGS) and ast.get_docstring(value):
                child = child[1:] if child else child
            if child not in (None, []) and field not in IGNORED:
                yield field
                yield from list_tokens(child)
    else:
        yield repr(value)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]
