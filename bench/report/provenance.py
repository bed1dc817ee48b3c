"""Where the numbers of a leaderboard come from, in lines of text. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench.results.leaderboard import Leaderboard
from bench.results.record import Record


def provenance(board: Leaderboard) -> list[tuple[str, list[str]]]:
    """Pairs of a name and its values over all records of the leaderboard, each value once."""
    records = [record for row in board.rows for record in row.records]

    def every(read: Callable[[Record], Iterable[str]]) -> list[str]:
        return sorted({text for record in records for text in read(record) if text})

    found = [
        ("command", every(lambda r: [r.env.command])),
        ("commit", every(lambda r: [r.env.commit])),
        ("device", every(lambda r: [r.env.device])),
        (
            "images",
            every(
                lambda r: [
                    f"{r.cell.dataset}: {len(r.ids)} examples, data {r.env.data[:16] or 'unknown'}"
                ]
            ),
        ),
        ("seed", every(lambda r: [str(r.cell.seed)])),
        (
            "draws",
            every(
                lambda r: [
                    f"{r.cell.draws} to judge, {r.cell.select} to select, in batches of {r.cell.batch}"
                ]
            ),
        ),
        ("defences", sorted({str(row.cell.defence) for row in board.rows})),
        ("attacks", every(lambda r: [str(r.cell.attack)])),
        ("weights", every(lambda r: [f"{name} {digest[:16]}" for name, digest in r.env.weights])),
        ("versions", every(lambda r: [f"{name} {version}" for name, version in r.env.versions])),
    ]
    return [(name, values) for name, values in found if values]
