"""The wheel: what is in it, and that it runs from an empty folder."""

from __future__ import annotations

import csv
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.entry_points import version

ROOT = Path(__file__).parents[1]
PACKAGES = ("bench", "carso", "baselines")


def run(*words: str | Path, cwd: Path) -> str:
    """The output of a command that knows nothing of the checkout; it must succeed."""
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "BENCH_DATA")}
    environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd)}
    done = subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy: setuptools builds in the folder itself."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--no-build-isolation", "--wheel-dir", folder, source, cwd=source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`carso-bench`, installed in an environment that borrows the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "bin" / "carso-bench"


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".training")
    }
    assert files <= names
    assert {name.partition("/")[0] for name in names} == {
        *PACKAGES,
        f"carso_bench-{version()}.dist-info",
    }


def test_the_installed_command_gives_the_digits_board_from_an_empty_folder(
    program: Path, tmp_path: Path
) -> None:
    words = ("--n", "4", "--defences", "at,jpeg", "--attacks", "fgsm,pgd[steps=2]")
    run(program, "run", "--dataset", "digits", *words, cwd=tmp_path)
    board = tmp_path / "results" / "leaderboards" / "digits-linf-1_5.csv"
    rows = list(csv.DictReader(board.open()))
    assert {row["defence"] for row in rows} == {"at", "jpeg"}
    assert all(row["complete"] == "yes" and row["acc_fgsm"] for row in rows)
    assert "digits" in run(program, "status", cwd=tmp_path)


def test_the_installed_command_tells_its_version(program: Path, tmp_path: Path) -> None:
    assert run(program, "--version", cwd=tmp_path) == f"carso-bench {version()}\n"
