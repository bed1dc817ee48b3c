"""Leaderboards, with the verdicts of `bench.soundness`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.questions.facts import AttackTraits
from bench.questions.spec import Cell
from bench.results import leaderboard, published
from bench.results.equal_sources import EqualSources
from bench.results.leaderboard import Leaderboard
from bench.results.published import PublishedResult
from bench.results.record import Record
from bench.results.store import Store
from bench.soundness.assess import assess


def load_boards(store: Store) -> list[Leaderboard]:
    """Every leaderboard of the store, beside the published figures."""
    return build_leaderboards(
        store.records(),
        store.plans(),
        store.failures(),
        published.load(),
        traits=store.planned_traits(),
        equal=store.equal_sources(),
    )


def build_leaderboards(
    records: Sequence[Record],
    plans: Mapping[str, Sequence[Cell]],
    failures: Mapping[str, str],
    published: Iterable[PublishedResult] = (),
    *,
    traits: Mapping[str, AttackTraits] | None = None,
    equal: EqualSources | None = None,
) -> list[Leaderboard]:
    return leaderboard.build_leaderboards(
        records, plans, failures, published, assess, traits=traits, equal=equal
    )
