"""Where the numbers of a leaderboard come from, in lines of text."""

from __future__ import annotations

from collections.abc import Iterable

from bench.results.leaderboard import Leaderboard
from bench.results.record import Record

NAMES = (
    *("command", "commit", "device", "images", "seed"),
    *("draws", "defences", "attacks", "weights", "versions"),
)


def collect_provenance(board: Leaderboard) -> list[tuple[str, list[str]]]:
    """Pairs of a name and its sorted values over all records of the leaderboard."""
    values: dict[str, set[str]] = {name: set() for name in NAMES}
    for row in board.rows:
        values["defences"].add(str(row.cell.defence))
        for record in row.records:
            for name, texts in sources_of(record).items():
                values[name].update(text for text in texts if text)
    return [(name, sorted(values[name])) for name in NAMES if values[name]]


def sources_of(record: Record) -> dict[str, Iterable[str]]:
    cell = record.cell
    env = record.env
    return {
        "command": [env.command],
        "commit": [env.commit],
        "device": [env.device],
        "images": [
            f"{cell.dataset}: {len(record.ids)} examples, data {env.data[:16] or 'unknown'}"
        ],
        "seed": [str(cell.seed)],
        "draws": [f"{cell.draws} to judge, {cell.select} to select, in batches of {cell.batch}"],
        "attacks": [str(cell.attack)],
        "weights": [f"{name} {digest[:16]}" for name, digest in env.weights],
        "versions": [f"{name} {version}" for name, version in env.versions],
    }
