"""Docstrings are read once and functions fit on a screen: the limits that the code keeps to."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = ["bench", "carso", "baselines"]
WORDS = 25  # of a sentence
LINES = 40  # of a function, less its signature and its docstring

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(*packages: str) -> Iterator[tuple[str, Documented]]:
    """Each module, class and function of `packages`, with its place: path, line and name."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, Documented):
                    line = getattr(node, "lineno", 1)
                    name = getattr(node, "name", "module")
                    yield f"{path.relative_to(ROOT)}:{line} {name}", node


def sentences(docstring: str) -> list[str]:
    """The sentences of a docstring: a stop, a semicolon, a blank line or a list's item ends one.

    An indented block (code, a formula) holds none.
    """
    parts = []
    for block in re.split(r"\n\s*\n|\n\s*(?=(?:[-*]|\d+\.) )", docstring):
        if not block.startswith("    "):
            parts += re.split(r"(?<=[.!?;])\s+", " ".join(block.split()))
    return parts


def count_words(sentence: str) -> int:
    """Words are the tokens that hold a letter."""
    return sum(bool(re.search(r"[A-Za-z]", token)) for token in sentence.split())


def test_no_sentence_of_a_docstring_is_longer_than_25_words() -> None:
    long = [
        f"{place}: {sentence}"
        for place, node in documented(*CODE, "benchmarks")
        for sentence in sentences(ast.get_docstring(node) or "")
        if count_words(sentence) > WORDS
    ]
    assert not long, "\n".join(long)


def test_no_function_is_longer_than_40_lines() -> None:
    """Neither the signature nor the docstring counts."""
    long = [
        f"{place}: {count_lines(node)} lines"
        for place, node in documented(*CODE)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and count_lines(node) > LINES
    ]
    assert not long, "\n".join(long)


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first statement of the body that is no docstring to the last one."""
    body = function.body[bool(ast.get_docstring(function)) :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_sentences_end_at_stops_semicolons_items_and_blank_lines() -> None:
    text = (
        "One, 3.5 and `a.b`; two. Three goes\non\n\n"
        "    code = is + no * sentence\n\n"
        "Four:\n\n- five\n  goes on\n- six\n"
    )
    assert sentences(text) == [
        "One, 3.5 and `a.b`;",
        "two.",
        "Three goes on",
        "Four:",
        "- five goes on",
        "- six",
    ]
    assert count_words("a `b.c` = 3 (d)") == 3


def test_lines_of_a_function_are_those_of_its_body() -> None:
    (function,) = ast.parse(
        'def f(\n    a,\n):\n    """One.\n\n    Two."""\n    x = a\n\n    return x\n'
    ).body
    assert isinstance(function, ast.FunctionDef)
    assert count_lines(function) == 3
