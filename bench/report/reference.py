"""Where a run differs from the published one beyond the intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from bench.questions.pins import without_pins
from bench.questions.spec import Spec
from bench.report.boards import load_boards
from bench.report.markdown import format_interval
from bench.results.leaderboard import Row
from bench.results.names import dataset_of
from bench.results.store import Store

REFERENCE = Path(__file__).parents[2] / "results" / "reference"  # of a checkout


def compare_with_reference(root: Path, reference: Path = REFERENCE) -> list[str]:
    """In words, where the store at `root` differs from the published one, or that it does not.

    A difference is one beyond the intervals. Nothing where there is no reference, where it is
    `root` itself, or where they have no row in common.
    """
    if root.resolve() == reference.resolve() or not (reference / "records").is_dir():
        return []
    rows = load_rows(root)
    reference_rows = load_rows(reference)
    differences = list_differences(rows, reference_rows)
    if differences:
        return [f"differs from the reference: {text}" for text in differences]
    reference_questions = {same_question(row) for row in reference_rows}
    common = sum(same_question(row) in reference_questions for row in rows)
    if not common:
        return []
    return [
        f"{common} of {len(rows)} rows are in the reference too; "
        "on what both answered they agree within the 95% intervals"
    ]


def load_rows(root: Path) -> list[Row]:
    return [row for board in load_boards(Store(root)) for row in board.rows]


def list_differences(rows: Iterable[Row], reference_rows: Sequence[Row]) -> list[str]:
    """In words, each accuracy whose 95% interval does not touch that of the reference.

    A row is compared with one of the same defence, dataset, norm and eps. Robust accuracies are
    compared only where both rows met the same attacks.
    """
    differences = []
    for row in rows:
        twins = [other for other in reference_rows if same_question(row) == same_question(other)]
        if twins:
            # The same examples and seed where the reference has them, else its largest row.
            twin = min(
                twins,
                key=lambda other: (
                    other.cell.dataset != row.cell.dataset,
                    other.cell.seed != row.cell.seed,
                    -(other.n or 0),
                ),
            )
            differences += list_row_differences(row, twin)
    return differences


def list_row_differences(row: Row, twin: Row) -> list[str]:
    accuracies = [("clean_acc", row.clean, twin.clean)]
    if attacks_of(row) == attacks_of(twin):
        accuracies.append(("robust_acc", row.robust, twin.robust))
    cell = row.cell
    where = f"{cell.dataset.name} {cell.threat.norm} {cell.threat.eps}, {row.defence}"
    weights = "" if cell.defence == twin.cell.defence else " with other weights"
    return [
        f"{where}: {name} {format_interval(measured)} (n {row.n}) here, "
        f"{format_interval(published)} (n {twin.n}) in the reference{weights}"
        for name, measured, published in accuracies
        if measured and published and (measured.hi < published.lo or published.hi < measured.lo)
    ]


def same_question(row: Row) -> tuple[Spec, str, Fraction, Spec]:
    """What must be the same in two rows that answer one question."""
    threat = row.cell.threat
    return dataset_of(row.cell), threat.norm, threat.eps, without_pins(row.cell.defence)


def attacks_of(row: Row) -> set[Spec]:
    return {without_pins(record.cell.attack) for record in row.records}
