"""From requests to a plan: a named list of cells. Standard library only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

from bench.errors import BadInput, did_you_mean
from bench.questions.budgets import read_budget
from bench.questions.eps import allows_nothing, parse_eps, refuse_wider_than_box
from bench.questions.facts import AttackTraits, DatasetFacts, ImageFacts
from bench.questions.pins import knob_texts, with_inner_defences
from bench.questions.registry import (
    attacks,
    classifiers,
    datasets,
    defences,
    fetch_classifier,
    fetch_defence,
    find_question,
    inner_attack,
    is_stochastic,
)
from bench.questions.request import Request
from bench.questions.resolve import Context, resolve_listed, resolve_named
from bench.questions.spec import NORMS, Cell, Spec, ThreatModel, Value
from bench.weights import split_pin

NO_ATTACK = Spec("none")
Look = Callable[[Spec], ImageFacts]
LEAST = {"draws": 1, "select": 1, "batch": 1, "seed": 0}


class Answers(Protocol):
    """Where answers are kept."""

    def has(self, cell: Cell) -> bool: ...


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

    def pending(self, answers: Answers, stale: Collection[Cell] = ()) -> tuple[Cell, ...]:
        """The cells that have no answer yet, or one that is `stale`."""
        return tuple(cell for cell in self.cells if cell in stale or not answers.has(cell))


def plan(requests: Sequence[Request], name: str | None = None, look: Look | None = None) -> Plan:
    """Resolve every request; the same cell asked for twice is one cell.

    `look` loads the images of a dataset whose facts do not say how many there are.
    """
    cells: dict[str, Cell] = {}
    notes: list[str] = []
    for request in requests:
        values = request.eps.split(",") if request.eps is not None else [None]
        for eps in values:
            for cell in make_cells(replace(request, eps=eps), notes, look):
                cells.setdefault(cell.key, cell)
    title = name or f"{requests[0].dataset}-{requests[0].budget or 'default'}"
    digest = sha256("".join(cells).encode()).hexdigest()[:8]
    return Plan(f"{title}-{digest}", tuple(cells.values()), tuple(dict.fromkeys(notes)))


def make_cells(request: Request, notes: list[str], look: Look | None = None) -> list[Cell]:
    """The cells of one request with one eps; what is left out of them is added to `notes`.

    Every defence meets `none` at every threat model first: the clean image is always a candidate.
    """
    dataset, facts = resolve_dataset(request, notes, look)
    budget = read_budget(request.budget or facts.budget)
    refuse_too_small(request)
    defence_specs = resolve_defences(request, Context(facts.roles), notes)
    attack_specs = resolve_attacks(request, Context(facts.roles, budget), notes)
    attack_specs = expand_queries(attack_specs, request)
    by_threat = group_by_threat(attack_specs, request, facts, notes)
    batch = request.batch or budget["batch"]
    cells = []
    for defence, (threat, attack_group) in itertools.product(defence_specs, by_threat.items()):
        stochastic = is_stochastic(defence)
        select, draws = 1, 1
        if stochastic:
            select = request.select or budget["select"]
            draws = request.draws or budget["draws"]
        for attack in (NO_ATTACK, *attack_group):
            question = find_question(attack.name).facts
            if question.stochastic_only and not stochastic:
                continue
            allowed = replace(threat, access=question.access)
            cell = Cell(dataset, defence, attack, allowed, request.seed, select, draws, batch)
            cells.append(cell)
    if not cells:
        reason = "; ".join(dict.fromkeys(notes)) or "no defence was named"
        raise BadInput(f"nothing to do on '{request.dataset}': {reason}")
    return list(dict.fromkeys(cells))


def resolve_dataset(
    request: Request, notes: list[str], look: Look | None
) -> tuple[Spec, DatasetFacts]:
    """The dataset as the cells name it, with its subset, and its facts, those of its images too."""
    name, colon, path = request.dataset.partition(":")
    spec = Spec.of(name, {"path": path}) if colon else Spec.parse(request.dataset)
    entry = datasets.get(spec.name)
    if request.n is not None and request.first is not None:
        raise BadInput(f"n {request.n} and first {request.first} exclude each other; give one")
    for size in (request.n, request.first):
        if size is not None and size < 1:
            raise BadInput(f"n {size} is too small; the least is 1")
    knobs = entry.resolve(spec.params)
    images = entry.facts.images or (look(Spec.of(spec.name, knobs)) if look else None)
    subset: dict[str, Value] = {"n": entry.facts.n if request.n is None else request.n}
    if request.first is not None:
        subset = {"first": request.first}
    elif request.n is None and images and images.size < entry.facts.n:
        subset = {"n": images.size}
        notes.append(
            f"dataset '{spec.name}' has {images.size} images in its test split: "
            f"n is {images.size}, not {entry.facts.n}"
        )
    notes += images.notes if images else ()
    return Spec.of(spec.name, {**knobs, **subset}), replace(entry.facts, images=images)


def refuse_too_small(request: Request) -> None:
    for name, least in LEAST.items():
        value = getattr(request, name)
        if value is not None and value < least:
            raise BadInput(f"{name} {value} is too small; the least is {least}")


def refuse_empty(kind: str, names: Sequence[str]) -> None:
    if not names:
        raise BadInput(f"the list of {kind} is empty; name some, or leave it out")


def resolve_defences(request: Request, context: Context, notes: list[str]) -> list[Spec]:
    """The defences that the request names, or all that take part without being named."""
    if request.defences is not None:
        refuse_empty("defences", request.defences)
        return [resolve_named(defences.get, text, context) for text in request.defences]
    specs = [resolve_listed(defences.get, name, context, notes) for name in default_defences(notes)]
    return [spec for spec in specs if spec]


def default_defences(notes: list[str]) -> list[str]:
    """All but those that are broken on purpose and, with a note, those that take long."""
    names = [entry.name for entry in defences if not entry.facts.broken]
    opt_in = [name for name in names if defences.get(name).facts.opt_in]
    if opt_in:
        notes.append(f"left out, for they take long: {', '.join(opt_in)}; name them to have them")
    return [name for name in names if name not in opt_in]


def resolve_attacks(request: Request, context: Context, notes: list[str]) -> list[Spec]:
    """The attacks that the request names, or the budget's."""
    if request.attacks is not None:
        refuse_empty("attacks", request.attacks)
        return [resolve_named(find_question, text, context) for text in request.attacks]
    texts = context.budget["attacks"]
    specs = [resolve_listed(find_question, text, context, notes) for text in texts]
    return [spec for spec in specs if spec]


def expand_queries(specs: Sequence[Spec], request: Request) -> list[Spec]:
    """The attacks that count queries under each number that was asked for, others as they are."""
    if request.queries is None:
        return list(specs)
    counting = attacks_that_count_queries()
    if not any(spec.name in counting for spec in specs):
        raise BadInput(
            f"queries {request.queries}: no attack here counts its queries by a knob; "
            f"{', '.join(counting)} do"
        )
    expanded = []
    for spec in specs:
        if spec.name not in counting:
            expanded.append(spec)
            continue
        entry = attacks.get(spec.name)
        for text in request.queries.split(","):
            queries = entry.resolve({"queries": text})["queries"]
            expanded.append(Spec.of(spec.name, {**spec.params, "queries": queries}))
    return expanded


def attacks_that_count_queries() -> list[str]:
    """The attacks whose whole effort is a number of queries."""
    return [
        entry.name
        for entry in attacks
        if "queries" in entry.knobs and entry.facts.access in ("score", "decision")
    ]


def group_by_threat(
    specs: Sequence[Spec], request: Request, facts: DatasetFacts, notes: list[str]
) -> dict[ThreatModel, list[Spec]]:
    """The attacks by threat model, less `none`; a threat model may have no other attack."""
    groups: dict[ThreatModel, list[Spec]] = {}
    for spec in dict.fromkeys(specs):
        threat = choose_threat(spec, request, facts, notes)
        if threat is None:
            continue
        group = groups.setdefault(threat, [])
        if spec != NO_ATTACK:
            group.append(spec)
    return groups


def choose_threat(
    attack: Spec, request: Request, facts: DatasetFacts, notes: list[str]
) -> ThreatModel | None:
    """The threat model of the sweep; where the attack has no form in its norm, one of its own.

    None, and a note, where the request names the norm, or where the dataset has no eps in another.
    A default list may lack that form.
    """
    norm = request.norm or facts.norm
    if norm not in NORMS:
        raise BadInput(f"norm '{norm}' is unknown{did_you_mean(norm, NORMS)}")
    norms = norms_of(attack)
    if norm in norms:
        return make_threat(norm, request.eps, facts, notes)
    own = [candidate for candidate in NORMS if candidate in norms and candidate in facts.eps]
    if own and not request.norm:
        return make_threat(own[0], None, facts, notes)
    reason = f"attack '{attack.name}' has no {norm} form; it has {', '.join(sorted(norms))}"
    if not request.norm:
        reason = f"{reason}, in which the dataset has no eps"
    if request.attacks:
        raise BadInput(f"{reason}: leave --norm out, or the attack")
    notes.append(f"left out: {reason}")
    return None


def make_threat(norm: str, text: str | None, facts: DatasetFacts, notes: list[str]) -> ThreatModel:
    """The threat model of the eps `text`, or of the dataset's own; BadInput where it has none."""
    if text is None and norm not in facts.eps:
        raise BadInput(f"the dataset has no eps for {norm}; give one with --norm {norm} --eps")
    text = str(facts.eps[norm] if text is None else text)
    refuse_wider_than_box(text, norm, facts.images.shape if facts.images else None)
    eps = parse_eps(text)
    if allows_nothing(eps, norm):
        notes.append(f"eps {eps} in {norm}: nothing can be attacked, every image stays as it is")
    return ThreatModel(norm, eps)


def norms_of(attack: Spec) -> frozenset[str]:
    """The norms that the attack, and the attack inside of it, have a form in."""
    norms = find_question(attack.name).facts.norms
    inner = inner_attack(attack)
    return norms & find_question(inner.name).facts.norms if inner else norms


def fetch_missing(plan: Plan) -> None:
    """Fetch the files that the cells name before the first cell runs.

    BadInput, with the line that helps, where one cannot be had.
    """
    specs = dict.fromkeys(spec for cell in plan.cells for spec in (cell.defence, cell.attack))
    texts = {text for spec in specs for text in knob_texts(spec)}
    for text in sorted(texts):
        scheme, colon, argument = split_pin(text)[0].partition(":")
        if not colon or scheme not in classifiers:
            continue
        fetch_classifier(classifiers.get(scheme), argument)
    for defence in dict.fromkeys(cell.defence for cell in plan.cells):
        for spec in with_inner_defences(defence):
            fetch_defence(spec)
