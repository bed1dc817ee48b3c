"""`python -m bench.compare A B`: is one defence really better than another on the same examples? Reads stored records only: no torch.

Exit code: 0 answered, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NoReturn

from bench import report
from bench.errors import BadInput, did_you_mean
from bench.questions.spec import Spec, format_value, parse_eps
from bench.results.leaderboard import Leaderboard, Row
from bench.results.names import family, unpinned
from bench.results.statistics import (
    bootstrap,
    detectable,
    holm,
    mcnemar,
    mcnemar_mid,
    paired_interval,
    sign_flip,
)
from bench.results.store import Store
from bench.results.worst_case import worst_case

FEW = 25  # discordant pairs below which the exact test says too little
LEVEL = 0.05
WORK = 10_000_000  # the most examples that a bootstrap draws: seconds


@dataclass(frozen=True, slots=True)
class Comparison:
    """The accuracy of A less that of B on the same `n` examples, with its 95% interval, and how likely chance alone goes as far."""

    difference: float
    lo: float
    hi: float
    p: float
    n: int
    detectable: float
    test: str

    @property
    def told_apart(self) -> bool:
        """Both by the test and by the interval: near the level the two can disagree."""
        return self.p < LEVEL and not self.lo <= 0 <= self.hi


def compared(a: Sequence[float], b: Sequence[float], *, random: bool) -> Comparison:
    """Two defences by the share of draws that each got right on every example: McNemar where both answer once, else sign flips and a bootstrap."""
    differences = [one - other for one, other in zip(a, b, strict=True)]
    n, least = len(differences), detectable(differences)
    if random:
        lo, hi = bootstrap(differences, resamples=max(1000, min(10_000, WORK // n)))
        return Comparison(
            fmean(differences), lo, hi, sign_flip(differences), n, least, "sign flips"
        )
    first, second = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    few = first + second < FEW
    p = mcnemar_mid(first, second) if few else mcnemar(first, second)
    test = f"{'mid-p' if few else 'exact'} McNemar, {first} against {second}"
    return Comparison((first - second) / n, *paired_interval(first, second, n), p, n, least, test)


def robust(one: Row) -> list[float]:
    """Per example, the share of the evaluation draws that were right under the attack that was chosen for it."""
    worst = worst_case(one.records)
    return [count / worst.draws for count in worst.correct]


def clean(one: Row) -> list[float]:
    return [
        count / r.cell.draws for r in one.records if family(r.cell) == "none" for count in r.correct
    ]


def in_words(a: str, b: str, found: Comparison, p: float, better: str = "is better") -> str:
    """The comparison in one line; `p` is its p-value, adjusted where there are several, and `better` what is said of the one that is ahead."""
    verdict = "cannot be told apart"
    if p < LEVEL and found.told_apart:
        verdict = f"{a if found.difference > 0 else b} {better}"
    value = f"p={p:.4f}" if p >= 0.0001 else "p<0.0001"
    return (
        f"{verdict}: difference {100 * found.difference:+.1f} points [{100 * found.lo:+.1f}, {100 * found.hi:+.1f}], {value} ({found.test}), "
        f"n={found.n}, smallest difference that n could show: {100 * found.detectable:.1f} points"
    )


def ahead(a: Row, b: Row) -> str:
    """What can be said of the row with the higher robust accuracy: a difference of upper bounds is none of the truth, unless nothing speaks
    against either and both met the same families of attacks."""
    met = [{family(record.cell) for record in row.records} for row in (a, b)]
    return (
        "is better"
        if a.verdict == b.verdict == "sound" and met[0] == met[1]
        else "has the higher upper bound"
    )


def caveats(a: Row, b: Row) -> list[str]:
    """What the figures do not say."""
    called = list(zip((a, b), names(a, b), strict=True))
    unsound = [f"{name} is {row.verdict}" for row, name in called if row.verdict != "sound"]
    found = []
    if unsound:
        found.append(
            f"both are upper bounds, and a difference of upper bounds is no bound unless both verdicts are sound ({', '.join(unsound)})"
        )
    for (row, name), (other, _) in (called, called[::-1]):
        if alone := [label for label in row.labels if label not in other.labels]:
            found.append(f"met by {name} alone: {', '.join(alone)}")
        if not row.complete:
            found.append(f"not all that was asked of {name} is answered")
    return found


def matching(rows: Iterable[Row], text: str) -> list[Row]:
    """The rows of the defence that `text` names: as leaderboards name it, or by its name and some of its knobs."""
    rows = list(rows)
    if exact := [row for row in rows if row.defence == text]:
        return exact
    asked = Spec.parse(text)
    return [
        row for row in rows if row.cell.defence.name == asked.name and has(row.cell.defence, asked)
    ]


def has(spec: Spec, asked: Spec) -> bool:
    """Whether `spec` has the knobs of `asked`; pins of weights may be left out."""
    values = {knob: format_value(value) for knob, value in spec.items}
    return all(
        str(want) in (values.get(knob), unpinned(values.get(knob, "")))
        for knob, want in asked.items
    )


def one_defence(rows: Sequence[Row], text: str, where: str, everywhere: Sequence[Row]) -> list[Row]:
    """The rows of one defence, which may be on several sets of examples.

    Where `text` fits several defences it is the one that answered most `everywhere`, attacks times examples in all rows of the data set: variants
    meet less. BadInput where two answered as much.
    """
    asked: dict[Spec, list[Row]] = defaultdict(list)
    for row in matching(rows, text):
        asked[row.cell.defence].append(row)
    answers = Counter(
        {
            defence: sum(
                len(one.ids)
                for row in everywhere
                if row.cell.defence == defence
                for one in row.records
            )
            for defence in asked
        }
    ).most_common()
    if len(answers) > 1 and answers[0][1] == answers[1][1]:
        fits = ", ".join(unpinned(str(defence)) for defence in asked)
        raise BadInput(
            f"defence '{text}' fits several on {where}; name the knobs that tell them apart: {fits}"
        )
    return asked[answers[0][0]] if answers else []


def pair(a: Sequence[Row], b: Sequence[Row], where: str) -> tuple[Row, Row]:
    """The rows of A and B on the same examples: complete ones first, then the most examples, then the same seed, then the lower one."""
    for rows in (a, b):
        if not any(row.robust for row in rows):
            raise BadInput(
                f"defence '{rows[0].defence}' has no record of an attack on {where}; run it with python -m bench.run"
            )
    pairs = [
        (one, other)
        for one in a
        for other in b
        if one.robust and other.robust and examples(one) == examples(other)
    ]
    if not pairs:
        sizes = " and ".join(
            f"'{rows[0].defence}' on n={', '.join(str(row.n) for row in rows)}" for rows in (a, b)
        )
        raise BadInput(f"different examples on {where}: {sizes}; run both with the same --n")
    return min(
        pairs,
        key=lambda two: (
            not (two[0].complete and two[1].complete),
            -len(two[0].records[0].ids),
            *seeds(*two),
        ),
    )


def seeds(a: Row, b: Row) -> tuple[bool, int]:
    return a.cell.seed != b.cell.seed, a.cell.seed


def examples(one: Row) -> tuple[tuple[int, ...], str]:
    """Which images, of which data, the records of a row judge."""
    return one.records[0].ids, one.records[0].env.data


def chosen(
    boards: Sequence[Leaderboard], dataset: str | None, norm: str | None, eps: str | None
) -> list[Leaderboard]:
    """The leaderboards asked for; BadInput with the nearest where there are none."""
    found = list(boards)
    for what, wanted in (
        ("dataset", dataset),
        ("norm", norm),
        ("eps", str(parse_eps(eps)) if eps is not None else None),
    ):
        if wanted is not None:
            options = {str(getattr(board, what)) for board in found}
            found = [board for board in found if getattr(board, what) == wanted]
            if not found:
                raise BadInput(
                    f"{what} '{wanted}' has no records there{did_you_mean(wanted, options)}"
                )
    return found


def lines(boards: Sequence[Leaderboard], first: str, others: Sequence[str]) -> list[str]:
    """The comparisons of `first` with each of `others`, on every leaderboard that has them all, in words."""
    rows = [row for board in boards for row in board.rows]
    for name in (first, *others):
        if not matching(rows, name):
            raise BadInput(
                f"defence '{name}' has no records there{did_you_mean(name, {row.defence for row in rows})}"
            )
    if first in others:
        raise BadInput(f"defence '{first}' is to be compared with itself; name another")
    found: list[str] = []
    for board in boards:
        where = f"{board.dataset} {board.norm} {board.eps}"
        everywhere = [
            row for other in boards if other.dataset == board.dataset for row in other.rows
        ]
        held = [one_defence(board.rows, name, where, everywhere) for name in (first, *others)]
        if all(held):
            found += ["", *on_board(where, held[0], held[1:])]
    if not found:
        raise BadInput(
            f"{', '.join((first, *others))} have no data set and threat model in common there; run them in one sweep"
        )
    return found[1:]


def on_board(where: str, first: Sequence[Row], others: Sequence[Sequence[Row]]) -> list[str]:
    """One paragraph for each comparison on one leaderboard; p-values are adjusted where there are several (Holm)."""
    pairs = [pair(first, other, where) for other in others]
    text = [
        [f"{where}: {a.defence} ({a.classifier}) against {b.defence} ({b.classifier})"]
        for a, b in pairs
    ]
    for measure, read in (("robust", robust), ("clean", clean)):
        held = [
            (i, *names(a, b), compared(read(a), read(b), random=a.stochastic or b.stochastic))
            for i, (a, b) in enumerate(pairs)
            if read(a) and read(b)
        ]
        for (i, a_name, b_name, figures), p in zip(
            held, holm([figures.p for *_, figures in held]), strict=True
        ):
            better = ahead(*pairs[i]) if measure == "robust" else "is better"
            text[i].append(f"  {measure}: {in_words(a_name, b_name, figures, p, better)}")
    for paragraph, (a, b) in zip(text, pairs, strict=True):
        paragraph += [f"  {caveat}" for caveat in caveats(a, b)]
    several = (
        [f"  p-values are adjusted for {len(pairs)} comparisons (Holm)"] if len(pairs) > 1 else []
    )
    return [line for paragraph in text for line in paragraph] + several


def names(a: Row, b: Row) -> tuple[str, str]:
    """What to call the two: by their classifiers too, where nothing else tells them apart."""
    if a.defence != b.defence:
        return a.defence, b.defence
    return f"{a.defence} on {a.classifier}", f"{b.defence} on {b.classifier}"


class Parser(argparse.ArgumentParser):
    """Bad flags end in one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m bench.compare",
        description="Is defence A really better than B on the same examples?",
    )
    parser.add_argument(
        "first",
        metavar="A",
        help="a defence, as the leaderboard names it, or with knobs: tta[classifier=own:digits-at]",
    )
    parser.add_argument("others", metavar="B", nargs="+", help="one or more to compare it with")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        help="the folder that a sweep wrote (default: results)",
    )
    parser.add_argument("--dataset", help="one data set only; default: every one that has both")
    parser.add_argument("--norm", help="one norm only")
    parser.add_argument("--eps", help="one eps only")
    try:
        asked = parser.parse_args(argv)
        boards = report.boards(Store(asked.out))
        if not boards:
            raise BadInput(
                f"there are no records in '{asked.out}'; run 'make bench' first, or give --out the folder of another run"
            )
        found = lines(
            chosen(boards, asked.dataset, asked.norm, asked.eps), asked.first, asked.others
        )
    except BadInput as error:
        sys.stderr.write(f"bench.compare: {error}\n")
        return 2
    sys.stdout.write("\n".join(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
