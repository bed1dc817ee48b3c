"""The page of the architecture is true: its files exist, its names import, no room is left out."""

from __future__ import annotations

import pkgutil
import re

import pytest

from tests.pages import ROOT, code_spans, read_prose, table_rows

PAGE = ROOT / "docs" / "architecture.md"
TEXT = read_prose(PAGE)
SPANS = code_spans(TEXT)
PATHS = sorted({span for span in SPANS if re.fullmatch(r"[\w./-]+(/|\.\w{2,4})", span)})
NAMES = sorted({span for span in SPANS if re.fullmatch(r"(bench|carso|baselines)(\.\w+)+", span)})


@pytest.mark.parametrize("path", [path for path in PATHS if "/" in path or path.endswith(".toml")])
def test_a_path_of_the_page_exists(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PATHS])
def test_a_name_of_the_page_resolves(name: str) -> None:
    assert pkgutil.resolve_name(name) is not None


def test_every_room_is_in_the_table() -> None:
    rooms = {f"bench/{path.parent.name}/" for path in (ROOT / "bench").glob("*/__init__.py")}
    listed = [code_spans(row[0])[0] for row in table_rows(TEXT, "Rooms")]
    assert len(rooms) == 9
    assert sorted(listed) == sorted(rooms)


def test_every_question_has_an_answer_in_the_code() -> None:
    rows = table_rows(TEXT, "Where is ...?")
    assert len(rows) >= 12
    for question, answer in rows:
        spans = code_spans(answer)
        assert spans, question
        assert set(spans) <= {*PATHS, *NAMES}, question


def test_every_letter_of_a_code_is_explained() -> None:
    from bench.soundness.codes import CODES

    letters = {code.id[0] for code in CODES}
    explained = set(re.findall(r"^\| ([A-Z]) \|", TEXT, re.MULTILINE))
    assert letters <= explained


def test_words_of_the_glossary_are_sorted_and_unique() -> None:
    words = [row[0] for row in table_rows(TEXT, "Glossary")]
    assert len(words) >= 18
    assert words == sorted(set(words))
