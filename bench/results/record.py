"""What the bench answers: one `Record` for one `Cell`, per example, and how parts of it join. Standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bench.questions.spec import Cell


@dataclass(frozen=True, slots=True)
class Flag:
    """A reason to doubt a number: `id` names the check (P: of the defence, D: of gradients and attacks), `severity` is `hard` or `soft`."""

    id: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cell took. `forwards` and `backwards` count examples passed through the target by the attacker, summed over the cell;
    `nonfinite` and `zero` count those among the backwards whose gradient held a NaN or an infinity, or was exactly zero."""

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    nonfinite: int = 0
    zero: int = 0
    ms_per_image: float | None = (
        None  # one undisturbed prediction of the defence; measured in `none` cells
    )
    base_ms_per_image: float | None = (
        None  # the same of its undefended classifier, on the same images in the same run
    )
    parameters: int | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a defence certifies of each example of a `none` cell: no change shorter than the radius, in l2, makes its answer wrong.

    -1 where it abstains, or its certified label is wrong. `rests_on` is what the defence says of how the radii were found, such as the number
    of samples n and the probability alpha that one of them is too large; `seconds` is the time that all of them took.
    """

    radii: tuple[float, ...]
    rests_on: tuple[tuple[str, float], ...] = ()
    seconds: float = 0.0

    def beyond(self, radius: float) -> tuple[int, ...]:
        """Per example, 1 where the certified radius is larger than `radius`, and 0 where it is not."""
        return tuple(int(one > max(radius, 0.0)) for one in self.radii)


@dataclass(frozen=True, slots=True)
class Routes:
    """Of an attack that is several in one: their names, and per example the index of the one whose candidate was chosen (-1: the clean image)."""

    names: tuple[str, ...]
    chosen: tuple[int, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Of how many examples each route gave the candidate that counts, the most first; `clean` where none did better."""
        found = Counter("clean" if i < 0 else self.names[i] for i in self.chosen)
        return dict(found.most_common())


@dataclass(frozen=True, slots=True)
class Planted:
    """Of the check `planted`, per example 1 or 0: whether an adversarial example could be planted (`valid`), whether the attack found one (`found`),
    and whether random points did (`random`). Nothing is found where nothing was planted."""

    valid: tuple[int, ...]
    found: tuple[int, ...]
    random: tuple[int, ...]

    @property
    def rates(self) -> tuple[float, float, float]:
        """The share that could be planted, and of those the shares that the attack and random points found (0 where there are none)."""
        count = sum(self.valid)
        return (
            count / max(len(self.valid), 1),
            sum(self.found) / max(count, 1),
            sum(self.random) / max(count, 1),
        )


@dataclass(frozen=True, slots=True)
class Env:
    """Where an answer comes from."""

    commit: str = ""
    command: str = ""
    device: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    weights: tuple[
        tuple[str, str], ...
    ] = ()  # (name, sha256) of every weights file that the cell used
    data: str = ""  # digest of the images and labels of the whole split


@dataclass(frozen=True, slots=True)
class Record:
    """The answer to a cell, example by example, in the order of `ids`.

    `clean` and `selected` count right answers among `cell.select` selection draws, on the clean image and on the chosen candidate;
    `margin` is the candidate's mean margin over those draws (max wrong logit less true logit: positive is misclassified);
    `correct` counts right answers on it among `cell.draws` evaluation draws, which neither attack nor selection ever saw;
    `distance` is the candidate's distance from the image in the cell's norm; `strayed` is by how much the attack's
    proposals lay outside of ball or box before the harness projected them (0: they did not; -1: they were not finite).
    """

    cell: Cell
    ids: tuple[int, ...]
    clean: tuple[int, ...]
    selected: tuple[int, ...]
    margin: tuple[float, ...]
    correct: tuple[int, ...]
    distance: tuple[float, ...]
    strayed: tuple[float, ...]
    cost: Cost = Cost()
    flags: tuple[Flag, ...] = ()
    env: Env = Env()
    certificate: Certificate | None = None  # of a defence that can certify, in its `none` cell
    routes: Routes | None = None  # of an attack that names its candidates
    nearest: tuple[float, ...] | None = (
        None  # of an attack of minimal norm: the distance of what it found, in the ball or not; -1: nothing is wrong
    )
    planted: Planted | None = (
        None  # of the check of that name, whose other columns are those of the planted models
    )
    checks: tuple[
        tuple[str, float], ...
    ] = ()  # what the probes measured, by the check's code: told also where it raises no flag

    def __post_init__(self) -> None:
        for name in PER_EXAMPLE:
            if len(getattr(self, name)) != len(self.ids):
                raise ValueError(
                    f"record {self.cell.key}: {len(getattr(self, name))} values of '{name}' for {len(self.ids)} ids"
                )
        if self.certificate and len(self.certificate.radii) != len(self.ids):
            raise ValueError(
                f"record {self.cell.key}: {len(self.certificate.radii)} certified radii for {len(self.ids)} ids"
            )
        if self.routes and len(self.routes.chosen) != len(self.ids):
            raise ValueError(
                f"record {self.cell.key}: {len(self.routes.chosen)} routes for {len(self.ids)} ids"
            )
        if self.nearest is not None and len(self.nearest) != len(self.ids):
            raise ValueError(
                f"record {self.cell.key}: {len(self.nearest)} distances found for {len(self.ids)} ids"
            )
        if self.planted and {len(values) for values in asdict(self.planted).values()} != {
            len(self.ids)
        }:
            raise ValueError(
                f"record {self.cell.key}: {len(self.planted.valid)} planted examples for {len(self.ids)} ids"
            )
        if len(set(self.ids)) != len(self.ids):
            twice = sorted({i for i in self.ids if self.ids.count(i) > 1})
            raise ValueError(f"record {self.cell.key}: examples judged twice: {twice}")

    @property
    def accuracy(self) -> float:
        """Expected accuracy on the chosen candidates: mean over examples of the share of evaluation draws that were right."""
        return sum(self.correct) / (len(self.ids) * self.cell.draws)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {name: list(getattr(self, name)) for name in ("ids", *PER_EXAMPLE)}
        data["cell"] = self.cell.to_json()
        data["key"] = self.cell.key
        data["cost"] = asdict(self.cost)
        data["flags"] = [asdict(flag) for flag in self.flags]
        data["env"] = {
            **asdict(self.env),
            "versions": dict(self.env.versions),
            "weights": dict(self.env.weights),
        }
        if self.certificate:
            data["certificate"] = {
                **asdict(self.certificate),
                "rests_on": dict(self.certificate.rests_on),
            }
        if self.checks:
            data["checks"] = dict(self.checks)
        if self.routes:
            data["routes"] = {name: list(values) for name, values in asdict(self.routes).items()}
        if self.nearest is not None:
            data["nearest"] = list(self.nearest)
        if self.planted:
            data["planted"] = {name: list(values) for name, values in asdict(self.planted).items()}
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Record:
        env = {
            **data["env"],
            **{k: tuple(sorted(data["env"][k].items())) for k in ("versions", "weights")},
        }
        held = data.get("certificate")
        proof = (
            Certificate(
                tuple(held["radii"]), tuple(sorted(held["rests_on"].items())), held["seconds"]
            )
            if held
            else None
        )
        named = data.get("routes")
        return Record(
            cell=Cell.from_json(data["cell"]),
            **{name: tuple(data[name]) for name in ("ids", *PER_EXAMPLE)},
            cost=Cost(**data["cost"]),
            flags=tuple(Flag(**flag) for flag in data["flags"]),
            env=Env(**env),
            certificate=proof,
            checks=tuple(sorted(data.get("checks", {}).items())),
            routes=Routes(tuple(named["names"]), tuple(named["chosen"])) if named else None,
            nearest=tuple(data["nearest"]) if "nearest" in data else None,
            planted=Planted(**{name: tuple(values) for name, values in data["planted"].items()})
            if "planted" in data
            else None,
        )


PER_EXAMPLE = ("clean", "selected", "margin", "correct", "distance", "strayed")


def merge(parts: Sequence[Record]) -> Record:
    """Join the parts of one cell by example id; the same example in two parts is an error.

    Costs add up, the fastest inference time counts, equal flags are kept once.
    """
    if not parts:
        raise ValueError("nothing to merge")
    first = parts[0]
    if any(part.cell != first.cell for part in parts):
        raise ValueError(
            f"parts of different cells cannot be merged: {sorted({part.cell.key for part in parts})}"
        )
    columns: dict[str, list[Any]] = {
        name: [v for part in parts for v in getattr(part, name)] for name in ("ids", *PER_EXAMPLE)
    }
    order = sorted(range(len(columns["ids"])), key=columns["ids"].__getitem__)
    times: dict[str, Any] = {
        name: min(
            (t for part in parts if (t := getattr(part.cost, name)) is not None), default=None
        )
        for name in ("ms_per_image", "base_ms_per_image", "parameters")
    }
    totals = {
        f.name: sum(getattr(part.cost, f.name) for part in parts)
        for f in fields(Cost)
        if f.name not in times
    }
    ordered: dict[str, Any] = {
        name: tuple(values[i] for i in order) for name, values in columns.items()
    }
    return replace(
        first,
        **ordered,
        cost=Cost(**times, **totals),
        flags=tuple(dict.fromkeys(flag for part in parts for flag in part.flags)),
        checks=tuple(sorted({pair for part in parts for pair in part.checks})),
        certificate=joined([part.certificate for part in parts], order),
        routes=rejoined([part.routes for part in parts], order),
        nearest=realigned([part.nearest for part in parts], order),
        planted=replanted([part.planted for part in parts], order),
    )


def joined(parts: Sequence[Certificate | None], order: Sequence[int]) -> Certificate | None:
    """The certificates of the parts of a record as one, the examples in `order`."""
    held = [part for part in parts if part]
    if not held:
        return None
    if len(held) < len(parts) or any(part.rests_on != held[0].rests_on for part in held):
        raise ValueError("parts with different certificates cannot be merged")
    radii = [radius for part in held for radius in part.radii]
    return Certificate(
        tuple(radii[i] for i in order),
        held[0].rests_on,
        round(sum(part.seconds for part in held), 3),
    )


def rejoined(parts: Sequence[Routes | None], order: Sequence[int]) -> Routes | None:
    """The routes of the parts of a record as one, the examples in `order`."""
    held = [part for part in parts if part]
    if not held:
        return None
    if len(held) < len(parts) or any(part.names != held[0].names for part in held):
        raise ValueError("parts with different routes cannot be merged")
    chosen = [index for part in held for index in part.chosen]
    return Routes(held[0].names, tuple(chosen[i] for i in order))


def realigned(
    parts: Sequence[tuple[float, ...] | None], order: Sequence[int]
) -> tuple[float, ...] | None:
    """The distances found in the parts of a record as one, the examples in `order`."""
    held = [value for part in parts if part is not None for value in part]
    if not held:
        return None
    if any(part is None for part in parts):
        raise ValueError("parts with and without the distances found cannot be merged")
    return tuple(held[i] for i in order)


def replanted(parts: Sequence[Planted | None], order: Sequence[int]) -> Planted | None:
    """What the parts of a record say of planted examples as one, the examples in `order`."""
    held = [part for part in parts if part]
    if not held:
        return None
    columns = [[value for part in held for value in getattr(part, f.name)] for f in fields(Planted)]
    if len(columns[0]) != len(order):
        raise ValueError("parts with and without planted examples cannot be merged")
    return Planted(*(tuple(column[i] for i in order) for column in columns))
