"""The Markdown pages of the project, and what they mention: links, code spans, modules."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read_prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def fenced_blocks(path: Path, language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, path.read_text(), re.DOTALL | re.MULTILINE)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def links(text: str) -> list[str]:
    """The targets of links and images that stay within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not target.startswith(("http:", "https:"))]


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of the page."""
    headings = re.findall(r"^#+ (.*)$", read_prose(path), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def table_rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the rows of the first table under a heading, without its head."""
    section = text.partition(f"\n## {heading}\n")[2]
    table = section[section.index("\n|") + 1 :].partition("\n\n")[0]
    lines = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
