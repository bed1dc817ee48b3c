"""The files of CONTRIBUTING.md run as they stand, together, in one sweep from an empty folder."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys

import pytest

from tests.pages import ROOT, fenced_blocks

PAGE = ROOT / "CONTRIBUTING.md"
# Its answer turns with every 1/255 of brightness.
JUMPY = """
import torch
from bench import defence

class Jumpy(torch.nn.Module):
    def forward(self, x):
        odd = (255 * x.mean((1, 2, 3))).round() % 2
        return torch.stack([odd, 1 - odd], 1)

@defence("jumpy")
def jumpy(*, classifier: str = "@standard"):
    return Jumpy()
"""
FILES = {block.split('"""')[1].partition(":")[0]: block for block in fenced_blocks(PAGE, "python")}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The rows of the leaderboard by defence."""
    folder = tmp_path_factory.mktemp("contributing")
    words = ["--dataset", "grey", "--defences", "undefended,blur,jumpy"]
    words += ["--attacks", "corners,fgsm,brightness", "--n", "10", "--out", "out"]
    for name, text in {**FILES, "jumpy.py": JUMPY}.items():
        (folder / name).write_text(text)
        words += ["--with", name]
    sweep = subprocess.run(
        [sys.executable, "-m", "bench.run", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert sweep.returncode == 0, sweep.stderr
    with (folder / "out/leaderboards/grey-linf-1_10.csv").open() as file:
        return {row["defence"]: row for row in csv.DictReader(file)}


def test_there_is_a_file_for_each_kind_of_plugin() -> None:
    names = {"my_defence.py", "my_attack.py", "my_check.py", "my_data.py", "my_classifier.py"}
    assert set(FILES) == names


def test_plugins_of_the_page_make_a_leaderboard(rows: dict[str, dict[str, str]]) -> None:
    """The classes are 0.3 apart in grey: no attack at eps 1/10 turns one into the other."""
    assert set(rows) == {"undefended", "blur", "jumpy"}
    for name in ("undefended", "blur"):
        assert rows[name]["clean_acc"] == "1.0000"
        assert rows[name]["acc_corners"] == rows[name]["acc_fgsm"] == "1.0000"


def test_the_check_of_the_page_flags_what_follows_brightness(
    rows: dict[str, dict[str, str]],
) -> None:
    flag = "D100 soft: 100% of the answers change with the brightness"
    assert flag in rows["jumpy"]["reasons"]
    assert "D100" not in rows["undefended"]["reasons"] + rows["blur"]["reasons"]


def test_imports_of_the_page_are_public() -> None:
    """A decorator and what a plug-in builds on come from `bench` itself."""
    for text in FILES.values():
        assert re.search(r"^from bench import ", text, re.MULTILINE)
