"""What we publish rebuilds from its records, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench import report
from bench.report.figures import draw_figures
from bench.results.store import Store

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the records and plans of the reference, and all that is made of them."""
    root = tmp_path_factory.mktemp("reference")
    for name in ("records", "plans"):
        shutil.copytree(REFERENCE / name, root / name)
    report.write(root)
    draw_figures(report.load_boards(Store(root)), root / "figures")
    return root


def read_files(root: Path, pattern: str) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.glob(pattern)}


@pytest.mark.parametrize("pattern", ["leaderboards/*", "report.html"])
def test_leaderboards_and_page_rebuild_byte_for_byte(rebuilt: Path, pattern: str) -> None:
    expected = read_files(REFERENCE, pattern)
    actual = read_files(rebuilt, pattern)
    assert expected
    assert set(actual) == set(expected)
    assert [name for name in expected if actual[name] != expected[name]] == []


def test_figures_rebuild_byte_for_byte(rebuilt: Path) -> None:
    """The pictures of adversarial images beside them are made by `carso.analysis`."""
    expected = read_files(REFERENCE, "figures/*.png")
    actual = read_files(rebuilt, "figures/*.png")
    assert len(actual) > len(read_files(REFERENCE, "leaderboards/*.md")) / 2
    assert [name for name in actual if actual[name] != expected.get(name)] == []
