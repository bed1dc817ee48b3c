"""Change any input of an answer: what rests on it is asked again, and nothing else is.

The plug-ins are files of a user and a package of plug-ins, the data set a folder of images, so
that each input is a file that a test edits and puts back.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import weights
from bench.judging import environment, execute, setup
from bench.judging.interrupts import Interrupts
from bench.judging.stale import Today, describe_stale, find_stale
from bench.questions import registry, sources
from bench.questions.discover import discover
from bench.questions.plan import Plan, plan
from bench.questions.request import Request
from bench.questions.spec import Cell
from bench.report import load_boards
from bench.results.store import Store
from tests.judging.test_execute import Notes

COMMON = '''
"""A plug-in."""
import torch
from torch import nn
from bench import attack, build_inner, defence, weights


class Mean(nn.Module):
    """Class 1 where the image is bright."""
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        bright = x.flatten(1).mean(1) - 0.5
        return torch.stack([-bright, bright], 1) * self.scale

'''
FILES = {
    "helper.py": "import stale_deeper\nSCALE = stale_deeper.SCALE\n",
    "stale_deeper.py": "SCALE = 1.0\n",
    "imports.py": COMMON
    + """
import stale_helper
@defence("stale-imports")
def imports(*, table: str = ""):
    return Mean(stale_helper.SCALE * float(open(table).read()))
""",
    "declares.py": COMMON
    + """
@defence("stale-declares", files=lambda knobs: ["declared.txt"])
def declares():
    return Mean(float(open("declared.txt").read()))
""",
    "wraps.py": COMMON
    + """
@defence("stale-wraps")
def wraps(*, classifier: str = "@standard", inner: str = ""):
    return build_inner(classifier, inner)
""",
    "loads.py": COMMON
    + """
@defence("stale-loads")
def loads():
    return Mean(float(weights.load("file:loaded.safetensors")[0]["scale"]))
""",
    "pinned.py": COMMON
    + """
@defence("stale-pinned")
def pinned(*, classifier: str = "file:pinned.safetensors"):
    return Mean(float(weights.load(classifier)[0]["scale"]))
""",
    "attacks.py": COMMON
    + """
@attack("stale-attack", norms={"linf"}, access="score", family="score")
def nudge(model, x, y, threat):
    return x + float(threat.eps)
""",
    "stale_package/__init__.py": "",
    "stale_package/plugin.py": COMMON
    + """
@defence("stale-package")
def package():
    # A comment.
    return Mean(1.0)
""",
    "table.txt": "1",
    "declared.txt": "1",
}
PLUGINS = ("imports", "declares", "wraps", "loads", "pinned", "attacks")
DEFENCES = {
    "imports": "stale-imports[table=table.txt]",
    "declares": "stale-declares",
    "wraps": "stale-wraps[inner=stale-imports[table=table.txt]]",
    "loads": "stale-loads",
    "pinned": "stale-pinned",
    "package": "stale-package",
}
EVERY = frozenset(itertools.product(DEFENCES, ("none", "stale-attack")))


def of(*names: str) -> frozenset[tuple[str, str]]:
    """The cells of these defences."""
    return frozenset(itertools.product(names, ("none", "stale-attack")))


@dataclass(frozen=True, slots=True)
class World:
    """A folder with all inputs, and the answers to every cell."""

    folder: Path
    store: Store

    def discover(self) -> None:
        discover(tuple(self.folder / f"{name}.py" for name in PLUGINS))
        importlib.import_module("stale_package.plugin")

    def plan(self, **changes: str) -> Plan:
        """What the files of now come to, with other texts of some defences."""
        self.discover()
        return plan(
            [
                Request(
                    dataset=f"folder:{self.folder / 'images'}",
                    defences=tuple({**DEFENCES, **changes}.values()),
                    attacks=("stale-attack",),
                    eps="1/10",
                    n=4,
                )
            ]
        )

    def pending(self, **changes: str) -> frozenset[tuple[str, str]]:
        """The defences and attacks of the cells that would be asked now."""
        asked = self.plan(**changes)
        stale = find_stale(asked.cells, self.store, Today(self.folder))
        return frozenset(map(short, asked.pending(self.store, stale)))

    def lines(self) -> list[str]:
        asked = self.plan()
        stale = find_stale(asked.cells, self.store, Today(self.folder))
        return describe_stale(stale, kept=False)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


def short(cell: Cell) -> tuple[str, str]:
    return cell.defence.name.removeprefix("stale-"), cell.attack.name


def save_image(path: Path, brightness: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 3), brightness, np.uint8)).save(path)


def save_scale(folder: Path, name: str, scale: float) -> None:
    weights.save(folder / f"{name}.safetensors", {"scale": torch.tensor(scale)}, {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("stale")
    built = World(folder, Store(folder / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        packages = sources.plugin_packages() | {"stale_package"}
        patch.setattr(sources, "plugin_packages", lambda: packages)
        for name, text in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name.replace("helper", "stale_helper")).write_text(text)
        for split, label, index in itertools.product(("train", "test"), ("dark", "light"), "01"):
            save_image(
                folder / "images" / split / label / f"{index}.png",
                {"dark": 60, "light": 190}[label] + int(index),
            )
        for name in ("loaded", "pinned"):
            save_scale(folder, name, 1.0)
        answer(built)
        yield built
    for entries in (registry.defences._entries, registry.attacks._entries):
        for name in [name for name in entries if name.startswith("stale-")]:
            del entries[name]
    for name in [name for name in sys.modules if name.startswith("stale_")]:
        del sys.modules[name]
    setup.forget()
    sources.forget_sources()


def answer(world: World) -> None:
    asked = world.plan()
    Today(world.folder)
    how = {"device": "cpu", "data_dir": world.folder, "command": "test"}
    assert execute.execute(asked.cells, world.store, watch=Notes(), **how) == 0


@pytest.fixture(autouse=True)
def _put_back(world: World) -> Iterator[None]:
    """Every input is after a test what it was before, and so are the answers."""
    files = {path: path.read_bytes() for path in world.folder.rglob("*") if path.is_file()}
    yield
    for path in set(world.folder.rglob("*")) - set(files):
        if path.is_file() and "cache" not in str(path):
            path.unlink()
    for path, data in files.items():
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)
    sys.modules.pop("stale_package.plugin", None)
    importlib.invalidate_caches()


def replace_text(name: str, old: str, new: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        text = (world.folder / name).read_text()
        assert old in text
        world.write(name, text.replace(old, new))
        for path in world.folder.rglob("*.pyc"):
            path.unlink()

    return change


def edit_image(world: World) -> None:
    save_image(world.folder / "images/test/dark/0.png", 61)


def edit_label(world: World) -> None:
    path = world.folder / "images/test/dark/0.png"
    path.rename(world.folder / "images/test/light/2.png")


def edit_training_image(world: World) -> None:
    save_image(world.folder / "images/train/dark/0.png", 99)


def touch_everything(world: World) -> None:
    for name in FILES:
        path = world.folder / name.replace("helper", "stale_helper")
        path.write_bytes(path.read_bytes())


CHANGES: dict[str, tuple[Callable[[World], None], frozenset[tuple[str, str]]]] = {
    "code of a plug-in": (replace_text("declares.py", "- 0.5", "- 0.4"), of("declares")),
    "comment in a user's file": (
        replace_text("loads.py", "import torch", "import torch  # x"),
        of("loads"),
    ),
    "code of the inner defence": (
        replace_text("imports.py", "- 0.5", "- 0.4"),
        of("imports", "wraps"),
    ),
    "code of the outer defence": (replace_text("wraps.py", "- 0.5", "- 0.4"), of("wraps")),
    "module that a plug-in imports": (
        replace_text("stale_helper.py", "SCALE = ", "SCALE = 2 * "),
        of("imports", "wraps"),
    ),
    "module that this one imports": (
        replace_text("stale_deeper.py", "1.0", "3.0"),
        of("imports", "wraps"),
    ),
    "code of a package": (replace_text("stale_package/plugin.py", "- 0.5", "- 0.4"), of("package")),
    "comment in a package": (
        replace_text("stale_package/plugin.py", "# A comment", "# Another"),
        of(),
    ),
    "docstring in a package": (
        replace_text("stale_package/plugin.py", "Class 1 where", "Class 1, where"),
        of(),
    ),
    "format of a package": (
        replace_text(
            "stale_package/plugin.py", "return Mean(1.0)", "return Mean(\n        1.0,\n    )"
        ),
        of(),
    ),
    "attack": (
        replace_text("attacks.py", "return x +", "return x -"),
        frozenset((name, "stale-attack") for name in DEFENCES),
    ),
    "file that a knob names": (replace_text("table.txt", "1", "2"), of("imports", "wraps")),
    "file that a plug-in declares": (replace_text("declared.txt", "1", "2"), of("declares")),
    "file that is gone": (lambda world: (world.folder / "declared.txt").unlink(), of("declares")),
    "weights that our loader read": (
        lambda world: save_scale(world.folder, "loaded", 2.0),
        of("loads"),
    ),
    "weights with a pin": (lambda world: save_scale(world.folder, "pinned", 2.0), of("pinned")),
    "image": (edit_image, EVERY),
    "label": (edit_label, EVERY),
    "image for training": (edit_training_image, of()),
    "nothing but the time of files": (touch_everything, of()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_rests_on_a_changed_input_is_asked_again_and_nothing_else(
    world: World, name: str
) -> None:
    assert world.pending() == of()
    change, expected = CHANGES[name]
    change(world)
    sys.modules.pop("stale_package.plugin", None)
    assert world.pending() == expected


def test_a_changed_knob_is_another_question(world: World) -> None:
    world.write("other.txt", "1")
    assert world.pending(imports="stale-imports[table=other.txt]") == of("imports")


def test_a_library_of_another_version_asks_everything_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = tuple((name, f"{text}.1") for name, text in environment.versions())
    monkeypatch.setattr(environment, "versions", lambda: versions)
    assert world.pending() == EVERY
    (line,) = world.lines()
    assert line.startswith("12 answers are of other libraries: numpy, ")


def test_one_line_says_what_changed(world: World) -> None:
    replace_text("stale_deeper.py", "1.0", "3.0")(world)
    replace_text("declares.py", "- 0.5", "- 0.4")(world)
    edit_image(world)
    assert sorted(world.lines()) == [
        "2 answers are of other code: declares.py changed; asked again",
        "4 answers are of other code: stale_deeper.py changed; asked again",
        "6 answers are of other images: folder changed; asked again",
    ]


def without_source(world: World) -> None:
    """Make the answers those of a bench that kept no sources."""
    for record in world.store.records():
        env = replace(record.env, source="", sources=(), files=())
        world.store.put(replace(record, env=env))


def test_answers_of_unknown_code_are_stale_unless_their_folder_says_otherwise(
    world: World,
) -> None:
    without_source(world)
    assert world.lines() == ["12 answers are of unknown code; asked again"]
    world.write("out/sources.json", '{"unknown": true}')
    assert world.pending() == of()
    edit_image(world)
    assert world.pending() == EVERY, "the images are known all the same"


def test_the_reference_counts_as_of_today() -> None:
    reference = Path(__file__).parents[2] / "results/reference"
    assert Store(reference).equal_sources().unknown


def test_a_table_declares_two_sources_equal(world: World) -> None:
    replace_text("declares.py", "- 0.5", "- 0.50")(world)
    assert world.pending() == of("declares")
    (cell, *_) = (c for c in world.plan().cells if c.defence.name == "stale-declares")
    record = world.store.get(cell)
    assert record is not None
    then = dict(record.env.sources)["declares.py"]
    now = dict(sources.sources_of(cell))["declares.py"]
    table = {"equal": {"declares.py": [[then, now]]}}
    world.write("out/sources.json", json.dumps(table))
    assert world.pending() == of()


def test_a_row_never_mixes_sources(world: World) -> None:
    """The clean images are asked again after an edit, the attack is not: it is left out."""
    replace_text("declares.py", "self.scale\n\n", "self.scale * 3\n\n")(world)
    cells = [cell for cell in world.plan().cells if cell.defence.name == "stale-declares"]
    Today(world.folder)
    how = {"device": "cpu", "data_dir": world.folder, "command": "test"}
    execute.execute(cells[:1], world.store, watch=Notes(), **how)
    (board,) = load_boards(world.store)
    (row,) = (row for row in board.rows if row.cell.defence.name == "stale-declares")
    assert [record.family for record in row.records] == ["none"]
    assert "stale-attack: of other code (declares.py)" in " ".join(row.reasons)
    assert not row.complete


def test_parts_of_two_codes_never_join(world: World) -> None:
    (cell, *_) = (c for c in world.plan().cells if c.defence.name == "stale-declares")
    cell = replace(cell, batch=2)
    Today(world.folder)
    run = execute.Run("cpu", world.folder, "test")
    wrong = execute.answer_batch(cell, 0, run)
    world.store.put_part(replace(wrong, correct=(0, 0)), 0)
    assert list(execute.kept_parts(cell, world.store, run)) == [0]
    replace_text("declares.py", "self.scale\n\n", "self.scale * 3\n\n")(world)
    world.discover()
    Today(world.folder)
    assert execute.kept_parts(cell, world.store, run) == {}
    record = execute.answer_cell(cell, world.store, run, Notes(), Interrupts())
    assert record.accuracy == 1.0


def test_today_loads_the_images_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = setup.load

    def counted(*args: object, **how: object) -> object:
        loads.append(args)
        return load(*args, **how)

    monkeypatch.setattr(setup, "load", counted)
    asked = world.plan()
    today = Today(world.folder)
    for _ in range(2):
        find_stale(asked.cells, world.store, today)
    execute.Run("cpu", world.folder, "test").environment(asked.cells[0])
    assert len(loads) == 1


def test_the_sources_of_two_hundred_cells_take_no_time() -> None:
    cells = plan([Request()]).cells
    assert len(cells) > 150
    [sources.sources_of(cell) for cell in cells]
    seconds = []
    for _ in range(5):
        sources.forget_sources()
        start = time.perf_counter()
        [sources.sources_of(cell) for cell in cells]
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05
