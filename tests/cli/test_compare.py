"""Two defences on the same examples: the figures from counts made by hand, the words, and what is refused."""

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
AT, JPEG, TTA = (
    "at[classifier=own:digits-at@1a2b3c4d]",
    "jpeg[classifier=own:digits-standard@1a2b3c4d]",
    "tta[classifier=own:digits-at@1a2b3c4d]",
)


def put(
    root: Path,
    defence: str,
    attacks: dict[str, Sequence[int]],
    *,
    draws: int = 1,
    n: int = N,
    eps: str = "1/5",
    data: str = "d",
) -> None:
    """Records of the defence: all right on clean images, and `attacks` with the counts of right draws; the draws that select say another thing."""
    store = Store(root)
    for attack, correct in {"none": [draws] * n, **attacks}.items():
        asked = cell(attack, defence, dataset=f"digits[n={n}]", draws=draws, select=draws, eps=eps)
        selected = [max(0, count - 1) for count in correct] if draws > 1 else None
        store.put(record(asked, correct, selected=selected, env=Env(data=data)))


def right(*examples: int, n: int = N) -> list[int]:
    return [int(i in examples) for i in range(n)]


def said(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> list[str]:
    assert module_main("compare", [*words, "--out", str(root)]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> str:
    """The one line that is said of bad input."""
    assert module_main("compare", [*words, "--out", str(root)]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.count("\n") == 1
    return caught.err.strip()


def test_two_deterministic_defences_are_compared_on_the_worst_of_their_attacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(
        tmp_path, AT, {"pgd": right(*range(0, 30)), "square": right(*range(4, 40))}
    )  # stands on 4..29
    put(
        tmp_path, JPEG, {"pgd": right(*range(2, 20)), "square": right(*range(40))}
    )  # stands on 2..19
    heading, robust, clean, bounds = said(capsys, tmp_path, "at", "jpeg")
    assert heading == "digits linf 1/5: at (own:digits-at) against jpeg (own:digits-standard)"
    (lo, hi), least = paired_interval(10, 2, N), detectable([1.0] * 12 + [0.0] * 28)
    assert robust == (
        f"  robust: at has the higher upper bound: difference +20.0 points [{100 * lo:+.1f}, {100 * hi:+.1f}], p={mcnemar_mid(10, 2):.4f} "
        f"(mid-p McNemar, 10 against 2), n=40, smallest difference that n could show: {100 * least:.1f} points"
    )
    assert clean.startswith("  clean: cannot be told apart: difference +0.0 points [-")
    assert "p=1.0000" in clean
    assert (
        "a difference of upper bounds is no bound unless both verdicts are sound (at is " in bounds
    )
    _, mirrored, *_ = said(capsys, tmp_path, "jpeg", "at")
    assert (
        f"at has the higher upper bound: difference -20.0 points [{-100 * hi:+.1f}, {-100 * lo:+.1f}]"
        in mirrored
    )


def test_only_of_two_sound_rows_that_met_the_same_kinds_of_attack_one_is_called_better(
    tmp_path: Path,
) -> None:
    put(tmp_path, AT, {"pgd": right(*range(30)), "square": right(*range(30))})
    put(tmp_path, JPEG, {"pgd": right(*range(10))})
    (board,) = report.load_boards(Store(tmp_path))
    one, other = (
        replace(row, verdict="sound")
        for row in sorted(board.rows, key=lambda row: -len(row.records))
    )
    assert describe_winner(one, one) == "is better"
    assert describe_winner(one, replace(one, verdict="incomplete")) == "has the higher upper bound"
    assert describe_winner(one, other) == "has the higher upper bound", (
        "the other met no attack that sees scores alone"
    )


def test_a_stochastic_defence_is_compared_by_the_shares_of_its_evaluation_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, AT, {"pgd": right(*range(30))})
    counts = [8] * 10 + [3] * 20 + [1] * 10
    put(tmp_path, TTA, {"pgd": counts, "square": [10] * 40}, draws=10)
    _, robust, *rest = said(capsys, tmp_path, "at", "tta")
    differences = [1 - 0.8] * 10 + [1 - 0.3] * 20 + [0 - 0.1] * 10
    lo, hi = bootstrap(differences)
    assert sign_flip(differences) < 0.0002
    assert (
        f"at has the higher upper bound: difference +37.5 points [{100 * lo:+.1f}, {100 * hi:+.1f}], p<0.0001 (sign flips), n=40"
        in robust
    )
    assert "  met by tta alone: square" in rest


def test_several_comparisons_are_adjusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, AT, {"pgd": right(*range(20))})
    put(tmp_path, JPEG, {"pgd": right(*range(14))})
    put(tmp_path, TTA, {"pgd": right(*range(13))})
    found = said(capsys, tmp_path, "at", "jpeg", "tta")
    adjusted = holm([mcnemar_mid(6, 0), mcnemar_mid(7, 0)])
    shown = [line.partition("p=")[2][:6] for line in found if line.startswith("  robust")]
    assert shown == [f"{p:.4f}" for p in adjusted]
    assert found[-1] == "  p-values are adjusted for 2 comparisons (Holm)"
    assert "(Holm)" not in " ".join(said(capsys, tmp_path, "at", "jpeg"))


def test_what_is_told_apart_alone_need_not_be_among_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, AT, {"pgd": right(*range(20))})
    for defence in (JPEG, TTA):
        put(tmp_path, defence, {"pgd": right(*range(15))})
    assert "robust: at has the higher upper bound: difference +12.5" in " ".join(
        said(capsys, tmp_path, "at", "jpeg")
    )
    both = " ".join(said(capsys, tmp_path, "at", "jpeg", "tta"))
    assert both.count("robust: cannot be told apart: difference +12.5") == 2
    assert both.count("p=0.0625") == 2


def test_every_threat_model_that_has_both_is_compared_or_the_one_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for eps in ("1/5", "1/10"):
        put(tmp_path, AT, {"pgd": right(*range(30))}, eps=eps)
        put(tmp_path, JPEG, {"pgd": right(*range(28))}, eps=eps)
    put(tmp_path, TTA, {"pgd": right(*range(28))}, eps="1/10")
    assert (
        sum(
            "against" in line and line.startswith("digits")
            for line in said(capsys, tmp_path, "at", "jpeg")
        )
        == 2
    )
    for words in (
        ["at", "jpeg", "--eps", "0.1"],
        ["at", "tta"],
        ["at", "tta", "--dataset", "digits", "--norm", "linf"],
    ):
        (heading,) = [line for line in said(capsys, tmp_path, *words) if line.startswith("digits")]
        assert heading.startswith("digits linf 1/10: at")
    assert (
        refused(capsys, tmp_path, "at", "tta", "--eps", "1/5")
        == "bench.compare: defence 'tta' has no records there; there are: at, jpeg"
    )
    assert (
        refused(capsys, tmp_path, "at", "jpeg", "--eps", "2")
        == "bench.compare: eps '2' has no records there; there are: 1/10, 1/5"
    )
    assert (
        refused(capsys, tmp_path, "at", "jpeg", "--norm", "linv")
        == "bench.compare: norm 'linv' has no records there; did you mean 'linf'?"
    )
    assert "did you mean 'digits'?" in refused(capsys, tmp_path, "at", "jpeg", "--dataset", "digit")


def test_a_name_alone_is_the_defence_that_was_asked_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, AT, {"pgd": right(*range(30)), "square": right(*range(30))})
    put(tmp_path, AT.replace("digits-at", "digits-new"), {"pgd": right(*range(10))})
    put(tmp_path, JPEG, {"pgd": right(*range(20))})
    assert said(capsys, tmp_path, "at", "jpeg")[0].startswith(
        "digits linf 1/5: at (own:digits-at) against jpeg"
    )


def test_knobs_tell_defences_of_one_name_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, AT, {"pgd": right(*range(30))})
    other = AT.replace("digits-at", "digits-new")
    put(tmp_path, other, {"pgd": right(*range(10))})
    words = "at[classifier=own:digits-at]", "at[classifier=own:digits-new]"
    assert "robust: at on own:digits-at has the higher upper bound: difference +50.0" in " ".join(
        said(capsys, tmp_path, *words)
    )
    assert (
        "fits several on digits linf 1/5; name the knobs that tell them apart: at[classifier=own:digits-at], at["
        in refused(capsys, tmp_path, "at", words[1])
    )


def test_different_examples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "n", AT, {"pgd": right(*range(30))})
    put(tmp_path / "n", JPEG, {"pgd": right(0, n=20)}, n=20)
    assert refused(capsys, tmp_path / "n", "at", "jpeg") == (
        "bench.compare: different examples on digits linf 1/5: 'at' on n=40 and 'jpeg' on n=20; run both with the same --n"
    )
    put(tmp_path / "n", AT, {"pgd": right(0, n=20)}, n=20)
    assert "n=20" in said(capsys, tmp_path / "n", "at", "jpeg")[1]
    put(tmp_path / "data", AT, {"pgd": right(*range(30))}, data="one")
    put(tmp_path / "data", JPEG, {"pgd": right(*range(20))}, data="other")
    assert "different examples" in refused(capsys, tmp_path / "data", "at", "jpeg")


@pytest.mark.parametrize(
    ("words", "says"),
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    put(tmp_path, AT, {"pgd": right(*range(30))})
    put(tmp_path, JPEG, {"pgd": right(*range(20))})
    put(tmp_path, TTA, {})
    assert says in refused(capsys, tmp_path, *words)


def test_a_folder_without_records_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"there are no records in '{tmp_path}'" in refused(capsys, tmp_path, "at", "jpeg")


def test_sound_verdicts_need_no_caveat(tmp_path: Path) -> None:
    put(tmp_path, AT, {"pgd": right(*range(30))})
    put(tmp_path, JPEG, {"pgd": right(*range(20))})
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
