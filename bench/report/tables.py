"""Leaderboards as CSV.

In cells.csv `acc`, `lo` and `hi` are the attack's own accuracy and its 95% interval. `queries` and
`backwards` are forward and backward passes per example. `nonfinite` and `zero` count gradients,
`strayed` and `unmoved` examples. `routes` says, of an attack that is several in one, how many
examples fell to which. A `defence` reads as in the leaderboard.

A stochastic defence has more columns beside the expected accuracy of one answer. `all_10`
(`all_100`) is the share of examples that ten (a hundred) answers all get right. `majority_9` is
the share that most of nine get right. `clean_all_10` and so on say the same of the clean image.
They are empty where there were fewer draws; those of a deterministic defence are its accuracy. A
leaderboard with a stochastic row has them behind the attacks, for the clean image and for the worst
case.

Some attacks look for the nearest wrong image. Of these, `found` is the share of examples for which
the attack has one, however far away. `median_distance` is the median distance in the norm. An image
that was not found is infinitely far; the median is empty where it is infinite. On a deterministic
defence the decision-based attacks and FAB stop inside of the ball. What they find there is no
shorter than it has to be.

Where a defence certifies, a leaderboard ends with its certified accuracy at each l2 radius. What
the certificates rest on follows: the number of samples n, the probability alpha that one is wrong.
The last column is the time that one certificate takes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from statistics import median

from bench.report.repeats import (
    IMAGES,
    REPEATS,
    has_stochastic_row,
    list_repeated_shares,
    repeated_shares,
)
from bench.results.leaderboard import Leaderboard, Row
from bench.results.record import Record
from bench.results.statistics import Estimate, estimate

INTERVAL = ("acc", "lo", "hi")
COLUMNS = [
    "rank",
    "defence",
    "classifier",
    "dataset",
    "norm",
    "eps",
    "n",
    "seed",
    "stochastic",
    "clean_acc",
    "clean_lo",
    "clean_hi",
    "robust_acc",
    "robust_lo",
    "robust_hi",
    "strongest_attack",
    "verdict",
    "reasons",
    "complete",
    "ms_per_image",
    "cost_ratio",
    "parameters",
    "published_robust_acc",
]
CELL_COLUMNS = [
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
    "family",
    "access",
    "queries",
    "backwards",
    "seconds",
    "draws",
    "select",
    "batch",
    "key",
    "nonfinite",
    "zero",
    "strayed",
    "unmoved",
    "device",
    "commit",
    "flags",
    "routes",
    *REPEATS,
    *(f"clean_{name}" for name in REPEATS),
    "found",
    "median_distance",
]


def leaderboard_csv(board: Leaderboard) -> str:
    return to_csv(leaderboard_columns(board), (leaderboard_row(board, row) for row in board.rows))


def cells_csv(boards: Sequence[Leaderboard]) -> str:
    """One line per record."""
    lines = [
        cell_row(board, row, record)
        for board in boards
        for row in board.rows
        for record in row.records
    ]
    return to_csv(CELL_COLUMNS, lines)


def leaderboard_columns(board: Leaderboard) -> list[str]:
    columns = [*COLUMNS, *(f"acc_{label}" for label in board.attacks)]
    if has_stochastic_row(board):
        columns += [f"{image}_{name}" for image in IMAGES for name in REPEATS]
    if board.radii:
        columns += [f"certified_{limit}_{radius}" for radius in board.radii for limit in INTERVAL]
        columns += ["certificate", "certify_ms_per_image"]
    return columns


def leaderboard_row(board: Leaderboard, row: Row) -> dict[str, str]:
    line = {
        **question_columns(board, row),
        **interval_columns("clean_{}", row.clean),
        **interval_columns("robust_{}", row.robust),
        "rank": format_number(row.rank, "d"),
        "strongest_attack": row.strongest_attack,
        "verdict": row.verdict,
        "reasons": "; ".join(row.reasons),
        "complete": format_bool(row.complete),
        "ms_per_image": format_number(row.ms_per_image, ".4f"),
        "cost_ratio": format_number(row.cost_ratio, ".2f"),
        "parameters": format_number(row.parameters, "d"),
        "published_robust_acc": format_share(row.published.robust if row.published else None),
    }
    accuracies = row.accuracies
    for label in board.attacks:
        line[f"acc_{label}"] = format_share(accuracies.get(label))
    if has_stochastic_row(board):
        line |= {name: format_share(value) for name, value in list_repeated_shares(row).items()}
    for radius in board.radii:
        line |= interval_columns(f"certified_{{}}_{radius}", row.certified(radius))
    if row.certificate:
        seconds_per_image = row.certificate.seconds / len(row.certificate.radii)
        line["certificate"] = describe_certificate(row)
        line["certify_ms_per_image"] = format_number(1e3 * seconds_per_image, ".4f")
    return line


def question_columns(board: Leaderboard, row: Row) -> dict[str, str]:
    return {
        "defence": row.defence,
        "classifier": row.classifier,
        "dataset": board.dataset,
        "norm": board.norm,
        "eps": board.eps,
        "n": format_number(row.n, "d"),
        "seed": str(row.cell.seed),
        "stochastic": format_bool(row.stochastic),
    }


def cell_row(board: Leaderboard, row: Row, record: Record) -> dict[str, str]:
    cell = record.cell
    cost = record.cost
    n = len(record.ids)
    line = {
        **question_columns(board, row),
        **interval_columns("{}", estimate(record.correct, cell.draws)),
        "attack": str(cell.attack),
        "clean_acc": format_share(estimate(record.clean, cell.select).mean),
        "family": record.family,
        "access": cell.threat.access,
        "queries": f"{cost.forwards / n:.1f}",
        "backwards": f"{cost.backwards / n:.1f}",
        "seconds": f"{cost.seconds:.2f}",
        "draws": str(cell.draws),
        "select": str(cell.select),
        "batch": str(cell.batch),
        "key": cell.key,
        "nonfinite": str(cost.nonfinite),
        "zero": str(cost.zero),
        "strayed": str(sum(outside != 0 for outside in record.strayed)),
        "unmoved": str(sum(distance == 0 for distance in record.distance)),
        "device": record.env.device,
        "commit": record.env.commit,
        "flags": " ".join(f"{flag.id}:{flag.severity}" for flag in record.flags),
        "routes": describe_routes(record),
        **nearest_columns(record),
    }
    for name, value in repeated_shares(record.correct, cell.draws).items():
        line[name] = format_share(value)
    for name, value in repeated_shares(record.clean, cell.select).items():
        line[f"clean_{name}"] = format_share(value)
    return line


def describe_routes(record: Record) -> str:
    if not record.routes:
        return ""
    return " ".join(f"{name}:{count}" for name, count in record.routes.counts.items())


def nearest_columns(record: Record) -> dict[str, str]:
    """The share of examples with a wrong image, and the median distance of the nearest one.

    Empty for an attack that does not look for the nearest wrong image.
    """
    if not record.nearest:
        return {}
    distances = [math.inf if distance < 0 else distance for distance in record.nearest]
    middle = median(distances)
    return {
        "found": format_share(sum(map(math.isfinite, distances)) / len(distances)),
        "median_distance": format_number(middle, ".6g") if math.isfinite(middle) else "",
    }


def describe_certificate(row: Row) -> str:
    """`l2, alpha=0.001, n=1000`; empty where the row does not certify."""
    if not row.certificate:
        return ""
    return ", ".join(["l2", *(f"{name}={value:.10g}" for name, value in row.certificate.rests_on)])


def interval_columns(name: str, estimate: Estimate | None) -> dict[str, str]:
    """The estimate under `name`, whose braces stand for `acc`, `lo` and `hi`; none if unknown."""
    if not estimate:
        return {}
    values = (estimate.mean, estimate.lo, estimate.hi)
    return {
        name.format(limit): format_share(value)
        for limit, value in zip(INTERVAL, values, strict=True)
    }


def format_share(value: float | None) -> str:
    return format_number(value, ".4f")


def format_number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def format_bool(value: bool) -> str:
    return "yes" if value else "no"


def to_csv(columns: Sequence[str], lines: Iterable[dict[str, str]]) -> str:
    """The lines under their columns; a column that a line lacks is empty there."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
