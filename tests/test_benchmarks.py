"""The table of `benchmarks.apgd`, on one process and on two."""

from __future__ import annotations

import pytest

from benchmarks.apgd import main

WORDS = [
    "--n",
    "20",
    "--roles",
    "robust",
    "--steps",
    "5",
    "--targets",
    "2",
    "--queries",
    "0",
    "--device",
    "cpu",
]


def table(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    main([*WORDS, *words])
    return [line[56:].split() for line in capsys.readouterr().out.splitlines()[2:]]


@pytest.mark.parametrize(("eps", "robust"), [("1/10000", "0.950"), ("1", "0.000")])
def test_the_parts_of_two_processes_are_added_up(
    capsys: pytest.CaptureFixture[str], eps: str, robust: str
) -> None:
    """Nothing changes the 19 right answers at eps 1/10000, where every attack makes all its calls; eps 1 leaves none."""
    one, two = (table(capsys, "--eps", eps, "--processes", processes) for processes in ("1", "2"))
    assert [row[:2] for row in one] == [row[:2] for row in two] == [[robust, "0"]] * 2
    assert all(row[4:] == ["1.00", "1.00"] for row in (one[0], two[0]))
    if robust == "0.950":
        assert [row[2] for row in one] == [row[2] for row in two], "calls per example"


def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--processes", "0"], ["--n", "0"], ["--dataset", "digit"], ["--roles", "robst"]):
        with pytest.raises(SystemExit) as refused:
            main([*WORDS, *words])
        assert refused.value.code == 2
        assert words[1] in capsys.readouterr().err
