"""What a page mentions exists: files, headings, modules, targets of make."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT, anchors, code_spans, links, page_name, read_prose

FOLDERS = ("baselines", "bench", "benchmarks", "carso", "docs", "results", "tests", "weights")
COMMAND = re.compile(r"python -m ([a-z_]\w*(?:\.\w+)*)")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_in_code_exist(page: Path) -> None:
    for span in code_spans(read_prose(page)):
        first = span.partition("/")[0]
        if first in FOLDERS and re.fullmatch(r"[\w./-]+", span) and "/" in span:
            assert is_written_by_runs(span) or (ROOT / span).exists(), span


def is_written_by_runs(path: str) -> bool:
    return path.startswith("results/") and not path.startswith("results/reference")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_name_modules_that_run(page: Path) -> None:
    for name in COMMAND.findall(page.read_text()):
        spec = importlib.util.find_spec(name)
        assert spec, name
        if spec.submodule_search_locations:
            assert importlib.util.find_spec(f"{name}.__main__"), name


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in re.findall(r"(?:`|^|\n)make ([a-z]+)", page.read_text()):
        assert name in targets, name
