"""A leaderboard as Markdown. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.report.provenance import provenance
from bench.report.repeats import BESIDE, MEANING, beside, several
from bench.report.tables import rests_on
from bench.results.leaderboard import Leaderboard, Row
from bench.results.names import family, unpinned
from bench.results.statistics import Estimate

CODE = ("command", "commit", "defences", "attacks")
BRIEF = ("#", "defence", "clean", "robust", "strongest attack", "verdict", "cost")
CERTIFIED = (
    "The share of examples that are proved to stay right under any change shorter than the radius: a lower bound, whatever the attack. "
    "Each proof holds with probability 1 - alpha."
)


def brief(row: Row) -> list[str]:
    """The row under the headings of `BRIEF`, for a terminal."""
    rank, defence, _, *rest, _ = line(row)
    return [rank, defence, *rest]


def line(row: Row) -> list[str]:
    claim = f"{row.published.robust:.3f}" if row.published else ""
    cost = f"{row.cost_ratio:.1f}x" if row.cost_ratio is not None else ""
    verdict = row.verdict if row.complete else f"{row.verdict} (cells missing)"
    return [
        str(row.rank or ""),
        row.defence,
        row.classifier,
        ranged(row.clean),
        ranged(row.robust),
        row.strongest_attack,
        verdict,
        cost,
        claim,
    ]


def ranged(estimate: Estimate | None) -> str:
    return f"{estimate.mean:.3f} [{estimate.lo:.3f}, {estimate.hi:.3f}]" if estimate else ""


def certificates(board: Leaderboard) -> list[str]:
    """Certified accuracy by l2 radius, with its heading; nothing where no row certifies."""
    held = [row for row in board.rows if row.certificate]
    if not held:
        return []
    each = (
        [
            row.defence,
            row.classifier,
            *(ranged(row.certified(radius)) for radius in board.radii),
            rests_on(row),
        ]
        for row in held
    )
    return [
        "## Certified accuracy by l2 radius",
        CERTIFIED,
        table(("defence", "classifier", *board.radii, "rests on"), each),
    ]


def markdown(board: Leaderboard) -> str:
    """The leaderboard, the accuracy under each attack, what is certified, what the verdicts rest on, and where the numbers come from."""
    attacks = [label for label in board.attacks if label != "none"]
    header = (
        "#",
        "defence",
        "classifier",
        "clean",
        "robust",
        "strongest attack",
        "verdict",
        "cost",
        "published",
    )
    each = (
        [row.defence, *(f"{row.accuracies[a]:.3f}" if a in row.accuracies else "" for a in attacks)]
        for row in board.rows
    )
    parts = [
        f"# {board.dataset}, {board.norm}, eps {board.eps}",
        "Accuracy with its 95% interval. Robust: on the worst attack per example, an upper bound. "
        "Cost: inference time over that of the undefended classifier.",
        table(header, (line(row) for row in board.rows)),
        "## Accuracy under each attack",
        table(("defence", *attacks), each),
        *transfers(board),
        *repeated(board),
        *certificates(board),
        "## Why these verdicts",
        "\n".join(
            f"- {escape(row.defence)}: {row.verdict}. {escape('; '.join(row.reasons))}"
            for row in board.rows
        ),
        "## Where the numbers come from",
        "\n".join(
            f"- {name}: {', '.join(quoted(name, value) for value in values)}"
            for name, values in provenance(board)
        ),
        "Rebuilt from the records by `python -m bench.report`.",
    ]
    return "\n\n".join(parts) + "\n"


def repeated(board: Leaderboard) -> list[str]:
    """One answer beside several of the stochastic rows, with its heading; nothing where there are none."""
    if not several(board):
        return []
    each = (
        [row.defence, *("" if value is None else f"{value:.3f}" for value in beside(row))]
        for row in board.rows
        if row.stochastic
    )
    return ["## Asked again", MEANING, table(("defence", *BESIDE), each)]


def transfers(board: Leaderboard) -> list[str]:
    """The matrix of defences by the classifiers that the transferred attacks were made on, with its heading; nothing for less than two of these."""
    found: dict[str, dict[str, float]] = {}
    for i, row in enumerate(board.rows):
        for record in row.records:
            if family(record.cell) == "transfer":
                source = unpinned(str(record.cell.attack.params["source"]))
                held = found.setdefault(source, {})
                held[str(i)] = min(record.accuracy, held.get(str(i), 1.0))
    if len(found) < 2:
        return []
    each = (
        [row.defence, *(f"{by[str(i)]:.3f}" if str(i) in by else "" for by in found.values())]
        for i, row in enumerate(board.rows)
    )
    return ["## Accuracy under transfer, by source", table(("defence", *found), each)]


def quoted(name: str, value: str) -> str:
    return f"`{value}`" if name in CODE else escape(value)


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(escape(text) for text in cells) + " |"
        for cells in (header, ["---"] * len(header), *lines)
    )


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
