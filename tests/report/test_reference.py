"""The published results: they rebuild byte for byte, and runs are compared with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench import report
from bench.report.figures import draw_figures
from bench.report.reference import list_differences
from bench.results.leaderboard import Row
from bench.results.store import Store
from tests.fake_records import build_rows, cell, record

AT = "at[classifier=own:digits-at@1a2b3c4d]"
CARSO = "carso[classifier=own:digits-at@1a2b3c4d,samples=8]"
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


def build_reference(
    clean: int, robust: int, n: int = 100, attack: str = "pgd", defence: str = AT
) -> tuple[Row, ...]:
    """A row of which `clean` and `robust` examples of `n` are right."""
    answers = []
    for name, right in (("none", clean), (attack, robust)):
        asked = cell(name, defence, dataset=f"digits[n={n}]")
        answers.append(record(asked, [1] * right + [0] * (n - right)))
    return build_rows(answers, {}, {})


def test_a_difference_lies_beyond_the_intervals() -> None:
    """The interval of 60 of 100 reaches to 0.69: 72 lies beyond it, and their intervals touch."""
    rows = build_reference(96, 60)
    assert list_differences(rows, build_reference(94, 55)) == []
    assert list_differences(rows, build_reference(94, 72)) == []
    assert len(list_differences(rows, build_reference(50, 20))) == 2
    (difference,) = list_differences(rows, build_reference(94, 20))
    assert difference == (
        "digits linf 1/5, at: robust_acc 0.600 [0.502, 0.691] (n 100) here, "
        "0.200 [0.133, 0.289] (n 100) in the reference"
    )


def test_only_answers_to_one_question_differ() -> None:
    rows = build_reference(96, 60)
    assert list_differences(rows, build_reference(94, 20, attack="square")) == []
    assert list_differences(rows, build_reference(94, 20, defence=CARSO)) == []
    retrained = build_reference(94, 20, defence=AT.replace("1a2b3c4d", "99999999"))
    (difference,) = list_differences(rows, retrained)
    assert difference.endswith("with other weights")


def put_answers(root: Path, right: int, n: int = 100) -> None:
    for name in ("none", "pgd"):
        asked = cell(name, AT, dataset=f"digits[n={n}]")
        Store(root).put(record(asked, [1] * right + [0] * (n - right)))


def test_two_stores_are_compared(tmp_path: Path) -> None:
    root = tmp_path / "results"
    put_answers(root, 75)
    put_answers(tmp_path / "other", 0)
    put_answers(tmp_path / "alike", 76)
    (message,) = report.compare_with_reference(root, tmp_path / "other")[:1]
    assert message.startswith("differs from the reference: digits linf 1/5, at: clean_acc 0.750")
    (message,) = report.compare_with_reference(root, tmp_path / "alike")
    assert message.startswith("1 of 1 rows are in the reference too")
    assert message.endswith("they agree within the 95% intervals")


def test_a_store_is_not_compared_with_itself_or_with_nothing(tmp_path: Path) -> None:
    put_answers(tmp_path, 75)
    assert report.compare_with_reference(tmp_path, tmp_path) == []
    assert report.compare_with_reference(tmp_path, tmp_path / "none") == []
