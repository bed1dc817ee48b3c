"""Registered names: datasets, classifiers, defences, attacks and checks. Standard library only.

A plug-in is a function under one of the five decorators. Its keyword-only arguments are its knobs;
their defaults and annotations (`int`, `float`, `bool`, `str`) are all that there is to configure. A
`str` knob whose default begins with `@` takes what the dataset names under that role:
`classifier: str = "@robust"`. A defence with a knob `inner` can stand before another defence in
place of a classifier: `jpeg[quality=75,inner=carso[samples=4]]`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bench.errors import BadInput, did_you_mean
from bench.files import note_read, note_reads
from bench.questions.facts import (
    AttackFacts,
    CheckFacts,
    ClassifierFacts,
    DatasetFacts,
    DefenceFacts,
    Knob,
    Knobs,
    QuestionFacts,
)
from bench.questions.pins import PIN
from bench.questions.plugin_calls import (
    call_hook,
    read_bool,
    read_names,
    read_number,
    read_text,
)
from bench.questions.spec import Cell, Spec, Value

if TYPE_CHECKING:
    from torch import nn

Facts = TypeVar("Facts", covariant=True)
Kind = TypeVar("Kind", DatasetFacts, ClassifierFacts, DefenceFacts, AttackFacts, CheckFacts)
Question = TypeVar("Question", AttackFacts, CheckFacts)
Function = TypeVar("Function", bound=Callable[..., Any])
Words = Mapping[str, Collection[str]]
Parsers = Mapping[str, Callable[[str], str]]
DIGEST = re.compile(r"[0-9a-f]{8,}")


@dataclass(frozen=True, slots=True)
class Entry(Generic[Facts]):
    """One registered name: the factory, its facts, and its knobs by name."""

    kind: str
    name: str
    make: Callable[..., Any]
    facts: Facts
    knobs: Mapping[str, Knob]

    @property
    def title(self) -> str:
        return f"{self.kind} '{self.name}'"

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    def resolve(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """Every knob of the entry with its value; BadInput for a knob that it does not have."""
        for name in params:
            if name not in self.knobs:
                raise BadInput(self._refusal(name))
        values = {}
        for name, knob in self.knobs.items():
            try:
                values[name] = knob.read(params.get(name, knob.default))
            except BadInput as error:
                raise BadInput(f"{self.kind} '{self.name}': {error}") from None
        return values

    def _refusal(self, knob: str) -> str:
        if knob == "inner" and isinstance(self.facts, DefenceFacts):
            reason = self.facts.no_inner
            return f"defence '{self.name}' stands before no other defence: {reason}"
        if not self.knobs:
            return f"{self.kind} '{self.name}' takes no '{knob}'; it takes none"
        hint = did_you_mean(knob, self.knobs).partition("; there are")[0]
        takes = ", ".join(self.knobs)
        return f"{self.kind} '{self.name}' takes no '{knob}'; it takes {takes}{hint}"


class Registry(Generic[Kind]):
    """The names of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[Kind]] = {}

    def __iter__(self) -> Iterator[Entry[Kind]]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def add(
        self,
        name: str,
        make: Callable[..., Any],
        facts: Kind,
        *,
        choices: Words | None = None,
        parsers: Parsers | None = None,
        fixed: Knobs | None = None,
    ) -> None:
        """Keep `make` under `name`; BadInput where another function has that name already.

        Knobs that are `fixed` have that value and are not offered.
        """
        self.refuse_twice(name, make)
        # The numbers of an attack have a least value, so that no run is empty.
        minimum: dict[type, int] = {int: 1, float: 0} if isinstance(facts, QuestionFacts) else {}
        fixed = fixed or {}
        knobs = {}
        for parameter in inspect.signature(make).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.name in fixed:
                continue
            knob, default = parameter.name, parameter.default
            if not isinstance(default, bool | int | float | str):
                raise TypeError(
                    f"{self.kind} '{name}': knob '{knob}' needs a default that is a bool, int, "
                    "float or str"
                )
            knobs[knob] = Knob(
                name=knob,
                type=type(default),
                default=default,
                choices=tuple((choices or {}).get(knob, ())),
                minimum=minimum.get(type(default)),
                parse=(parsers or {}).get(knob),
            )
        if fixed:
            make = functools.update_wrapper(functools.partial(make, **fixed), make)
        self._entries[name] = Entry(self.kind, name, make, facts, knobs)

    def refuse_twice(self, name: str, make: Callable[..., Any]) -> None:
        """BadInput where another function than `make` has the name."""
        known = self._entries.get(name)
        if known and origin(known.make) != origin(make):
            raise BadInput(
                f"{self.kind} '{name}' is registered twice: in {known.make.__module__} and in "
                f"{make.__module__}"
            )

    def get(self, name: str) -> Entry[Kind]:
        if name not in self._entries:
            raise BadInput(f"{self.kind} '{name}' is unknown{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def resolve(self, spec: Spec) -> Spec:
        return Spec.of(spec.name, self.get(spec.name).resolve(spec.params))


def origin(make: Callable[..., Any]) -> tuple[str, str]:
    """Where a function is defined: an edited plug-in may be imported again under its name."""
    return make.__module__, make.__qualname__


datasets: Registry[DatasetFacts] = Registry("dataset")
classifiers: Registry[ClassifierFacts] = Registry("classifier")
defences: Registry[DefenceFacts] = Registry("defence")
attacks: Registry[AttackFacts] = Registry("attack")
checks: Registry[CheckFacts] = Registry("check")
registries: dict[str, Registry[Any]] = {
    registry.kind: registry for registry in (datasets, classifiers, defences, attacks, checks)
}

# What the loaders of this project read while a defence was built, less what a pin names.
files_read: dict[Spec, frozenset[Path]] = {}


def dataset(name: str, **facts: Any) -> Callable[[Function], Function]:
    """Register a factory `(split, data_dir, *, knobs) -> Dataset`.

    For the facts see `DatasetFacts`.
    """

    def register(make: Function) -> Function:
        datasets.add(name, make, DatasetFacts(**facts))
        return make

    return register


def classifier(scheme: str, **facts: Any) -> Callable[[Function], Function]:
    """Register a loader `(argument: str) -> nn.Module` of the classifiers `scheme:argument`.

    For the facts see `ClassifierFacts`.
    """

    def register(make: Function) -> Function:
        classifiers.add(scheme, make, ClassifierFacts(**facts))
        return make

    return register


def defence(
    name: str, *, choices: Words | None = None, **facts: Any
) -> Callable[[Function], Function]:
    """Register a factory `(*, knobs) -> nn.Module`, from images (B,C,H,W) in [0,1] to logits (B,K).

    `choices` are the words that a knob takes. For the facts see `DefenceFacts`.
    """

    def register(make: Function) -> Function:
        defences.add(name, make, DefenceFacts(**facts), choices=choices)
        return make

    return register


def attack(
    name: str,
    *,
    norms: Collection[str],
    access: str,
    family: str,
    choices: Words | None = None,
    parsers: Parsers | None = None,
    fixed: Knobs | None = None,
    **facts: Any,
) -> Callable[[Function], Function]:
    """Register a function `(model, x, y, threat, *, knobs) -> x_adv`.

    `choices` are the words that a knob takes, alone or joined by `+`. `parsers` give the text of a
    knob in its one form. Knobs that are `fixed` have that value under this name and are not
    offered: so one function has two names. For the facts see `AttackFacts`, for `family` and traits
    `AttackTraits`.
    """
    known = make_facts(AttackFacts, "attack", name, norms, access=access, family=family, **facts)

    def register(make: Function) -> Function:
        checks.refuse_twice(name, make)
        attacks.add(name, make, known, choices=choices, parsers=parsers, fixed=fixed)
        return make

    return register


def check(
    name: str,
    *,
    norms: Collection[str],
    access: str = "white-box",
    choices: Words | None = None,
    parsers: Parsers | None = None,
    **facts: Any,
) -> Callable[[Function], Function]:
    """Register a check: a context manager that yields a `CheckTarget`; see `bench.checks`.

    Its arguments are `(defence, x, y, threat, classes, stochastic, *, knobs)`. For the facts see
    `CheckFacts`.
    """
    known = make_facts(CheckFacts, "check", name, norms, access=access, **facts)

    def register(make: Function) -> Function:
        attacks.refuse_twice(name, make)
        checks.add(name, make, known, choices=choices, parsers=parsers)
        return make

    return register


def make_facts(
    make: type[Question], kind: str, name: str, norms: Collection[str], **facts: Any
) -> Question:
    """The facts of an attack or a check; TypeError, which names it, where they are wrong."""
    try:
        return make(norms=frozenset(norms), **facts)
    except TypeError as error:
        raise TypeError(f"{kind} '{name}': {error}") from None


def questions() -> list[Entry[QuestionFacts]]:
    """The attacks, then the checks."""
    return [*attacks, *checks]


def find_question(name: str) -> Entry[QuestionFacts]:
    """The attack or the check of that name: both stand where a cell has its attack."""
    if name in checks:
        return checks.get(name)
    if name in attacks:
        return attacks.get(name)
    names = (entry.name for entry in questions())
    raise BadInput(f"attack '{name}' is unknown{did_you_mean(name, names)}")


def resolve_question(spec: Spec) -> Spec:
    """The attack or check with all of its knobs."""
    return Spec.of(spec.name, find_question(spec.name).resolve(spec.params))


def traits_of(cell: Cell) -> dict[str, Any]:
    """The traits that a record of the cell keeps, by the names of its fields."""
    inner = inner_attack(cell.attack)
    return {
        "attack_traits": find_question(cell.attack.name).facts.traits,
        "inner_traits": find_question(inner.name).facts.traits if inner else None,
        "defence_traits": defences.get(cell.defence.name).facts.traits,
    }


def is_stochastic(spec: Spec) -> bool:
    """Whether the defence of this spec, which has all knobs, or one inside of it is stochastic."""
    entry = defences.get(spec.name)
    label = f"{entry.title}: its stochastic"
    fact = entry.facts.stochastic
    if read_bool(label, call_hook(label, fact, spec.params) if callable(fact) else fact):
        return True
    inner = inner_defence(spec)
    return inner is not None and is_stochastic(inner)


def inner_defence(spec: Spec) -> Spec | None:
    """The defence, with all of its knobs, that the knob `inner` of a defence names."""
    text = str(spec.params.get("inner", ""))
    return defences.resolve(Spec.parse(text)) if text else None


def inner_attack(spec: Spec) -> Spec | None:
    """The attack, with all of its knobs, that the knob `attack` of a check or an attack names."""
    text = str(spec.params.get("attack", ""))
    return resolve_question(Spec.parse(text)) if text else None


def inner_calls(knobs: Knobs, stochastic: bool) -> float:
    """The calls per example of the attack that the knob `attack` names.

    All draws of what is not stochastic are the same, and are asked for once.
    """
    inner = resolve_question(Spec.parse(str(knobs["attack"])))
    params = dict(inner.params)
    if "eot" in params and not stochastic:
        params["eot"] = 1
    return count_calls(find_question(inner.name), params, stochastic) or 0.0


def count_calls(entry: Entry[QuestionFacts], knobs: Knobs, stochastic: bool) -> float | None:
    """The most calls per example of an attack or a check; None where it does not say."""
    if not entry.facts.calls:
        return None
    label = f"{entry.title}: its calls"
    return read_number(label, call_hook(label, entry.facts.calls, knobs, stochastic))


def split_scheme(text: str) -> tuple[Entry[ClassifierFacts], str]:
    """`own:digits-at` -> the entry `own` and `digits-at`."""
    scheme, colon, argument = text.partition(":")
    if not colon or not argument:
        examples = ", ".join(f"{entry.name}:..." for entry in classifiers)
        raise BadInput(f"classifier '{text}' is not scheme:name, such as {examples}")
    return classifiers.get(scheme), argument


def names_of(entry: Entry[ClassifierFacts]) -> list[str] | None:
    """The arguments of a scheme; None where it does not know them."""
    if not entry.facts.names:
        return None
    label = f"{entry.title}: its names"
    return read_names(label, call_hook(label, entry.facts.names))


def digest_of(entry: Entry[ClassifierFacts], argument: str) -> str:
    """The digest in hex of a classifier's files; empty where there is none."""
    if not entry.facts.digest:
        return ""
    label = f"{entry.title}: its digest"
    digest = read_text(label, call_hook(label, entry.facts.digest, argument))
    if digest and not DIGEST.fullmatch(digest):
        raise BadInput(f"{label} gives '{digest[:40]}', not at least 8 digits in hex")
    return digest


def fetch_classifier(entry: Entry[ClassifierFacts], argument: str) -> None:
    """Fetch the files of a classifier that are missing; BadInput where one cannot be had."""
    if entry.facts.fetch:
        call_hook(f"{entry.title}: its fetch", entry.facts.fetch, argument)


def fetch_defence(spec: Spec) -> None:
    """Fetch the files of a defence that no classifier names; BadInput as above."""
    entry = defences.get(spec.name)
    if entry.facts.fetch:
        call_hook(f"{entry.title}: its fetch", entry.facts.fetch, spec.params)


def build_classifier(text: str) -> nn.Module:
    """The classifier `scheme:name`, on the CPU, in eval mode, its parameters frozen."""
    entry, argument = split_scheme(text)
    with note_reads() as paths:
        model = entry.make(argument)
    for path in () if PIN.search(argument) else paths:  # a pin makes the files part of the question
        note_read(path)
    return freeze(entry, model)


def build_defence(spec: Spec) -> nn.Module:
    """The defence of a spec with all knobs, on the CPU, in eval mode, its parameters frozen.

    The files that it loads meanwhile are kept in `files_read`.
    """
    entry = defences.get(spec.name)
    with note_reads() as paths:
        model = entry.make(**spec.params)
    files_read[spec] = frozenset(paths)
    for path in paths:
        note_read(path)
    return freeze(entry, model)


def freeze(entry: Entry[Any], model: Any) -> nn.Module:
    """The model in eval mode, its parameters frozen; BadInput where it is no nn.Module."""
    if not hasattr(model, "eval") or not hasattr(model, "parameters"):
        kind = type(model).__name__
        raise BadInput(f"{entry.title} is no nn.Module: its factory returns {kind}")
    frozen: nn.Module = model.eval()
    for parameter in frozen.parameters():  # a scripted module has no requires_grad_
        parameter.requires_grad_(False)
    return frozen


def build_inner(classifier: str, inner: str) -> nn.Module:
    """What a defence with a knob `inner` classifies with: that defence, or else the classifier."""
    if not inner:
        return build_classifier(classifier)
    return build_defence(defences.resolve(Spec.parse(inner)))
