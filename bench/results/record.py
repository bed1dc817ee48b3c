"""What the bench answers: one `Record` for one `Cell`, per example, and how parts of it join.

Standard library only. A field says in its metadata how the values of several parts become one;
where it says nothing, the value of the first part stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from bench.questions.facts import AttackTraits, DefenceTraits
from bench.questions.spec import Cell
from bench.results import legacy

Rule = Callable[[Sequence[Any], Sequence[int]], Any]  # (values of the parts, order of the examples)


def join_columns(columns: Sequence[Sequence[Any]], order: Sequence[int]) -> tuple[Any, ...]:
    """The values of all parts, in the order of the examples; ValueError where some have none."""
    values = [value for column in columns for value in column]
    if len(values) != len(order):
        raise ValueError(f"{len(values)} values for {len(order)} examples")
    return tuple(values[i] for i in order)


def add(values: Sequence[Any], order: Sequence[int]) -> Any:
    """The sum; of seconds, to the millisecond."""
    return round(sum(values), 3)


def take_least(values: Sequence[Any], order: Sequence[int]) -> Any:
    """The least of the values that are not None; None where all are."""
    return min((value for value in values if value is not None), default=None)


def take_same(values: Sequence[Any], order: Sequence[int]) -> Any:
    """The value of all parts; ValueError where they differ."""
    if any(value != values[0] for value in values):
        raise ValueError("the parts differ")
    return values[0]


def take_each_once(values: Sequence[Sequence[Any]], order: Sequence[int]) -> tuple[Any, ...]:
    """The items of all parts, equal ones once, in the order in which they come."""
    return tuple(dict.fromkeys(item for items in values for item in items))


def take_each_once_sorted(values: Sequence[Sequence[Any]], order: Sequence[int]) -> tuple[Any, ...]:
    return tuple(sorted(take_each_once(values, order)))


def merge_fields(parts: Sequence[Any], order: Sequence[int]) -> Any:
    """Several instances of a dataclass as one, each field by its rule."""
    merged = {}
    for f in fields(parts[0]):
        values = [getattr(part, f.name) for part in parts]
        rule: Rule | None = f.metadata.get("merge")
        merged[f.name] = rule(values, order) if rule else values[0]
    return type(parts[0])(**merged)


def merge_optional(conflict: str) -> Rule:
    """The rule for what a record may lack; ValueError, which says `conflict`, where parts clash."""

    def rule(values: Sequence[Any], order: Sequence[int]) -> Any:
        present = [value for value in values if value is not None]
        if not present:
            return None
        join = merge_fields if is_dataclass(present[0]) else join_columns
        try:
            return join(present, order)
        except ValueError:
            raise ValueError(f"parts {conflict} cannot be merged") from None

    return rule


JOIN = {"merge": join_columns}
ADD = {"merge": add}
LEAST = {"merge": take_least}
SAME = {"merge": take_same}


@dataclass(frozen=True, slots=True)
class Flag:
    """A reason to doubt a number.

    `id` names the check (P: of the defence, D: of gradients and attacks). `severity` is `hard` or
    `soft`.
    """

    id: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cell took.

    `forwards` and `backwards` count examples that the attacker passed through the target, summed
    over the cell. `nonfinite` and `zero` count the backwards whose gradient held a NaN or an
    infinity, or was exactly zero. `ms_per_image` is the time of one undisturbed prediction of the
    defence, `base_ms_per_image` that of its undefended classifier on the same images; both are
    measured in `none` cells.
    """

    seconds: float = field(default=0.0, metadata=ADD)
    forwards: int = field(default=0, metadata=ADD)
    backwards: int = field(default=0, metadata=ADD)
    nonfinite: int = field(default=0, metadata=ADD)
    zero: int = field(default=0, metadata=ADD)
    ms_per_image: float | None = field(default=None, metadata=LEAST)
    base_ms_per_image: float | None = field(default=None, metadata=LEAST)
    parameters: int | None = field(default=None, metadata=LEAST)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a defence certifies of each example of a `none` cell.

    No change shorter than the radius, in l2, makes its answer wrong. The radius is -1 where the
    defence abstains, or where its certified label is wrong. `rests_on` says how the radii were
    computed: n, the number of samples, or alpha, the probability that one radius is too large.
    `seconds` is the time that all of them took.
    """

    radii: tuple[float, ...] = field(metadata=JOIN)
    rests_on: tuple[tuple[str, float], ...] = field(default=(), metadata=SAME)
    seconds: float = field(default=0.0, metadata=ADD)

    def beyond(self, radius: float) -> tuple[int, ...]:
        """Per example, 1 where the certified radius is larger than `radius`, and 0 elsewhere."""
        return tuple(int(certified > max(radius, 0.0)) for certified in self.radii)


@dataclass(frozen=True, slots=True)
class Routes:
    """The names of the routes of an attack that is several in one, and which of them counted.

    `chosen` is per example the index of the route whose candidate was chosen; -1 is the clean
    image.
    """

    names: tuple[str, ...] = field(metadata=SAME)
    chosen: tuple[int, ...] = field(metadata=JOIN)

    @property
    def counts(self) -> dict[str, int]:
        """For how many examples each route gave the candidate that counts, the most first.

        `clean` is where no route did better than the clean image.
        """
        names = Counter("clean" if i < 0 else self.names[i] for i in self.chosen)
        return dict(names.most_common())


@dataclass(frozen=True, slots=True)
class Planted:
    """What the check `planted` found, per example 1 or 0.

    `valid`: an adversarial example could be planted. `found`: the attack found one. `random`:
    random points did. Nothing is found where nothing was planted.
    """

    valid: tuple[int, ...] = field(metadata=JOIN)
    found: tuple[int, ...] = field(metadata=JOIN)
    random: tuple[int, ...] = field(metadata=JOIN)

    @property
    def rates(self) -> tuple[float, float, float]:
        """The share that could be planted, and of those what attack and random points found.

        The last two are 0 where nothing could be planted.
        """
        count = sum(self.valid)
        return (
            count / max(len(self.valid), 1),
            sum(self.found) / max(count, 1),
            sum(self.random) / max(count, 1),
        )


def take_env(values: Sequence[Any], order: Sequence[int]) -> Any:
    """Where the first part comes from; ValueError where parts are of other code or images."""
    if len({(env.source, env.data) for env in values}) > 1:
        raise ValueError("parts of other code or other images cannot be merged")
    return values[0]


@dataclass(frozen=True, slots=True)
class Env:
    """Where an answer comes from.

    `weights` has the name and the SHA-256 of every weights file that the cell used. `data` is a
    digest of the images and labels of the whole split. `source` is one of the code and the files
    that the answer rests on, which are in `sources` by name; `files` are those that were read while
    the defence was built, by path. `stale` says what had changed when the answer was kept.
    """

    commit: str = ""
    command: str = ""
    device: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    weights: tuple[tuple[str, str], ...] = ()
    data: str = ""
    source: str = ""
    sources: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    stale: str = ""


PER_EXAMPLE = ("clean", "selected", "margin", "correct", "distance", "strayed")
PAIRS = (
    "versions",
    "weights",
    "sources",
    "files",
    "rests_on",
    "checks",
)  # fields of (name, value); objects in JSON
LATER = ("source", "sources", "files", "stale")  # fields of `Env` that are left out when empty
PARTS = {
    "cost": Cost,
    "env": Env,
    "certificate": Certificate,
    "routes": Routes,
    "planted": Planted,
}
TRAITS: Mapping[str, type[AttackTraits] | type[DefenceTraits]] = {
    "attack_traits": AttackTraits,
    "inner_traits": AttackTraits,
    "defence_traits": DefenceTraits,
}


@dataclass(frozen=True, slots=True)
class Record:
    """The answer to a cell, example by example, in the order of `ids`.

    - `clean` and `selected`: right answers among `cell.select` selection draws, on the clean image
      and on the chosen candidate.
    - `margin`: the candidate's mean margin over those draws. It is the largest wrong logit less the
      true one: positive is misclassified.
    - `correct`: right answers on the candidate among `cell.draws` evaluation draws. Neither attack
      nor selection ever saw these draws.
    - `distance`: the candidate's distance from the image in the cell's norm.
    - `strayed`: by how much the attack's proposals lay outside of ball or box before the harness
      projected them. 0: they did not; -1: they were not finite.
    - `certificate`: of a defence that can certify, in its `none` cell.
    - `routes`: of an attack that names its candidates.
    - `nearest`: of an attack of minimum norm, the distance of the nearest wrong image that it
      found, in the ball or not; -1: it found none.
    - `planted`: of the check of that name. Its other columns are those of the planted models.
    - `checks`: what the probes measured, by the code of the check, also where there is no flag.
    - `notes`: in words, in what other form than the contract's the defence answered.
    - `attack_traits`, `defence_traits`: what attack and defence are. `inner_traits`: what the
      attack inside of a check or of another attack is.
    """

    cell: Cell
    ids: tuple[int, ...] = field(metadata=JOIN)
    clean: tuple[int, ...] = field(metadata=JOIN)
    selected: tuple[int, ...] = field(metadata=JOIN)
    margin: tuple[float, ...] = field(metadata=JOIN)
    correct: tuple[int, ...] = field(metadata=JOIN)
    distance: tuple[float, ...] = field(metadata=JOIN)
    strayed: tuple[float, ...] = field(metadata=JOIN)
    cost: Cost = field(default=Cost(), metadata={"merge": merge_fields})
    flags: tuple[Flag, ...] = field(default=(), metadata={"merge": take_each_once})
    env: Env = field(default=Env(), metadata={"merge": take_env})
    certificate: Certificate | None = field(
        default=None, metadata={"merge": merge_optional("with different certificates")}
    )
    routes: Routes | None = field(
        default=None, metadata={"merge": merge_optional("with different routes")}
    )
    nearest: tuple[float, ...] | None = field(
        default=None, metadata={"merge": merge_optional("with and without the distances found")}
    )
    planted: Planted | None = field(
        default=None, metadata={"merge": merge_optional("with and without planted examples")}
    )
    checks: tuple[tuple[str, float], ...] = field(
        default=(), metadata={"merge": take_each_once_sorted}
    )
    notes: tuple[str, ...] = field(default=(), metadata={"merge": take_each_once})
    attack_traits: AttackTraits = field(kw_only=True)
    inner_traits: AttackTraits | None = field(default=None, kw_only=True)
    defence_traits: DefenceTraits = field(kw_only=True)

    def __post_init__(self) -> None:
        count = len(self.ids)
        for what, column in self._columns():
            if len(column) != count:
                message = f"{len(column)} {what} for {count} ids"
                raise ValueError(f"record {self.cell.key}: {message}")
        if len(set(self.ids)) != count:
            twice = sorted({i for i in self.ids if self.ids.count(i) > 1})
            raise ValueError(f"record {self.cell.key}: examples judged twice: {twice}")

    def _columns(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Whatever has a value per example, and what its values are."""
        for name in PER_EXAMPLE:
            yield f"values of '{name}'", getattr(self, name)
        if self.certificate:
            yield "certified radii", self.certificate.radii
        if self.routes:
            yield "routes", self.routes.chosen
        if self.nearest is not None:
            yield "distances found", self.nearest
        if self.planted:
            for f in fields(Planted):
                yield "planted examples", getattr(self.planted, f.name)

    @property
    def family(self) -> str:
        """What the attack works from: one of `bench.questions.facts.FAMILIES`."""
        return self.attack_traits.family

    @property
    def effective_traits(self) -> AttackTraits:
        """The traits of the attack that is run in the end: of the inner one, where there is one."""
        return self.inner_traits or self.attack_traits

    @property
    def accuracy(self) -> float:
        """Expected accuracy on the chosen candidates: the share of right evaluation draws."""
        return sum(self.correct) / (len(self.ids) * self.cell.draws)

    def to_json(self) -> dict[str, Any]:
        """What is None is left out, and so are `checks` and `notes` where there are none."""
        data = to_plain(self)
        data["cell"] = self.cell.to_json()
        data["key"] = self.cell.key
        data["flags"] = [to_plain(flag) for flag in self.flags]
        for name in TRAITS:
            traits = getattr(self, name)
            data[name] = None if traits is None else traits.to_json()
        for name in PARTS:
            part = getattr(self, name)
            data[name] = None if part is None else to_plain(part)
        data["env"] = {n: v for n, v in data["env"].items() if v or n not in LATER}
        for name in ("checks", "notes"):
            data[name] = data[name] or None
        return {name: value for name, value in data.items() if value is not None}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Record:
        values: dict[str, Any] = {name: tuple(data[name]) for name in ("ids", *PER_EXAMPLE)}
        for name, kind in PARTS.items():
            if data.get(name):
                values[name] = from_plain(kind, data[name])
        nearest = data.get("nearest")
        cell = Cell.from_json(data["cell"])
        return Record(
            cell=cell,
            **read_traits(data, cell),
            flags=tuple(from_plain(Flag, flag) for flag in data["flags"]),
            checks=tuple(sorted(data.get("checks", {}).items())),
            notes=tuple(data.get("notes", ())),
            nearest=None if nearest is None else tuple(nearest),
            **values,
        )


def read_traits(data: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """The traits that a stored record keeps, or those of the table where it is older."""
    if "attack_traits" not in data:
        return legacy.traits_of(cell)
    return {name: kind(**data[name]) for name, kind in TRAITS.items() if name in data}


def to_plain(part: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them: pairs are an object, columns are lists."""
    plain = {}
    for f in fields(part):
        value = getattr(part, f.name)
        if f.name in PAIRS:
            value = dict(value)
        plain[f.name] = list(value) if isinstance(value, tuple) else value
    return plain


def from_plain(kind: type[Any], data: Mapping[str, Any]) -> Any:
    """The reverse of `to_plain`."""
    values = {}
    for name, value in data.items():
        if name in PAIRS:
            value = tuple(sorted(value.items()))
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def merge(parts: Sequence[Record]) -> Record:
    """Join the parts of one cell by example id; the same example in two parts is an error.

    Costs add up, the fastest inference time counts, equal flags are kept once.
    """
    if not parts:
        raise ValueError("nothing to merge")
    if any(part.cell != parts[0].cell for part in parts):
        keys = sorted({part.cell.key for part in parts})
        raise ValueError(f"parts of different cells cannot be merged: {keys}")
    ids = [i for part in parts for i in part.ids]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    merged: Record = merge_fields(parts, order)
    return merged


def add_costs(costs: Sequence[Cost]) -> Cost:
    """The costs of several calls as one."""
    total: Cost = merge_fields(costs, ())
    return total
