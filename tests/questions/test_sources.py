"""The source of a module: what counts of it, and which modules are followed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.errors import BadInput
from bench.questions import registry
from bench.questions.discover import discover, load_file
from bench.questions.plan import plan
from bench.questions.registry import defences
from bench.questions.request import Request
from bench.questions.source_code import parse_source
from bench.questions.sources import closure_of, forget_sources, sources_of

PLAIN = b'''"""A module."""
import os.path as place
from .near import thing
from pkg import *


def f(x, y=1):
    """A function."""
    return x + y  # a sum
'''
SAME = b"""import os.path as place
from .near import thing
from pkg import *
def f(
    x,
    y=1,
):
    return (x
        + y)
"""
PLUGIN = """from torch import nn
from bench import defence

@defence("{name}")
def make(*, k: int = {k}):
    return nn.Identity()
"""


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    names = set(defences._entries)
    modules = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in set(defences._entries) - names:
        del defences._entries[name]
    for name in set(sys.modules) - modules:
        if name.startswith("bench_plugin_"):
            del sys.modules[name]
    forget_sources()


def test_comments_docstrings_and_format_are_not_code() -> None:
    one, other = parse_source(PLAIN), parse_source(SAME)
    assert one.code == other.code
    assert one.exact != other.exact
    assert one.imports == ("os.path", ".near", ".near.thing", "pkg")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"x + y", b"x - y"),
        (b"y=1", b"y=2"),
        (b"y=1", b"y=True"),
        (b"y=1", b"y=1.0"),
        (b"y=1", b"*, y=1"),
        (b"return x + y", b"return None"),
        (b"def f", b"async def f"),
        (b".near", b"..near"),
    ],
)
def test_every_change_of_code_is_one(old: bytes, new: bytes) -> None:
    assert parse_source(PLAIN.replace(old, new)).code != parse_source(PLAIN).code


def test_what_is_no_python_counts_by_its_bytes() -> None:
    source = parse_source(b"\x00\xff not Python")
    assert source.code == source.exact
    assert source.imports == ()


def test_our_modules_are_followed_but_for_the_judging_core() -> None:
    cells = plan([Request(defences=("jpeg",), attacks=("pgd",))]).cells
    names = {name for name, _ in sources_of(cells[-1])}
    assert names >= {
        *("baselines.jpeg", "baselines.transform", "baselines.own", "baselines.nets.cnn"),
        *("bench.attacks.gradient", "bench.attacks.losses", "bench.data.digits"),
    }
    rooms = ("baselines", "carso", "bench.attacks", "bench.data")
    assert all(name.startswith(rooms) for name in names), names
    assert not {name for name in names if name.startswith("carso.train")}


def test_the_attack_inside_of_a_check_counts() -> None:
    cells = plan([Request(defences=("at",), attacks=("planted[attack=square]",))]).cells
    names = {name for name, _ in sources_of(cells[-1])}
    assert {"bench.checks.planted_examples", "bench.attacks.via_autoattack"} <= names


def test_imports_inside_of_functions_and_in_packages_are_followed(tmp_path: Path) -> None:
    package = tmp_path / "far_package"
    package.mkdir()
    (package / "__init__.py").write_text("A = 1\n")
    (package / "lazy.py").write_text("B = 1\n")
    mine = tmp_path / "far.py"
    mine.write_text("import numpy\ndef f():\n    from far_package.lazy import B\n    return B\n")
    module = load_file(mine)
    names = [name for name, _ in closure_of(module.__name__)]
    assert names == ["far.py", "far_package/__init__.py", "far_package/lazy.py"]
    assert "far_package.lazy" not in sys.modules, "nothing is imported to look at it"


def test_two_files_of_one_stem_are_two_plugins(tmp_path: Path) -> None:
    files = []
    for folder, name in (("a", "stem-a"), ("b", "stem-b")):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "mine.py")
        files[-1].write_text(PLUGIN.format(name=name, k=len(files)))
    discover(tuple(files))
    assert defences.get("stem-a").make is not defences.get("stem-b").make
    assert [defences.get(name).knobs["k"].default for name in ("stem-a", "stem-b")] == [1, 2]
    assert defences.get("stem-a").make.__module__ != defences.get("stem-b").make.__module__
    assert closure_of(defences.get("stem-a").make.__module__)[0][0] == "mine.py"


def test_one_name_in_two_files_of_one_stem_is_refused(tmp_path: Path) -> None:
    files = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "mine.py")
        files[-1].write_text(PLUGIN.format(name="stem-twice", k=1))
    with pytest.raises(BadInput, match="defence 'stem-twice' is registered twice") as caught:
        discover(tuple(files))
    assert "\n" not in str(caught.value)


def test_an_edit_of_the_same_size_and_second_is_seen(tmp_path: Path) -> None:
    """Python's own cache of a module goes by its size and the second of its last change."""
    mine, helper = tmp_path / "quick.py", tmp_path / "quick_helper.py"
    for k in (1, 2, 3):
        helper.write_text(f"K = {k}\n")
        mine.write_text("import quick_helper\n" + PLUGIN.format(name="quick", k="quick_helper.K"))
        discover((mine,))
        forget_sources()
        assert defences.get("quick").knobs["k"].default == k


def test_a_plugin_without_a_file_is_another_one_in_every_run() -> None:
    def make(*, k: int = 1) -> None:
        """Of a notebook."""

    make.__module__ = "nowhere_to_be_found"
    registry.defence("of-a-notebook")(make)
    (cell, *_) = plan([Request(defences=("of-a-notebook",), attacks=("none",))]).cells
    first = sources_of(cell)
    assert sources_of(cell) == first
    forget_sources()
    assert sources_of(cell) != first
