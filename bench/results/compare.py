"""Is one defence better than another on the same examples? Computed from stored records."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.errors import BadInput, did_you_mean
from bench.questions.eps import parse_eps
from bench.questions.pins import unpinned
from bench.questions.spec import Spec, format_value
from bench.results.leaderboard import Leaderboard, Row
from bench.results.statistics import (
    bootstrap,
    detectable,
    holm,
    mcnemar,
    mcnemar_mid,
    paired_interval,
    sign_flip,
)
from bench.results.worst_case import worst_case

FEW_DISCORDANT = 25  # pairs; below, the exact test says too little
LEVEL = 0.05
MAX_RESAMPLED = 10_000_000  # the most examples that a bootstrap draws: seconds


@dataclass(frozen=True, slots=True)
class Comparison:
    """The accuracy of A less that of B on the same `n` examples.

    `lo` and `hi` are the 95% interval of the difference. `p` is the probability that chance alone
    goes as far. `detectable` is the smallest difference that `n` examples could show.
    """

    difference: float
    lo: float
    hi: float
    p: float
    n: int
    detectable: float
    test: str

    @property
    def significant(self) -> bool:
        """Both by the test and by the interval: near the level the two can disagree."""
        return self.p < LEVEL and not self.lo <= 0 <= self.hi


@dataclass(frozen=True, slots=True)
class PairComparison:
    """Two rows on the same examples; a comparison is None where a row lacks the accuracy.

    The p-values are adjusted for all pairs of the leaderboard (Holm).
    """

    a: Row
    b: Row
    robust: Comparison | None
    clean: Comparison | None

    @property
    def names(self) -> tuple[str, str]:
        return distinct_names(self.a, self.b)


@dataclass(frozen=True, slots=True)
class BoardComparison:
    """The comparisons of one defence with others on one leaderboard; `where` names the board."""

    where: str
    pairs: tuple[PairComparison, ...]


def compare_defences(
    boards: Sequence[Leaderboard], first: str, others: Sequence[str]
) -> list[BoardComparison]:
    """Compare `first` with each of `others` on every leaderboard that has them all.

    BadInput for a defence without records, and where no leaderboard has them all.
    """
    names = (first, *others)
    rows = [row for board in boards for row in board.rows]
    for name in names:
        if not matching_rows(rows, name):
            hint = did_you_mean(name, {row.defence for row in rows})
            raise BadInput(f"defence '{name}' has no records there{hint}")
    if first in others:
        raise BadInput(f"defence '{first}' is to be compared with itself; name another")
    comparisons = []
    for board in boards:
        rows_of_dataset = [row for row in rows if row.cell.dataset.name == board.dataset]
        where = f"{board.dataset} {board.norm} {board.eps}"
        candidates = [rows_of_defence(board.rows, name, where, rows_of_dataset) for name in names]
        if all(candidates):
            pairs = [pair_rows(candidates[0], other, where) for other in candidates[1:]]
            comparisons.append(BoardComparison(where, compare_pairs(pairs)))
    if not comparisons:
        raise BadInput(
            f"{', '.join(names)} have no data set and threat model in common there; "
            "run them in one sweep"
        )
    return comparisons


def compare_pairs(pairs: Sequence[tuple[Row, Row]]) -> tuple[PairComparison, ...]:
    robust = compare_measure(pairs, robust_shares)
    clean = compare_measure(pairs, clean_shares)
    return tuple(
        PairComparison(a, b, robust.get(i), clean.get(i)) for i, (a, b) in enumerate(pairs)
    )


def compare_measure(
    pairs: Sequence[tuple[Row, Row]], shares_of: Callable[[Row], list[float]]
) -> dict[int, Comparison]:
    """The comparison of each pair, by its index; p-values are adjusted for all of them (Holm)."""
    comparisons: dict[int, Comparison] = {}
    for i, (a, b) in enumerate(pairs):
        shares_a = shares_of(a)
        shares_b = shares_of(b)
        if shares_a and shares_b:
            stochastic = a.stochastic or b.stochastic
            comparisons[i] = compare_shares(shares_a, shares_b, stochastic=stochastic)
    adjusted = holm([comparison.p for comparison in comparisons.values()])
    return {
        i: replace(comparison, p=p)
        for (i, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }


def compare_shares(a: Sequence[float], b: Sequence[float], *, stochastic: bool) -> Comparison:
    """Compare two defences by the share of draws that each got right on every example.

    McNemar's test where both are deterministic, else sign flips and a bootstrap.
    """
    differences = [share_a - share_b for share_a, share_b in zip(a, b, strict=True)]
    n = len(differences)
    if stochastic:
        resamples = max(1000, min(10_000, MAX_RESAMPLED // n))
        difference = fmean(differences)
        lo, hi = bootstrap(differences, resamples=resamples)
        p = sign_flip(differences)
        test = "sign flips"
    else:
        only_a = sum(d > 0 for d in differences)
        only_b = sum(d < 0 for d in differences)
        few = only_a + only_b < FEW_DISCORDANT
        difference = (only_a - only_b) / n
        lo, hi = paired_interval(only_a, only_b, n)
        p = mcnemar_mid(only_a, only_b) if few else mcnemar(only_a, only_b)
        test = f"{'mid-p' if few else 'exact'} McNemar, {only_a} against {only_b}"
    return Comparison(difference, lo, hi, p, n, detectable(differences), test)


def robust_shares(row: Row) -> list[float]:
    """Per example, the share of evaluation draws that were right under the attack chosen for it."""
    worst = worst_case(row.records)
    return [count / worst.draws for count in worst.correct]


def clean_shares(row: Row) -> list[float]:
    """Per example, the share of evaluation draws that were right; empty without a clean record."""
    for record in row.records:
        if record.family == "none":
            return [count / record.cell.draws for count in record.correct]
    return []


def distinct_names(a: Row, b: Row) -> tuple[str, str]:
    """The names of two rows, with their classifiers where nothing else tells them apart."""
    if a.defence != b.defence:
        return a.defence, b.defence
    return f"{a.defence} on {a.classifier}", f"{b.defence} on {b.classifier}"


def select_boards(
    boards: Sequence[Leaderboard], dataset: str | None, norm: str | None, eps: str | None
) -> list[Leaderboard]:
    """The leaderboards with these values (None: any); BadInput with the nearest if none has."""
    exact_eps = None if eps is None else str(parse_eps(eps))
    selected = list(boards)
    for column, wanted in (("dataset", dataset), ("norm", norm), ("eps", exact_eps)):
        if wanted is None:
            continue
        options = {str(getattr(board, column)) for board in selected}
        selected = [board for board in selected if getattr(board, column) == wanted]
        if not selected:
            hint = did_you_mean(wanted, options)
            raise BadInput(f"{column} '{wanted}' has no records there{hint}")
    return selected


def matching_rows(rows: Iterable[Row], text: str) -> list[Row]:
    """The rows of the defence `text`: its name on the leaderboards, or a spec with some knobs."""
    rows = list(rows)
    exact = [row for row in rows if row.defence == text]
    if exact:
        return exact
    asked = Spec.parse(text)
    return [row for row in rows if matches(row.cell.defence, asked)]


def matches(spec: Spec, asked: Spec) -> bool:
    """Whether `spec` has the name and the knobs of `asked`; pins of weights may be left out."""
    values = {knob: format_value(value) for knob, value in spec.items}
    return spec.name == asked.name and all(
        str(wanted) in (values.get(knob), unpinned(values.get(knob, "")))
        for knob, wanted in asked.items
    )


def rows_of_defence(
    rows: Sequence[Row], text: str, where: str, rows_of_dataset: Sequence[Row]
) -> list[Row]:
    """The rows of one defence, which may be on several sets of examples.

    Where `text` fits several defences, the one with the most answers counts: attacks times examples
    in `rows_of_dataset`. Variants meet less. BadInput where two have equally many answers.
    """
    by_defence: dict[Spec, list[Row]] = defaultdict(list)
    for row in matching_rows(rows, text):
        by_defence[row.cell.defence].append(row)
    if not by_defence:
        return []
    answers = Counter(dict.fromkeys(by_defence, 0))
    for row in rows_of_dataset:
        if row.cell.defence in by_defence:
            answers[row.cell.defence] += sum(len(record.ids) for record in row.records)
    most, *rest = answers.most_common()
    if rest and rest[0][1] == most[1]:
        fits = ", ".join(unpinned(str(defence)) for defence in by_defence)
        raise BadInput(
            f"defence '{text}' fits several on {where}; name the knobs that tell them apart: {fits}"
        )
    return by_defence[most[0]]


def pair_rows(a: Sequence[Row], b: Sequence[Row], where: str) -> tuple[Row, Row]:
    """The rows of A and B on the same examples.

    Complete rows come first, then the most examples, then the same seed, then the lower seed.
    """
    for rows in (a, b):
        if not any(row.robust for row in rows):
            raise BadInput(
                f"defence '{rows[0].defence}' has no record of an attack on {where}; "
                "run it with python -m bench.run"
            )
    attacked_a = [row for row in a if row.robust]
    attacked_b = [row for row in b if row.robust]
    pairs = [
        (row_a, row_b)
        for row_a in attacked_a
        for row_b in attacked_b
        if row_a.examples == row_b.examples
    ]
    if not pairs:
        sizes = " and ".join(
            f"'{rows[0].defence}' on n={', '.join(str(row.n) for row in rows)}" for rows in (a, b)
        )
        raise BadInput(f"different examples on {where}: {sizes}; run both with the same --n")
    return min(pairs, key=pair_preference)


def pair_preference(pair: tuple[Row, Row]) -> tuple[bool, int, bool, int]:
    a, b = pair
    incomplete = not (a.complete and b.complete)
    return incomplete, -len(a.records[0].ids), a.cell.seed != b.cell.seed, a.cell.seed
