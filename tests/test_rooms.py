"""What the house promises beyond its import contracts: who prints, and what stays free of torch."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import bench.report
import bench.results
import bench.soundness.audits
from bench.entry_points import ROOT

FILES = [path for path in sorted((ROOT / "bench").rglob("*.py")) if "cli" not in path.parts]
TORCH_FREE = [
    "bench.api",
    "bench.cli.app",
    "bench.entry_points",
    "bench.files",
    "bench.questions.plan",
    "bench.questions.registry",
    "bench.soundness.assess",
    "bench.weights",
    *(
        module.name
        for package in (bench.report, bench.results, bench.soundness.audits)
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    ),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_below_the_command_line_prints(path: Path) -> None:
    code = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if is_name(node)}
    assert not code & {"print", "sys.stdout"}


def is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.Attribute)


def test_planning_and_reading_results_load_neither_torch_nor_numpy() -> None:
    code = (
        f"import sys, {', '.join(TORCH_FREE)}; "
        "print({'torch', 'numpy', 'scipy', 'pandas'} & sys.modules.keys())"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
