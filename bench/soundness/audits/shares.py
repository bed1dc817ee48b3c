"""What an attack leaves of each example, and which of a row's records are gradient attacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.results.record import Record


def gradient_attacks(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.family == "gradient"]


def shares(record: Record) -> list[float]:
    """Per example, the share of the draws that were right."""
    return [count / record.cell.draws for count in record.correct]


def per_example_minimum(records: Sequence[Record]) -> list[float]:
    """Per example, the smallest share of right answers that one of the attacks leaves."""
    return [min(example) for example in zip(*map(shares, records), strict=True)]


def surviving(record: Record) -> list[bool]:
    """Whether each example is right in more than half of the draws."""
    return [share > 0.5 for share in shares(record)]
