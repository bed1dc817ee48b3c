"""What a page mentions exists: files, headings, modules, targets of make."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
import typer.main

from bench.cli.app import app
from tests.pages import PAGES, ROOT, anchors, code_spans, links, page_name, read_prose

FOLDERS = ("baselines", "bench", "benchmarks", "carso", "docs", "results", "tests", "weights")
HISTORY = ROOT / "CHANGELOG.md"  # it names what is gone
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = tuple(PROJECT["entry-points"])
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


@pytest.mark.parametrize("page", [page for page in PAGES if page != HISTORY], ids=page_name)
def test_names_in_code_resolve(page: Path) -> None:
    for span in code_spans(read_prose(page)):
        name = re.match(r"(bench|carso|baselines|benchmarks)(\.\w+)+(?=$|[(\[])", span)
        if name and span not in GROUPS and not (ROOT / span).is_file():
            assert pkgutil.resolve_name(name[0]) is not None


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_name_modules_that_run(page: Path) -> None:
    for name in COMMAND.findall(page.read_text()):
        spec = importlib.util.find_spec(name)
        assert spec, name
        if spec.submodule_search_locations:
            assert importlib.util.find_spec(f"{name}.__main__"), name


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_of_the_application_exist(page: Path) -> None:
    commands = typer.main.get_group(app).commands
    for name in re.findall(r"carso-bench ([a-z]+)", page.read_text()):
        assert name in commands


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in re.findall(r"(?:`|^|\n)make ([a-z]+)", page.read_text()):
        assert name in targets, name
