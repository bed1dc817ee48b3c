"""Which code counts as the same: of two answers, and of an answer and today. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.results.record import Env

Digests = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class EqualSources:
    """What `sources.json` of a folder of results says.

    `unknown`: an answer that was stored before sources were counts as one of today's code.
    `first`: by the name of a module or file, from a digest to that of an equal one.
    """

    unknown: bool = False
    first: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EqualSources:
        """Of `{"unknown": true, "equal": {"baselines.jpeg": [["DIGEST", "DIGEST"]]}}`."""
        first = {}
        for name, groups in data.get("equal", {}).items():
            first[name] = {digest: group[0] for group in groups for digest in group}
        return EqualSources(bool(data.get("unknown")), first)

    def same_code(self, answer: Env, other: Env) -> bool:
        """Whether no module and no file that two answers both rest on differs.

        What only one of them rests on, as its attack, may differ.
        """
        if not (answer.source and other.source):
            return answer.source == other.source or self.unknown
        return not self.list_differing(answer, other)

    def list_differing(self, answer: Env, other: Env) -> list[str]:
        """The names of the modules and files of both answers that differ."""
        digests = dict(self.canonical((*answer.sources, *answer.files)))
        others = dict(self.canonical((*other.sources, *other.files)))
        return sorted(name for name in digests.keys() & others if digests[name] != others[name])

    def list_changes(self, then: Digests, now: Digests) -> list[str]:
        """The names of what differs, is new or is gone."""
        changed = set(self.canonical(then)) ^ set(self.canonical(now))
        return sorted({name for name, _ in changed})

    def canonical(self, digests: Digests) -> list[tuple[str, str]]:
        return [(name, self.first.get(name, {}).get(digest, digest)) for name, digest in digests]
