"""Two checkouts with different changes of one commit are different code."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.judging import environment


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("bench/a.py", "baselines/b.py", "carso/c.py", "requirements.txt", "docs.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "One")
    monkeypatch.setattr(environment, "checkout", lambda: tmp_path)
    return tmp_path


def commit_now() -> str:
    environment.commit.cache_clear()
    text = environment.commit()
    environment.commit.cache_clear()
    return text


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    assert len(commit_now()) == 12
    (checkout / "docs.md").write_text("2\n")
    (checkout / "mine.py").write_text("2\n")
    assert len(commit_now()) == 12, "what is no code does not count"


CHANGES: list[Callable[[Path], object]] = [
    lambda folder: (folder / "bench/a.py").write_text("2\n"),
    lambda folder: (folder / "bench/a.py").write_text("3\n"),
    lambda folder: (folder / "bench/new.py").write_text("1\n"),
    lambda folder: (folder / "bench/new.py").write_text("2\n"),
    lambda folder: (folder / "carso/new.py").write_text("2\n"),
    lambda folder: (folder / "carso/c.py").unlink(),
]


def test_every_change_has_a_digest_of_its_own(checkout: Path) -> None:
    clean = commit_now()
    commits = []
    for change in CHANGES:
        change(checkout)
        commits.append(commit_now())
        git(checkout, "add", "-A")
        assert commit_now().startswith(f"{clean}-dirty-"), "also what is about to be committed"
        git(checkout, "reset", "-q", "--hard")
        git(checkout, "clean", "-qfd")
    assert len(set(commits)) == len(CHANGES)
    assert all(len(text) == len(clean) + len("-dirty-") + 8 for text in commits)
    assert commit_now() == clean
