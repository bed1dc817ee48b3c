"""The house's rules that a machine can check: which package may import which, what stays free of torch, how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for package in ("bench", "baselines", "carso") for path in sorted((ROOT / package).rglob("*.py"))]
FIRST_BLOCK = [
    "bench.spec",
    "bench.registry",
    "bench.plan",
    "bench.record",
    "bench.store",
    "bench.published",
    "bench.leaderboard",
    "bench.statistics",
]
FIRST_BLOCK += ["bench.soundness.audits", "bench.report", "bench.weights"]
KNOW_BENCH = {"defence.py", "train.py"}


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_one_way(path: Path) -> None:
    package, seen = path.relative_to(ROOT).parts[0], imports(path)
    if package == "bench":
        assert not seen & {"baselines", "carso"}
    if package == "carso":
        assert "baselines" not in seen
        assert "bench" not in seen or path.name in KNOW_BENCH or "analysis" in path.parts


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "bench" or "bench" in p.parts], ids=name)
def test_nothing_below_the_command_prints(path: Path) -> None:
    prints = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not prints or path.name in ("run.py", "__main__.py")


def test_planning_and_reporting_load_no_torch() -> None:
    code = f"import sys, {', '.join(FIRST_BLOCK)}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
