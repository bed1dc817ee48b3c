"""Edit a plug-in and type the command again: the new code answers, and the board shows it alone."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.questions.registry import defences
from bench.results.store import Store
from tests.cli.commands import run

MINE = """
from torch import nn
from bench import build_classifier, defence


class Mine(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x):
        self.calls += x.requires_grad and len(x) == 20
        if CRASHES and self.calls > 1:
            raise RuntimeError("a bug of mine")
        return self.net(PREPARE(x))


@defence("edited")
def mine(*, classifier: str = "@robust"):
    return Mine(build_classifier(classifier))


"""
WRONG = MINE + "CRASHES = False\ndef PREPARE(x): return 1 - x\n"
CRASHES = MINE + "CRASHES = True\ndef PREPARE(x): return 1 - x\n"
RIGHT = MINE + "CRASHES = False\ndef PREPARE(x): return x\n"
PGD = "pgd[loss=ce,steps=3,restarts=1]"


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "mine.py"
    defences._entries.pop("edited", None)


def type_command(mine: Path, *words: str) -> int:
    out = mine.parent / "out"
    question = ["--defences", "edited", "--attacks", PGD, "--n", "40", "--batch", "20"]
    return run(["--with", str(mine), *question, "--out", str(out), *words])


def read_row(mine: Path) -> dict[str, str]:
    (row,) = csv.DictReader((mine.parent / "out/leaderboards/digits-linf-1_5.csv").open())
    return row


def answers_of(mine: Path, text: str, folder: str) -> list[tuple[int, ...]]:
    """What a run of that code alone answers."""
    alone = mine.parent / folder / "mine.py"
    alone.parent.mkdir()
    alone.write_text(text)
    defences._entries.pop("edited", None)
    assert type_command(alone) == 0
    defences._entries.pop("edited", None)
    return [record.correct for record in Store(alone.parent / "out").records()]


def test_an_edited_plugin_is_asked_again(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text(WRONG)
    assert type_command(mine) == 0
    assert float(read_row(mine)["clean_acc"]) < 0.3
    mine.write_text(RIGHT)
    capsys.readouterr()
    assert type_command(mine) == 0
    said = capsys.readouterr().out
    assert "note: 2 answers are of other code: mine.py changed; asked again\n" in said
    assert "2 cells answered, 0 were in" in said
    assert float(read_row(mine)["clean_acc"]) > 0.9
    assert not list(mine.parent.glob("out/records/**/*.stale.json"))
    assert type_command(mine) == 0
    assert "all 2 cells are in" in capsys.readouterr().out


def test_what_fails_now_is_not_shown_with_its_old_answer(mine: Path) -> None:
    mine.write_text(RIGHT)
    assert type_command(mine) == 0
    mine.write_text(CRASHES)
    assert type_command(mine) == 1
    row = read_row(mine)
    assert row["robust_acc"] == ""
    assert "a bug of mine" in row["reasons"]
    assert float(row["clean_acc"]) < 0.3, "that of the new code"


def test_a_resumed_cell_has_batches_of_one_code(mine: Path) -> None:
    mine.write_text(CRASHES)
    assert type_command(mine) == 1
    assert list(mine.parent.glob("out/records/**/*.part0.json"))
    mine.write_text(RIGHT)
    assert type_command(mine) == 0
    correct = [record.correct for record in Store(mine.parent / "out").records()]
    assert correct == answers_of(mine, RIGHT, "alone")


def test_keep_stale_keeps_old_answers_with_a_mark(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.write_text(WRONG)
    assert type_command(mine) == 0
    before = read_row(mine)
    mine.write_text(RIGHT)
    capsys.readouterr()
    assert type_command(mine, "--keep-stale") == 0
    said = capsys.readouterr().out
    assert "2 answers are of other code: mine.py changed; kept" in said
    assert "all 2 cells are in" in said
    row = read_row(mine)
    assert row["robust_acc"] == before["robust_acc"]
    reason = "kept, though of other code: mine.py changed: none, pgd"
    assert reason in row["reasons"]
    mine.write_text(WRONG)
    assert type_command(mine) == 0
    assert read_row(mine) == before, "what was kept is of today again"


def test_a_dry_run_writes_nothing(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text(WRONG)
    assert type_command(mine) == 0
    files = {path: path.read_bytes() for path in mine.parent.rglob("out/**/*.json")}
    mine.write_text(RIGHT)
    assert type_command(mine, "--dry-run", "--keep-stale") == 0
    assert "2 answers are of other code: mine.py changed; kept" in capsys.readouterr().out
    assert files == {path: path.read_bytes() for path in mine.parent.rglob("out/**/*.json")}


def test_a_moved_folder_of_answers_is_of_today(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.write_text(RIGHT)
    assert type_command(mine) == 0
    there = mine.parent / "there"
    there.mkdir()
    for name in ("mine.py", "out"):
        shutil.move(mine.parent / name, there / name)
    defences._entries.pop("edited", None)
    capsys.readouterr()
    assert type_command(there / "mine.py") == 0
    assert "all 2 cells are in" in capsys.readouterr().out


def test_an_edited_image_folder_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from PIL import Image

    for split in ("train", "test"):
        for label, value in (("dark", 0), ("light", 255)):
            path = tmp_path / "images" / split / label / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
    plugin = tmp_path / "brightness.py"
    plugin.write_text(
        "import torch\nfrom torch import nn\nfrom bench import defence\n"
        "class Bright(nn.Module):\n"
        "    def forward(self, x):\n"
        "        s = x.flatten(1).mean(1) - 0.5\n"
        "        return torch.stack([-s, s], 1)\n"
        "@defence('edited-images')\n"
        "def make():\n    return Bright()\n"
    )
    words = ["--with", str(plugin), "--dataset", f"folder:{tmp_path / 'images'}", "--n", "2"]
    words += ["--defences", "edited-images", "--attacks", "none", "--out", str(tmp_path / "out")]
    try:
        assert run(words) == 0
        (tmp_path / "images/test/dark/1.png").rename(tmp_path / "images/test/light/2.png")
        capsys.readouterr()
        assert run(words) == 0
        said = capsys.readouterr().out
        assert "1 answer is of other images: folder changed; asked again" in said
        (record,) = Store(tmp_path / "out").records()
        assert record.correct == (0, 1) or record.correct == (1, 0)
        assert json.loads(next(tmp_path.glob("out/records/**/none*.json")).read_text())
    finally:
        defences._entries.pop("edited-images", None)
