"""Two defences on the same examples: figures from counts made by hand, words, refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import report
from bench.cli.app import module_main
from bench.cli.compare import describe_winner, list_caveats
from bench.results.record import Env
from bench.results.statistics import (
    bootstrap,
    detectable,
    holm,
    mcnemar_mid,
    paired_interval,
    sign_flip,
)
from bench.results.store import Store
from tests.fake_records import cell, record

ROOT = Path(__file__).parents[2]
N = 40
AT = "at[classifier=own:digits-at@1a2b3c4d]"
JPEG = "jpeg[classifier=own:digits-standard@1a2b3c4d]"
TTA = "tta[classifier=own:digits-at@1a2b3c4d]"


def put_records(
    root: Path,
    defence: str,
    attacks: dict[str, Sequence[int]],
    *,
    draws: int = 1,
    n: int = N,
    eps: str = "1/5",
    data: str = "d",
) -> None:
    """Store records of the defence: all right on clean images, `attacks` with their right draws.

    The selection draws say another thing than the evaluation draws.
    """
    store = Store(root)
    for attack, correct in {"none": [draws] * n, **attacks}.items():
        asked = cell(attack, defence, dataset=f"digits[n={n}]", draws=draws, select=draws, eps=eps)
        selected = [max(0, count - 1) for count in correct] if draws > 1 else None
        store.put(record(asked, correct, selected=selected, env=Env(data=data)))


def only_right(*examples: int, n: int = N) -> list[int]:
    return [int(i in examples) for i in range(n)]


def run_compare(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> list[str]:
    assert module_main("compare", [*words, "--out", str(root)]) == 0
    return capsys.readouterr().out.splitlines()


def error_of(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> str:
    """The one line that is said of bad input."""
    assert module_main("compare", [*words, "--out", str(root)]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.count("\n") == 1
    return caught.err.strip()


def test_deterministic_defences_are_compared_in_the_worst_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At stands on the examples 4 to 29, JPEG on 2 to 19."""
    at = {"pgd": only_right(*range(0, 30)), "square": only_right(*range(4, 40))}
    jpeg = {"pgd": only_right(*range(2, 20)), "square": only_right(*range(40))}
    put_records(tmp_path, AT, at)
    put_records(tmp_path, JPEG, jpeg)
    heading, robust, clean, bounds = run_compare(capsys, tmp_path, "at", "jpeg")
    assert heading == "digits linf 1/5: at (own:digits-at) against jpeg (own:digits-standard)"
    lo, hi = paired_interval(10, 2, N)
    least = detectable([1.0] * 12 + [0.0] * 28)
    assert robust == (
        "  robust: at has the higher upper bound: difference +20.0 points "
        f"[{100 * lo:+.1f}, {100 * hi:+.1f}], p={mcnemar_mid(10, 2):.4f} "
        "(mid-p McNemar, 10 against 2), n=40, "
        f"smallest difference that n could show: {100 * least:.1f} points"
    )
    assert clean.startswith("  clean: cannot be told apart: difference +0.0 points [-")
    assert "p=1.0000" in clean
    caveat = "a difference of upper bounds is no bound unless both verdicts are sound (at is "
    assert caveat in bounds
    _, mirrored, *_ = run_compare(capsys, tmp_path, "jpeg", "at")
    points = f"difference -20.0 points [{-100 * hi:+.1f}, {-100 * lo:+.1f}]"
    assert f"at has the higher upper bound: {points}" in mirrored


def test_only_sound_rows_that_met_the_same_families_are_ranked(tmp_path: Path) -> None:
    put_records(tmp_path, AT, {"pgd": only_right(*range(30)), "square": only_right(*range(30))})
    put_records(tmp_path, JPEG, {"pgd": only_right(*range(10))})
    (board,) = report.load_boards(Store(tmp_path))
    rows = {row.defence: replace(row, verdict="sound") for row in board.rows}
    at = rows["at"]
    higher = "has the higher upper bound"
    assert describe_winner(at, at) == "is better"
    assert describe_winner(at, replace(at, verdict="incomplete")) == higher
    assert describe_winner(at, rows["jpeg"]) == higher, "jpeg met no attack that sees scores alone"


def test_stochastic_defences_are_compared_by_evaluation_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_records(tmp_path, AT, {"pgd": only_right(*range(30))})
    counts = [8] * 10 + [3] * 20 + [1] * 10
    put_records(tmp_path, TTA, {"pgd": counts, "square": [10] * 40}, draws=10)
    _, robust, *rest = run_compare(capsys, tmp_path, "at", "tta")
    differences = [1 - 0.8] * 10 + [1 - 0.3] * 20 + [0 - 0.1] * 10
    lo, hi = bootstrap(differences)
    assert sign_flip(differences) < 0.0002
    points = f"difference +37.5 points [{100 * lo:+.1f}, {100 * hi:+.1f}]"
    assert f"at has the higher upper bound: {points}, p<0.0001 (sign flips), n=40" in robust
    assert "  met by tta alone: square" in rest


def test_several_comparisons_are_adjusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_records(tmp_path, AT, {"pgd": only_right(*range(20))})
    put_records(tmp_path, JPEG, {"pgd": only_right(*range(14))})
    put_records(tmp_path, TTA, {"pgd": only_right(*range(13))})
    lines = run_compare(capsys, tmp_path, "at", "jpeg", "tta")
    adjusted = holm([mcnemar_mid(6, 0), mcnemar_mid(7, 0)])
    shown = [line.partition("p=")[2][:6] for line in lines if line.startswith("  robust")]
    assert shown == [f"{p:.4f}" for p in adjusted]
    assert lines[-1] == "  p-values are adjusted for 2 comparisons (Holm)"
    assert "(Holm)" not in " ".join(run_compare(capsys, tmp_path, "at", "jpeg"))


def test_a_difference_alone_may_be_none_among_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_records(tmp_path, AT, {"pgd": only_right(*range(20))})
    for defence in (JPEG, TTA):
        put_records(tmp_path, defence, {"pgd": only_right(*range(15))})
    assert "robust: at has the higher upper bound: difference +12.5" in " ".join(
        run_compare(capsys, tmp_path, "at", "jpeg")
    )
    both = " ".join(run_compare(capsys, tmp_path, "at", "jpeg", "tta"))
    assert both.count("robust: cannot be told apart: difference +12.5") == 2
    assert both.count("p=0.0625") == 2


def test_each_shared_threat_model_is_compared_or_the_one_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for eps in ("1/5", "1/10"):
        put_records(tmp_path, AT, {"pgd": only_right(*range(30))}, eps=eps)
        put_records(tmp_path, JPEG, {"pgd": only_right(*range(28))}, eps=eps)
    put_records(tmp_path, TTA, {"pgd": only_right(*range(28))}, eps="1/10")
    lines = run_compare(capsys, tmp_path, "at", "jpeg")
    headings = [line for line in lines if line.startswith("digits") and "against" in line]
    assert len(headings) == 2
    for words in (
        ["at", "jpeg", "--eps", "0.1"],
        ["at", "tta"],
        ["at", "tta", "--dataset", "digits", "--norm", "linf"],
    ):
        lines = run_compare(capsys, tmp_path, *words)
        (heading,) = [line for line in lines if line.startswith("digits")]
        assert heading.startswith("digits linf 1/10: at")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["at", "tta", "--eps", "1/5"], "defence 'tta' has no records there; there are: at, jpeg"),
        (["at", "jpeg", "--eps", "2"], "eps '2' has no records there; there are: 1/10, 1/5"),
        (
            ["at", "jpeg", "--norm", "linv"],
            "norm 'linv' has no records there; did you mean 'linf'?",
        ),
        (
            ["at", "jpeg", "--dataset", "digit"],
            "dataset 'digit' has no records there; did you mean 'digits'?",
        ),
    ],
)
def test_a_board_that_is_not_there_is_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    for eps in ("1/5", "1/10"):
        put_records(tmp_path, AT, {"pgd": only_right(*range(30))}, eps=eps)
        put_records(tmp_path, JPEG, {"pgd": only_right(*range(28))}, eps=eps)
    put_records(tmp_path, TTA, {"pgd": only_right(*range(28))}, eps="1/10")
    assert error_of(capsys, tmp_path, *words) == f"bench.compare: {message}"


def test_a_name_alone_is_the_defence_that_was_asked_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_records(tmp_path, AT, {"pgd": only_right(*range(30)), "square": only_right(*range(30))})
    put_records(tmp_path, AT.replace("digits-at", "digits-new"), {"pgd": only_right(*range(10))})
    put_records(tmp_path, JPEG, {"pgd": only_right(*range(20))})
    assert run_compare(capsys, tmp_path, "at", "jpeg")[0].startswith(
        "digits linf 1/5: at (own:digits-at) against jpeg"
    )


def test_knobs_tell_defences_of_one_name_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_records(tmp_path, AT, {"pgd": only_right(*range(30))})
    other = AT.replace("digits-at", "digits-new")
    put_records(tmp_path, other, {"pgd": only_right(*range(10))})
    words = "at[classifier=own:digits-at]", "at[classifier=own:digits-new]"
    assert "robust: at on own:digits-at has the higher upper bound: difference +50.0" in " ".join(
        run_compare(capsys, tmp_path, *words)
    )
    assert (
        "fits several on digits linf 1/5; name the knobs that tell them apart: "
        "at[classifier=own:digits-at], at["
    ) in error_of(capsys, tmp_path, "at", words[1])


def test_different_examples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_records(tmp_path / "n", AT, {"pgd": only_right(*range(30))})
    put_records(tmp_path / "n", JPEG, {"pgd": only_right(0, n=20)}, n=20)
    assert error_of(capsys, tmp_path / "n", "at", "jpeg") == (
        "bench.compare: different examples on digits linf 1/5: "
        "'at' on n=40 and 'jpeg' on n=20; run both with the same --n"
    )
    put_records(tmp_path / "n", AT, {"pgd": only_right(0, n=20)}, n=20)
    assert "n=20" in run_compare(capsys, tmp_path / "n", "at", "jpeg")[1]
    put_records(tmp_path / "data", AT, {"pgd": only_right(*range(30))}, data="one")
    put_records(tmp_path / "data", JPEG, {"pgd": only_right(*range(20))}, data="other")
    assert "different examples" in error_of(capsys, tmp_path / "data", "at", "jpeg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["att", "jpeg"], "defence 'att' has no records there; did you mean 'at'?"),
        (["at", "jpg"], "defence 'jpg' has no records there; did you mean 'jpeg'?"),
        (["at", "tta"], "defence 'tta' has no record of an attack on digits linf 1/5"),
        (["at", "at"], "defence 'at' is to be compared with itself"),
        (["at"], "the following arguments are required: B"),
        (["at", "jpeg", "--eps", "many"], "eps 'many' is not a number"),
        (["at", "jpeg", "--datset", "x"], "unknown flag --datset; did you mean '--dataset'?"),
        (["at", "jpeg[", "--dataset", "digits"], "'jpeg[' is not a name with knobs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    put_records(tmp_path, AT, {"pgd": only_right(*range(30))})
    put_records(tmp_path, JPEG, {"pgd": only_right(*range(20))})
    put_records(tmp_path, TTA, {})
    assert message in error_of(capsys, tmp_path, *words)


def test_a_folder_without_records_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"there are no records in '{tmp_path}'" in error_of(capsys, tmp_path, "at", "jpeg")


def test_sound_verdicts_need_no_caveat(tmp_path: Path) -> None:
    put_records(tmp_path, AT, {"pgd": only_right(*range(30))})
    put_records(tmp_path, JPEG, {"pgd": only_right(*range(20))})
    a, b = report.load_boards(Store(tmp_path))[0].rows
    assert [
        line
        for line in list_caveats(a, replace(b, verdict="sound"))
        if f"({a.defence} is {a.verdict})" in line
    ]
    assert list_caveats(replace(a, verdict="sound"), replace(b, verdict="sound")) == []
    assert list_caveats(
        replace(a, verdict="sound"), replace(b, verdict="sound", complete=False)
    ) == [f"not all that was asked of {b.defence} is answered"]


def test_the_command_loads_no_torch() -> None:
    code = (
        "import sys, bench.cli.compare; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
