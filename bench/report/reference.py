"""Where a run differs from the published one beyond the intervals. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.questions.spec import Spec
from bench.report.markdown import ranged
from bench.results.leaderboard import Row
from bench.results.names import dataset_of, without_pins


def compare_reference(rows: Iterable[Row], reference_rows: Sequence[Row]) -> list[str]:
    """In words: each accuracy whose 95% interval does not touch that of the same defence, dataset, norm and eps in the reference.

    Robust accuracies are compared only where both rows met the same attacks.
    """
    found = []
    for row in rows:
        twins = [other for other in reference_rows if same_question(row) == same_question(other)]
        if not twins:
            continue
        # The same examples and seed where the reference has them, else its largest row.
        other = min(
            twins,
            key=lambda r: (
                r.cell.dataset != row.cell.dataset,
                r.cell.seed != row.cell.seed,
                -(r.n or 0),
            ),
        )
        pairs = [("clean_acc", row.clean, other.clean)]
        if attacks(row) == attacks(other):
            pairs.append(("robust_acc", row.robust, other.robust))
        for name, here, there in pairs:
            if here and there and (here.hi < there.lo or there.hi < here.lo):
                where = f"{row.cell.dataset.name} {row.cell.threat.norm} {row.cell.threat.eps}, {row.defence}"
                weights = "" if row.cell.defence == other.cell.defence else " with other weights"
                found.append(
                    f"{where}: {name} {ranged(here)} (n {row.n}) here, {ranged(there)} (n {other.n}) in the reference{weights}"
                )
    return found


def same_question(row: Row) -> tuple[Spec, str, object, Spec]:
    return (
        dataset_of(row.cell),
        row.cell.threat.norm,
        row.cell.threat.eps,
        without_pins(row.cell.defence),
    )


def attacks(row: Row) -> set[Spec]:
    return {without_pins(record.cell.attack) for record in row.records}
