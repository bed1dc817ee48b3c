"""What the house promises beyond its import contracts: who prints, and what stays free of torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for package in ("bench", "baselines", "carso")
    for path in sorted((ROOT / package).rglob("*.py"))
]
TORCH_FREE = (
    "bench",
    "bench.questions.spec",
    "bench.questions.registry",
    "bench.questions.plan",
    "bench.results.record",
    "bench.results.store",
    "bench.results.published",
    "bench.results.leaderboard",
    "bench.results.statistics",
    "bench.soundness.assess",
    "bench.report",
    "bench.weights",
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in FILES if "bench" in path.parts], ids=name)
def test_nothing_below_the_command_line_prints(path: Path) -> None:
    prints = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not prints or "cli" in path.parts


def test_planning_and_reporting_load_no_torch() -> None:
    code = (
        f"import sys, {', '.join(TORCH_FREE)}; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
