"""A leaderboard as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.questions.pins import unpinned
from bench.report.provenance import collect_provenance
from bench.report.repeats import HEADINGS, MEANING, has_stochastic_row, shares_under_headings
from bench.report.tables import describe_certificate
from bench.results.leaderboard import Leaderboard, Row
from bench.results.statistics import Estimate

AS_CODE = ("command", "commit", "defences", "attacks")  # of the provenance
COLUMNS = (
    *("#", "defence", "classifier", "clean", "robust"),
    *("strongest attack", "verdict", "cost", "published"),
)
BRIEF_COLUMNS = tuple(name for name in COLUMNS if name not in ("classifier", "published"))
CERTIFIED_MEANING = (
    "The share of examples that are proved to stay right under any change shorter than the radius: "
    "a lower bound, whatever the attack. Each proof holds with probability 1 - alpha."
)


def render_markdown(board: Leaderboard) -> str:
    """The leaderboard, the accuracy under each attack, the certificates, reasons and sources."""
    parts = [
        f"# {board.dataset}, {board.norm}, eps {board.eps}",
        "Accuracy with its 95% interval. Robust: on the worst attack per example, an upper bound. "
        "Cost: inference time over that of the undefended classifier.",
        render_table(COLUMNS, (format_row(row).values() for row in board.rows)),
        "## Accuracy under each attack",
        render_attacks(board),
        *render_transfers(board),
        *render_repeats(board),
        *render_certificates(board),
        "## Why these verdicts",
        "\n".join(
            f"- {escape(row.defence)}: {row.verdict}. {escape('; '.join(row.reasons))}"
            for row in board.rows
        ),
        "## Where the numbers come from",
        render_provenance(board),
        "Rebuilt from the records by `python -m bench.report`.",
    ]
    return "\n\n".join(parts) + "\n"


def brief_row(row: Row) -> list[str]:
    """The row under `BRIEF_COLUMNS`, for a terminal."""
    cells = format_row(row)
    return [cells[name] for name in BRIEF_COLUMNS]


def format_row(row: Row) -> dict[str, str]:
    """The row under `COLUMNS`."""
    return {
        "#": str(row.rank or ""),
        "defence": row.defence,
        "classifier": row.classifier,
        "clean": format_interval(row.clean),
        "robust": format_interval(row.robust),
        "strongest attack": row.strongest_attack,
        "verdict": row.verdict if row.complete else f"{row.verdict} (cells missing)",
        "cost": f"{row.cost_ratio:.1f}x" if row.cost_ratio is not None else "",
        "published": format_share(row.published.robust if row.published else None),
    }


def format_interval(estimate: Estimate | None) -> str:
    return f"{estimate.mean:.3f} [{estimate.lo:.3f}, {estimate.hi:.3f}]" if estimate else ""


def format_share(share: float | None) -> str:
    return "" if share is None else f"{share:.3f}"


def render_attacks(board: Leaderboard) -> str:
    """The accuracy of each row under each attack alone."""
    attacks = [label for label in board.attacks if label != "none"]
    lines = []
    for row in board.rows:
        accuracies = row.accuracies
        lines.append([row.defence, *(format_share(accuracies.get(label)) for label in attacks)])
    return render_table(("defence", *attacks), lines)


def render_certificates(board: Leaderboard) -> list[str]:
    """Certified accuracy by l2 radius, with its heading; nothing where no row certifies."""
    if not board.radii:
        return []
    lines = []
    for row in board.rows:
        if row.certificate:
            certified = [format_interval(row.certified(radius)) for radius in board.radii]
            lines.append([row.defence, row.classifier, *certified, describe_certificate(row)])
    return [
        "## Certified accuracy by l2 radius",
        CERTIFIED_MEANING,
        render_table(("defence", "classifier", *board.radii, "rests on"), lines),
    ]


def render_repeats(board: Leaderboard) -> list[str]:
    """One answer beside repeated ones, of the stochastic rows; nothing where there are none."""
    if not has_stochastic_row(board):
        return []
    lines = [
        [row.defence, *map(format_share, shares_under_headings(row))]
        for row in board.rows
        if row.stochastic
    ]
    return ["## Asked again", MEANING, render_table(("defence", *HEADINGS), lines)]


def render_transfers(board: Leaderboard) -> list[str]:
    """The accuracy of each row under transferred attacks, by the classifier they were made on.

    The lowest accuracy counts. Nothing for fewer than two such classifiers.
    """
    by_source: dict[str, dict[int, float]] = {}
    for i, row in enumerate(board.rows):
        for record in row.records:
            if record.family == "transfer":
                source = unpinned(str(record.cell.attack.params["source"]))
                accuracies = by_source.setdefault(source, {})
                accuracies[i] = min(record.accuracy, accuracies.get(i, 1.0))
    if len(by_source) < 2:
        return []
    lines = [
        [row.defence, *(format_share(accuracies.get(i)) for accuracies in by_source.values())]
        for i, row in enumerate(board.rows)
    ]
    return ["## Accuracy under transfer, by source", render_table(("defence", *by_source), lines)]


def render_provenance(board: Leaderboard) -> str:
    lines = []
    for name, values in collect_provenance(board):
        texts = [f"`{value}`" if name in AS_CODE else escape(value) for value in values]
        lines.append(f"- {name}: {', '.join(texts)}")
    return "\n".join(lines)


def render_table(header: Sequence[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(escape(text) for text in cells) + " |" for cells in rows)


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
