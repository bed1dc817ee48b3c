"""From what the user asked (flags, or a TOML file) to a list of resolved cells. Standard library only."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import weights
from bench.errors import BadInput, did_you_mean
from bench.questions.facts import AttackTraits, DatasetFacts, DefenceFacts, QuestionFacts
from bench.questions.registry import (
    Entry,
    attacks,
    classifiers,
    datasets,
    defences,
    find_question,
    inner_attack,
    is_stochastic,
    split_classifiers,
    split_scheme,
)
from bench.questions.spec import NORMS, Cell, Spec, ThreatModel, Value, parse_eps

if TYPE_CHECKING:
    from bench.results.store import Store

PLANS = Path(__file__).parent / "plans"
PINNED = ("own:", "file:")


@dataclass(frozen=True, slots=True)
class Request:
    """One sweep as asked for; what is None is the dataset's or the budget's default.

    `eps` and `queries` may be several, joined by commas: a curve. `queries` sets the knob of that name of the attacks that have it.
    """

    dataset: str = "digits"
    defences: tuple[str, ...] | None = None
    attacks: tuple[str, ...] | None = None
    norm: str | None = None
    eps: str | None = None
    n: int | None = None
    first: int | None = None
    seed: int = 0
    draws: int | None = None
    select: int | None = None
    batch: int | None = None
    budget: str | None = None
    queries: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A named list of cells, and in `notes` what was left out of it and why."""

    name: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()

    @property
    def attack_traits(self) -> dict[str, AttackTraits]:
        """What the attacks of the plan are, by name."""
        names = {cell.attack.name for cell in self.cells}
        return {name: find_question(name).facts.traits for name in sorted(names)}

    def pending(self, store: Store) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if not store.has(cell))


def plan(requests: Sequence[Request], name: str | None = None) -> Plan:
    """Resolve every request; the same cell asked for twice is one cell."""
    cells: dict[str, Cell] = {}
    notes: dict[str, None] = {}
    for request in requests:
        for eps in request.eps.split(",") if request.eps is not None else (None,):
            for cell in resolve(replace(request, eps=eps), notes):
                cells.setdefault(cell.key, cell)
    title = name or f"{requests[0].dataset}-{requests[0].budget or 'default'}"
    mark = sha256("".join(cells).encode()).hexdigest()[:8]
    return Plan(f"{title}-{mark}", tuple(cells.values()), tuple(notes))


def read_plan_file(path: Path) -> tuple[str, list[Request]]:
    """The requests of a TOML plan: keys as the command's flags, several sweeps as [[sweep]] tables over shared keys at the top."""
    found = path if path.is_file() else PLANS / f"{path}.toml"
    if not found.is_file():
        names = [p.stem for p in PLANS.glob("*.toml") if p.stem != "budgets"]
        raise BadInput(
            f"plan '{path}' is neither a file nor a plan of ours{did_you_mean(str(path), names)}"
        )
    shared = {**read_toml(found)}  # a copy: what was read is kept for the next call
    sweeps = shared.pop("sweep", [{}])
    return found.stem, [request_of({**shared, **sweep}, found) for sweep in sweeps]


def request_of(data: Mapping[str, Any], path: Path) -> Request:
    known = {f.name for f in fields(Request)}
    for key in data:
        if key not in known:
            raise BadInput(f"plan '{path}' has the key '{key}'{did_you_mean(key, known)}")
    lists = {key: tuple(map(str, data[key])) for key in ("defences", "attacks") if key in data}
    texts = {key: str(data[key]) for key in ("dataset", "norm", "budget") if key in data}
    texts |= {
        key: ",".join(map(str, v if isinstance(v := data[key], list) else [v]))
        for key in ("eps", "queries")
        if key in data
    }
    for key in ("n", "first", "seed", "draws", "select", "batch"):
        if not isinstance(data.get(key, 0), int):
            raise BadInput(f"plan '{path}': {key}={data[key]!r} is not a whole number")
    return Request(**{**data, **texts, **lists})


def resolve(request: Request, notes: dict[str, None]) -> list[Cell]:
    place, facts = dataset_of(request)
    budget = read_budget(request.budget or facts.budget)
    for knob, least in (("draws", 1), ("select", 1), ("batch", 1), ("seed", 0)):
        value = getattr(request, knob)
        if value is not None and value < least:
            raise BadInput(f"{knob} {value} is too small; the least is {least}")
    roles = facts.roles
    names = request.defences or [entry.name for entry in listed(notes)]
    lines = [
        resolved(defences.get, text, {}, roles, asked=request.defences is not None, notes=notes)
        for text in names
    ]
    names = request.attacks or budget["attacks"]
    rivals = [
        resolved(find_question, text, budget, roles, asked=request.attacks is not None, notes=notes)
        for text in names
    ]
    asked = [one for attack in rivals if attack for one in over_queries(attack, request)]
    if request.queries is not None and not any(attack.name in counting() for attack in asked):
        raise BadInput(
            f"queries {request.queries}: no attack here counts its queries by a knob; {', '.join(counting())} do"
        )
    threats = {
        attack: threat for attack in asked if (threat := threat_of(attack, request, facts, notes))
    }
    cells = []
    for line in filter(None, lines):
        random = is_stochastic(line)
        draws = (
            (request.select or budget["select"], request.draws or budget["draws"])
            if random
            else (1, 1)
        )
        for threat, held in by_threat(threats).items():
            for attack in (Spec("none"), *held):
                if find_question(attack.name).facts.stochastic_only and not random:
                    continue
                access = find_question(attack.name).facts.access
                cells.append(
                    Cell(
                        place,
                        line,
                        attack,
                        replace(threat, access=access),
                        request.seed,
                        *draws,
                        request.batch or budget["batch"],
                    )
                )
    if not cells:
        raise BadInput(
            f"nothing to do on '{request.dataset}': {'; '.join(notes) or 'no defence was named'}"
        )
    return list(dict.fromkeys(cells))


def listed(notes: dict[str, None]) -> list[Entry[DefenceFacts]]:
    """The defences of a plan that names none: all but those of the gallery, which are broken on purpose, and, with a note, the costly ones."""
    found = [entry for entry in defences if ".gallery" not in entry.make.__module__]
    if costly := [entry.name for entry in found if entry.facts.opt_in]:
        notes[f"left out, for they take long: {', '.join(costly)}; name them to have them"] = None
    return [entry for entry in found if not entry.facts.opt_in]


def dataset_of(request: Request) -> tuple[Spec, DatasetFacts]:
    """The dataset as the cells name it, with its subset, and its facts."""
    name, colon, path = request.dataset.partition(":")
    spec = Spec.of(name, {"path": path}) if colon else Spec.parse(request.dataset)
    entry = datasets.get(spec.name)
    if request.n is not None and request.first is not None:
        raise BadInput(f"n {request.n} and first {request.first} exclude each other; give one")
    size = (
        request.first
        if request.first is not None
        else request.n
        if request.n is not None
        else entry.facts.n
    )
    if size < 1:
        raise BadInput(f"n {size} is too small; the least is 1")
    subset: dict[str, Value] = {"first" if request.first is not None else "n": size}
    return Spec.of(spec.name, {**entry.resolve(spec.params), **subset}), entry.facts


def threat_of(
    attack: Spec, request: Request, facts: DatasetFacts, notes: dict[str, None]
) -> ThreatModel | None:
    """The threat model that the attack answers: the sweep's where it can, else, if no norm was asked for, its own, else none."""
    can = find_question(attack.name).facts.norms
    if inside := inner_attack(attack):
        can = can & find_question(inside.name).facts.norms
    norm = request.norm or facts.norm
    if norm not in NORMS:
        raise BadInput(f"norm '{norm}' is unknown{did_you_mean(norm, NORMS)}")
    if norm not in can:
        if request.norm:
            why = f"attack '{attack.name}' has no {norm} form; it has {', '.join(sorted(can))}"
            if request.attacks:
                raise BadInput(f"{why}: leave --norm out, or the attack")
            notes[f"left out: {why}"] = None
            return None
        norm = next(one for one in NORMS if one in can)
        return ThreatModel(norm, Fraction(facts.eps[norm]))
    return ThreatModel(
        norm, parse_eps(request.eps) if request.eps is not None else Fraction(facts.eps[norm])
    )


def over_queries(attack: Spec, request: Request) -> list[Spec]:
    """The attack under each of the numbers of queries that were asked for, or as it is where it has no such knob."""
    if request.queries is None or attack.name not in counting():
        return [attack]
    read = attacks.get(attack.name).resolve
    return [
        Spec.of(attack.name, {**attack.params, "queries": read({"queries": text})["queries"]})
        for text in request.queries.split(",")
    ]


def counting() -> list[str]:
    """The attacks whose whole effort is a number of queries."""
    return [
        entry.name
        for entry in attacks
        if "queries" in entry.knobs and entry.facts.access in ("score", "decision")
    ]


def by_threat(threats: Mapping[Spec, ThreatModel]) -> dict[ThreatModel, list[Spec]]:
    """Attacks by threat model, `none` apart: every threat model gets it first, as the clean image is always a candidate."""
    groups: dict[ThreatModel, list[Spec]] = {}
    for attack, threat in threats.items():
        groups.setdefault(threat, []).extend([attack] if attack.name != "none" else [])
    return groups


def resolved(
    find: Callable[[str], Entry[Any]],
    text: str,
    budget: Mapping[str, Any],
    roles: Mapping[str, str],
    *,
    asked: bool,
    notes: dict[str, None],
) -> Spec | None:
    """The spec with every knob filled in: its own, the budget's, the default; roles replaced, weights pinned.

    What the user named must be there; what a default list named is left out with a note when its weights are missing.
    """
    spec = Spec.parse(text)
    entry = find(spec.name)
    params = entry.resolve({**budget.get(spec.name, {}), **spec.params})
    try:
        if defaults := getattr(entry.facts, "dependent_defaults", None):
            params |= defaults(params)
        if params.get("inner"):
            params |= inside(spec, str(params["inner"]), roles)
        if entry.kind != "defence" and "attack" in params:
            params["attack"] = resolve_inner_attack(entry, str(params["attack"]), budget, roles)
        settled = {
            knob: resolve_roles(value, roles) if isinstance(value, str) else value
            for knob, value in params.items()
        }
        pin = getattr(entry.facts, "pin", None)
        settled |= pin(settled) if pin else {}
        later = entry.facts.added_later
        return Spec.of(
            spec.name,
            {
                knob: value
                for knob, value in settled.items()
                if knob not in later or value != entry.knobs[knob].default
            },
        )
    except BadInput as error:
        if asked:
            raise BadInput(f"{entry.kind} '{spec.name}': {error}") from None
        notes[f"{entry.kind} '{text}' is left out: {error}"] = None
        return None


def inside(outer: Spec, text: str, roles: Mapping[str, str]) -> dict[str, Value]:
    """The knobs `inner`, with all that it leaves open filled in, and `classifier`, which is the inner defence's own."""
    if "classifier" in outer.params:
        raise BadInput(
            f"inner={text} and classifier={outer.params['classifier']} exclude each other: give inner={text} a classifier of its own"
        )
    inner = resolved(defences.get, text, {}, roles, asked=True, notes={})
    assert inner
    return {
        "inner": str(inner),
        "classifier": str(inner.params.get("classifier") or inner.params.get("classifiers", "")),
    }


def resolve_inner_attack(
    outer: Entry[QuestionFacts], text: str, budget: Mapping[str, Any], roles: Mapping[str, str]
) -> str:
    """The attack inside of a check or an attack, with all that it leaves open filled in; BadInput where that cannot have it."""
    found = resolved(find_question, text, budget, roles, asked=True, notes={})
    assert found
    if why := refuse_inner(outer, find_question(found.name), found.params):
        raise BadInput(why)
    return str(found)


def refuse_inner(
    outer: Entry[QuestionFacts], inner: Entry[QuestionFacts], knobs: Mapping[str, Value]
) -> str:
    """Why `inner` with these knobs cannot be the attack inside of `outer`; empty where it can."""
    if inner.facts.family in ("check", "none") or inner.facts.access == "transfer":
        return (
            f"attack={inner.name} asks nothing of the model before it; give an attack that does, "
            "such as pgd"
        )
    if "attack" in knobs:
        return f"attack={inner.name} runs an attack of its own; give that one"
    if outer.facts.family != "check" and inner.facts.access != outer.facts.access:
        return (
            f"attack={inner.name} has {inner.facts.access} access; give one with "
            f"{outer.facts.access} access, such as pgd"
        )
    if not inner.facts.norms & outer.facts.norms:
        return (
            f"attack={inner.name} has no {' or '.join(sorted(outer.facts.norms))} form; "
            f"it has {', '.join(sorted(inner.facts.norms))}"
        )
    return outer.facts.accepts(inner, knobs)


def resolve_roles(value: str, roles: Mapping[str, str]) -> str:
    """A knob's text with a role replaced by what the dataset has for it, a classifier's name checked, and weights pinned to their digest.

    Several of them may be joined by `+`.
    """
    several = split_classifiers(value)
    if len(several) > 1:
        return "+".join(resolve_roles(part, roles) for part in several)
    if value.startswith("@"):
        if value[1:] not in roles:
            raise BadInput(
                f"the dataset has nothing for '{value}'; give own:NAME, file:PATH or another scheme:name"
            )
        value = roles[value[1:]]
    if value.startswith(PINNED):
        return weights.pin(value)
    if ":" in value and "[" not in value:
        entry, argument = split_scheme(value)
        bare, _, pinned = argument.partition("@")
        names = entry.facts.names
        if names and bare not in names():
            raise BadInput(
                f"classifier '{entry.name}:{bare}' is unknown{did_you_mean(bare, names())}"
            )
        found = entry.facts.digest(bare) if entry.facts.digest else None
        if pinned and pinned != found:
            raise BadInput(
                f"weights '{entry.name}:{bare}' have the digest {found}, not {pinned}"
                if found
                else f"'{entry.name}:{bare}' has no digest here"
            )
        value = f"{entry.name}:{bare}@{found}" if found else f"{entry.name}:{bare}"
    return value


def fetch_missing(plan: Plan) -> None:
    """Fetch or find the weights that are loaded by name, before the first cell runs; raises BadInput with the line that helps."""
    texts = {
        text
        for cell in plan.cells
        for spec in (cell.defence, cell.attack)
        for text in knob_texts(spec)
    }
    for text in sorted(
        t
        for t in texts
        if ":" in t and t.partition(":")[0] in classifiers and not t.startswith(PINNED)
    ):
        entry, argument = split_scheme(text)
        if entry.facts.fetch:
            entry.facts.fetch(argument.partition("@")[0])
    for spec in {spec for cell in plan.cells for spec in with_inner_defences(cell.defence)}:
        if fetch_own := defences.get(spec.name).facts.fetch:
            fetch_own(spec.params)


def knob_texts(spec: Spec) -> set[str]:
    """The values of a spec's knobs as text, and those of the defence inside of it."""
    return {
        part
        for one in with_inner_defences(spec)
        for value in one.params.values()
        for part in split_classifiers(str(value))
    }


def with_inner_defences(spec: Spec) -> list[Spec]:
    """The spec, and the defences inside of it."""
    inner = str(spec.params.get("inner", ""))
    return [spec, *with_inner_defences(Spec.parse(inner))] if inner else [spec]


@functools.cache
def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"'{path}' is not TOML: {error}") from None


def read_budget(name: str) -> dict[str, Any]:
    budgets = read_toml(PLANS / "budgets.toml")
    if name not in budgets:
        raise BadInput(f"budget '{name}' is unknown{did_you_mean(name, budgets)}")
    return dict(budgets[name])
