"""`carso-bench compare A B`: is A really better than B on the same examples? No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.api import no_records
from bench.errors import BadInput
from bench.results.compare import (
    BoardComparison,
    Comparison,
    PairComparison,
    compare_defences,
    distinct_names,
    select_boards,
)
from bench.results.leaderboard import Row
from bench.results.store import Store

MINIMUM = 2  # defences


def describe_board(board: BoardComparison) -> list[str]:
    """The lines for one leaderboard: one paragraph for each pair of defences."""
    lines = [line for pair in board.pairs for line in describe_pair(board.where, pair)]
    if len(board.pairs) > 1:
        lines.append(f"  p-values are adjusted for {len(board.pairs)} comparisons (Holm)")
    return lines


def describe_pair(where: str, pair: PairComparison) -> list[str]:
    a, b = pair.a, pair.b
    lines = [f"{where}: {a.defence} ({a.classifier}) against {b.defence} ({b.classifier})"]
    if pair.robust:
        better = describe_winner(a, b)
        lines.append(f"  robust: {describe_comparison(*pair.names, pair.robust, better)}")
    if pair.clean:
        lines.append(f"  clean: {describe_comparison(*pair.names, pair.clean, 'is better')}")
    return lines + [f"  {caveat}" for caveat in list_caveats(a, b)]


def describe_comparison(a: str, b: str, comparison: Comparison, better: str) -> str:
    """The comparison in one line; `better` is what is said of the defence that is ahead."""
    verdict = "cannot be told apart"
    if comparison.significant:
        verdict = f"{a if comparison.difference > 0 else b} {better}"
    points = f"{100 * comparison.difference:+.1f} points"
    interval = f"[{100 * comparison.lo:+.1f}, {100 * comparison.hi:+.1f}]"
    p = f"p={comparison.p:.4f}" if comparison.p >= 0.0001 else "p<0.0001"
    return (
        f"{verdict}: difference {points} {interval}, {p} ({comparison.test}), n={comparison.n}, "
        f"smallest difference that n could show: {100 * comparison.detectable:.1f} points"
    )


def describe_winner(a: Row, b: Row) -> str:
    """What can be said of the row with the higher robust accuracy.

    Robust accuracies are upper bounds. The higher one is the better defence only where both
    verdicts are sound and both rows met the same families of attacks.
    """
    families_a = {record.family for record in a.records}
    families_b = {record.family for record in b.records}
    if a.verdict == b.verdict == "sound" and families_a == families_b:
        return "is better"
    return "has the higher upper bound"


def list_caveats(a: Row, b: Row) -> list[str]:
    """What the figures do not say."""
    name_a, name_b = distinct_names(a, b)
    caveats = []
    unsound = [
        f"{name} is {row.verdict}"
        for name, row in ((name_a, a), (name_b, b))
        if row.verdict != "sound"
    ]
    if unsound:
        caveats.append(
            "both are upper bounds, and a difference of upper bounds is no bound "
            f"unless both verdicts are sound ({', '.join(unsound)})"
        )
    for name, row, other in ((name_a, a, b), (name_b, b, a)):
        alone = [label for label in row.labels if label not in other.labels]
        if alone:
            caveats.append(f"met by {name} alone: {', '.join(alone)}")
        if not row.complete:
            caveats.append(f"not all that was asked of {name} is answered")
    return caveats


def compare(
    names: Sequence[str], out: Path, *, dataset: str | None, norm: str | None, eps: str | None
) -> None:
    """Print how the first defence compares with each of the others; BadInput if it cannot."""
    if len(names) < MINIMUM:
        missing = ", ".join(("A", "B")[len(names) :])
        raise BadInput(f"the following arguments are required: {missing}")
    boards = report.load_boards(Store(out))
    if not boards:
        raise no_records(out)
    selected = select_boards(boards, dataset, norm, eps)
    comparisons = compare_defences(selected, names[0], names[1:])
    print("\n\n".join("\n".join(describe_board(board)) for board in comparisons))
