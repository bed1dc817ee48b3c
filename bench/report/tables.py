"""Leaderboards as CSV. Standard library only.

In cells.csv `acc`, `lo` and `hi` are the attack's own accuracy and its 95% interval; `queries` and `backwards` are forward and backward
passes per example; `nonfinite` and `zero` count gradients, `strayed` and `unmoved` examples; `routes` says, of an attack that is several in one, how
many examples fell to which. A `defence` reads as in the leaderboard.

Beside the expected accuracy of one answer stand, for a stochastic defence, `all_10` and `all_100`, the share of examples that ten (a hundred)
answers all get right, and `majority_9`, the share that most of nine do; `clean_all_10` and so on say the same of the clean image. They are empty
where there were fewer draws; those of a deterministic defence are its accuracy. A leaderboard with a stochastic row has them behind the attacks, for
the clean image and for the worst case.

Of an attack that looks for the nearest wrong image, `found` is the share of examples for which it has one, however far away, and `median_distance`
the median distance of these in the norm, with no image found being infinitely far; empty where that is the median. On a deterministic defence the
decision-based ones and FAB stop inside of the ball, so that what they find there is no shorter than it has to be.

Where a defence certifies, a leaderboard ends with its certified accuracy at each l2 radius, what the certificates rest on (the number of
samples n, the probability alpha that one is wrong) and the time that one takes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from statistics import median

from bench.report.repeats import IMAGES, REPEATS, of_row, repeats, several
from bench.results.leaderboard import Leaderboard, Row
from bench.results.names import family
from bench.results.record import Record
from bench.results.statistics import Estimate, estimate

COLUMNS = (
    *("rank", "defence", "classifier", "dataset", "norm", "eps", "n", "seed", "stochastic"),
    *("clean_acc", "clean_lo", "clean_hi", "robust_acc", "robust_lo", "robust_hi"),
    *(
        "strongest_attack",
        "verdict",
        "reasons",
        "complete",
        "ms_per_image",
        "cost_ratio",
        "parameters",
        "published_robust_acc",
    ),
)
CELL_COLUMNS = (
    *(
        "dataset",
        "norm",
        "eps",
        "n",
        "seed",
        "defence",
        "classifier",
        "stochastic",
        "attack",
        "acc",
        "lo",
        "hi",
        "clean_acc",
    ),
    *("family", "access", "queries", "backwards", "seconds", "draws", "select", "batch", "key"),
    *("nonfinite", "zero", "strayed", "unmoved", "device", "commit", "flags", "routes"),
    *(*REPEATS, *(f"clean_{name}" for name in REPEATS), "found", "median_distance"),
)


def leaderboard_csv(board: Leaderboard) -> str:
    again = [f"{images}_{name}" for images in IMAGES for name in REPEATS] if several(board) else []
    header = (
        *COLUMNS,
        *(f"acc_{label}" for label in board.attacks),
        *again,
        *certified_columns(board),
    )
    return to_csv(
        header,
        ([*leading(board, row), *behind(board, row), *certified(board, row)] for row in board.rows),
    )


def behind(board: Leaderboard, row: Row) -> list[str]:
    """The row's accuracy under each attack and, where a row of the board is stochastic, under repeated draws."""
    told = of_row(row).values() if several(board) else ()
    return [
        share(value) for value in (*(row.accuracies.get(label) for label in board.attacks), *told)
    ]


def certified_columns(board: Leaderboard) -> list[str]:
    each = [f"certified_{what}_{radius}" for radius in board.radii for what in ("acc", "lo", "hi")]
    return [*each, "certificate", "certify_ms_per_image"] if each else []


def certified(board: Leaderboard, row: Row) -> list[str]:
    if not board.radii:
        return []
    proof = row.certificate
    each = [text for radius in board.radii for text in interval(row.certified(radius))]
    ms = 1e3 * proof.seconds / len(proof.radii) if proof else None
    return [*each, rests_on(row), number(ms, ".4f")]


def rests_on(row: Row) -> str:
    """`l2, alpha=0.001, n=1000`; empty where the row does not certify."""
    return (
        ", ".join(["l2", *(f"{name}={value:.10g}" for name, value in row.certificate.rests_on)])
        if row.certificate
        else ""
    )


def cells_csv(boards: Sequence[Leaderboard]) -> str:
    return to_csv(
        CELL_COLUMNS,
        (
            cell(board, row, record)
            for board in boards
            for row in board.rows
            for record in row.records
        ),
    )


def leading(board: Leaderboard, row: Row) -> list[str]:
    known = [
        *question(board, row),
        yes(row.stochastic),
        *interval(row.clean),
        *interval(row.robust),
    ]
    judged = [row.strongest_attack, row.verdict, "; ".join(row.reasons), yes(row.complete)]
    costs = [
        number(row.ms_per_image, ".4f"),
        number(row.cost_ratio, ".2f"),
        number(row.parameters, "d"),
    ]
    return [
        number(row.rank, "d"),
        *known,
        *judged,
        *costs,
        share(row.published.robust if row.published else None),
    ]


def question(board: Leaderboard, row: Row) -> list[str]:
    return [
        row.defence,
        row.classifier,
        board.dataset,
        board.norm,
        board.eps,
        number(row.n, "d"),
        str(row.cell.seed),
    ]


def cell(board: Leaderboard, row: Row, record: Record) -> list[str]:
    n, asked, cost = len(record.ids), record.cell, record.cost
    defence, classifier, *where, seed = question(board, row)
    clean = estimate(record.clean, asked.select)
    scores = [*interval(estimate(record.correct, asked.draws)), share(clean.mean)]
    effort = [
        family(asked),
        asked.threat.access,
        f"{cost.forwards / n:.1f}",
        f"{cost.backwards / n:.1f}",
        f"{cost.seconds:.2f}",
    ]
    how = [str(asked.draws), str(asked.select), str(asked.batch), asked.key]
    doubts = [
        str(count)
        for count in (
            cost.nonfinite,
            cost.zero,
            sum(s != 0 for s in record.strayed),
            sum(d == 0 for d in record.distance),
        )
    ]
    flags = " ".join(f"{flag.id}:{flag.severity}" for flag in record.flags)
    routes = (
        " ".join(f"{name}:{count}" for name, count in record.routes.counts.items())
        if record.routes
        else ""
    )
    source = [record.env.device, record.env.commit, flags, routes]
    again = map(
        share,
        (
            *repeats(record.correct, asked.draws).values(),
            *repeats(record.clean, asked.select).values(),
        ),
    )
    said = [*scores, *effort, *how, *doubts, *source, *again, *found_at(record)]
    return [*where, seed, defence, classifier, yes(row.stochastic), str(asked.attack), *said]


def found_at(record: Record) -> tuple[str, str]:
    """The share of examples for which an attack of minimal norm found a wrong image, and the median distance of the nearest."""
    if not record.nearest:
        return "", ""
    distances = [math.inf if distance < 0 else distance for distance in record.nearest]
    middle = median(distances)
    return share(sum(map(math.isfinite, distances)) / len(distances)), number(
        middle, ".6g"
    ) if math.isfinite(middle) else ""


def interval(estimate: Estimate | None) -> list[str]:
    return (
        [share(estimate.mean), share(estimate.lo), share(estimate.hi)] if estimate else ["", "", ""]
    )


def share(value: float | None) -> str:
    return number(value, ".4f")


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def yes(value: bool) -> str:
    return "yes" if value else "no"


def to_csv(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return out.getvalue()
