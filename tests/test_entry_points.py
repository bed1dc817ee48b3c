"""What packages declare is found: in a checkout, installed or not, and in other packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.entry_points import NAME, ROOT, declared, version

find = declared.__wrapped__  # without its memory


def install(folder: Path, name: str, entry_points: str) -> None:
    """Put the metadata of an installed distribution into the folder."""
    metadata = folder / f"{name.replace('-', '_')}-9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n")
    (metadata / "entry_points.txt").write_text(entry_points)


def test_a_checkout_declares_its_plug_ins_in_the_order_of_their_modules() -> None:
    modules = [point.value for point in declared("bench.plugins")]
    assert modules == sorted(modules)
    assert {"bench.attacks", "bench.checks", "bench.data", "carso.defence"} <= set(modules)


def test_plug_ins_of_other_packages_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "my-defences", "[bench.plugins]\nmine = my_defences\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "my_defences" in [point.value for point in find("bench.plugins")]


def test_a_checkout_takes_the_place_of_what_is_installed_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, NAME, "[bench.plugins]\nold = bench.long_gone\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("bench.plugins") == declared("bench.plugins")
    assert version() != "9"


def test_a_checkout_on_the_path_works_from_any_folder(tmp_path: Path) -> None:
    code = (
        "from bench.questions.discover import discover; discover(); "
        "from bench.questions.registry import attacks, defences; "
        "print('pgd' in attacks, 'carso' in defences)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True True\n"
