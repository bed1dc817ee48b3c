"""Which stored answers are of other code, images, weights or libraries than today's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.files import DownloadFailed, no_downloads
from bench.judging import environment
from bench.judging.setup import forget, load_cached
from bench.questions.sources import digest_path, forget_sources, sources_of
from bench.questions.spec import Cell, Spec
from bench.results.equal_sources import EqualSources
from bench.results.names import dataset_of
from bench.results.record import Env, Record
from bench.results.store import Store


@dataclass(frozen=True, slots=True)
class Change:
    """In what an answer differs from today's, `code` for example, and what of it changed."""

    kind: str
    what: tuple[str, ...]

    def __str__(self) -> str:
        if not self.what:
            return f"unknown {self.kind}"
        return f"other {self.kind}: {', '.join(self.what)} changed"


@dataclass(slots=True)
class Today:
    """What answers rest on today, each looked up once; what was looked up before is forgotten."""

    data_dir: Path
    _images: dict[Spec, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        forget()
        forget_sources()

    def images(self, cell: Cell) -> str:
        """The digest of the images that are there now; empty where they are not downloaded."""
        dataset = dataset_of(cell)
        if dataset not in self._images:
            try:
                with no_downloads():
                    self._images[dataset] = load_cached(cell.dataset, str(self.data_dir)).digest
            except DownloadFailed:
                self._images[dataset] = ""
        return self._images[dataset]


def find_stale(cells: Iterable[Cell], store: Store, today: Today) -> dict[Cell, Change]:
    """The cells of which the store has an answer that is not of today, and why."""
    stale = {}
    equal = store.equal_sources()
    for cell in cells:
        record = store.get(cell)
        change = next(list_changes(record, today, equal), None) if record else None
        if change:
            stale[cell] = change
    return stale


def list_changes(record: Record, today: Today, equal: EqualSources) -> Iterator[Change]:
    """In what the record differs from today; what is dear to look up comes last."""
    env, cell = record.env, record.cell
    if not env.source and not equal.unknown:
        yield Change("code", ())
    if env.source:
        changed = equal.list_changes(env.sources, sources_of(cell))
        changed += [name for name, digest in env.files if digest_path(Path(name)) != digest]
        if changed:
            yield Change("code", tuple(changed))
        if libraries := differing(env.versions, environment.versions()):
            yield Change("libraries", libraries)
    if weights := changed_weights(env, cell):
        yield Change("weights", weights)
    if env.data and today.images(cell) not in ("", env.data):
        yield Change("images", (cell.dataset.name,))


def differing(then: Iterable[tuple[str, str]], now: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The names of the pairs that differ."""
    return tuple(sorted({name for name, _ in set(then) ^ set(now)}))


def changed_weights(env: Env, cell: Cell) -> tuple[str, ...]:
    """The weights of another digest; one that is only known by its first digits may be the same."""
    now = dict(environment.digest_weights(cell))
    return tuple(
        name
        for name, digest in env.weights
        if not (digest.startswith(now.get(name, digest)) or now[name].startswith(digest))
    )


def describe_stale(stale: Mapping[Cell, Change], *, kept: bool) -> list[str]:
    """In words, how many answers are stale and why: a line for each reason."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell, change in stale.items():
        groups[str(change)].append(cell)
    outcome = "kept" if kept else "asked again"
    lines = []
    for reason, cells in groups.items():
        many = "answer is" if len(cells) == 1 else "answers are"
        lines.append(f"{len(cells)} {many} of {reason}; {outcome}")
    return lines
