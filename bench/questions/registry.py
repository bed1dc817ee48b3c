"""Registered names: datasets, classifiers, defences and attacks, with their knobs and facts. Standard library only.

A plug-in is a function under one of the four decorators. Its keyword-only arguments are its knobs; their defaults and
annotations (`int`, `float`, `bool`, `str`) are all that there is to configure. A `str` knob whose default begins with `@` takes
what the dataset names under that role: `classifier: str = "@robust"`. A defence with a knob `inner` can stand before another
defence in place of a classifier: `jpeg[quality=75,inner=carso[samples=4]]`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bench.entry_points import declared
from bench.errors import BadInput, did_you_mean
from bench.questions.spec import ACCESS, NORMS, Spec, Value

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("dataset", "classifier", "defence", "attack")


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name: the factory, what is known about it without running it, and its knobs with their defaults."""

    kind: str
    name: str
    make: Callable[..., Any]
    facts: Mapping[str, Any]
    knobs: Mapping[str, Value]

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    def resolve(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """Every knob of the entry with its value, read as the type of its default; refuses a knob that the entry does not have."""
        for knob in params:
            if knob not in self.knobs:
                if knob == "inner" and self.kind == "defence":
                    raise BadInput(
                        f"defence '{self.name}' stands before no other defence: {self.facts['alone']}"
                    )
                takes = f"it takes {', '.join(self.knobs)}" if self.knobs else "it takes none"
                hint = (
                    did_you_mean(knob, self.knobs).partition("; there are")[0] if self.knobs else ""
                )
                raise BadInput(f"{self.kind} '{self.name}' takes no '{knob}'; {takes}{hint}")
        found = {
            knob: read(self, knob, params.get(knob, default), default)
            for knob, default in self.knobs.items()
        }
        for knob, form in self.facts.get("reads", {}).items():
            try:
                found[knob] = form(str(found[knob]))
            except BadInput as error:
                raise BadInput(f"{self.kind} '{self.name}': {error}") from None
        for knob, value in found.items():
            if self.kind == "attack" and type(value) is int and value < 1:
                raise BadInput(f"attack '{self.name}': {knob}={value} is too small; the least is 1")
            if self.kind == "attack" and type(value) is float and not 0 <= value < float("inf"):
                raise BadInput(
                    f"attack '{self.name}': {knob}={value} is not a finite number of at least 0; the default is {self.knobs[knob]}"
                )
            for part in str(value).split("+") if knob in self.facts.get("choices", ()) else ():
                if part not in self.facts["choices"][knob]:
                    raise BadInput(
                        f"{self.kind} '{self.name}': {knob}='{part}' is unknown{did_you_mean(part, self.facts['choices'][knob])}"
                    )
        return found


def read(entry: Entry, knob: str, value: Value, default: Value) -> Value:
    """`value` (text, from a command line or a file) as the type of `default`."""
    want = type(default)
    if want is str:
        return str(value)
    if type(value) is want:
        return value
    text = str(value).strip()
    try:
        if want is bool:
            return {"true": True, "false": False}[text.lower()]
        return want(text)
    except (KeyError, ValueError):
        wants = {bool: "true or false", int: "a whole number", float: "a number"}[want]
        raise BadInput(
            f"{entry.kind} '{entry.name}': {knob}='{value}' is not {wants}; the default is {default}"
        ) from None


class Registry:
    """The names of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def add(self, name: str, make: Callable[..., Any], facts: Mapping[str, Any]) -> None:
        held = self._entries.get(name)
        if held and (held.make.__module__, held.make.__qualname__) != (
            make.__module__,
            make.__qualname__,
        ):
            raise BadInput(
                f"{self.kind} '{name}' is registered twice: in {held.make.__module__} and in {make.__module__}"
            )
        knobs: dict[str, Value] = {}
        for parameter in inspect.signature(make).parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                if not isinstance(parameter.default, bool | int | float | str):
                    raise TypeError(
                        f"{self.kind} '{name}': knob '{parameter.name}' needs a default that is a bool, int, float or str"
                    )
                knobs[parameter.name] = parameter.default
        self._entries[name] = Entry(self.kind, name, make, dict(facts), knobs)

    def get(self, name: str) -> Entry:
        if name not in self._entries:
            raise BadInput(f"{self.kind} '{name}' is unknown{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def resolve(self, spec: Spec) -> Spec:
        return Spec.of(spec.name, self.get(spec.name).resolve(spec.params))


registries = {kind: Registry(kind) for kind in KINDS}
datasets, classifiers, defences, attacks = registries.values()


def dataset(
    name: str,
    *,
    norm: str,
    eps: Mapping[str, str],
    n: int,
    budget: str = "standard",
    roles: Mapping[str, str],
) -> Callable[..., Any]:
    """Register a factory `(*, knobs) -> Dataset` of a whole test split.

    `norm` and `eps` (text, by norm) are its default threat models, `n` its default number of examples, and `roles` what knobs
    such as `classifier="@robust"` stand for on it.
    """
    facts = {"norm": norm, "eps": dict(eps), "n": n, "budget": budget, "roles": dict(roles)}
    return _register("dataset", name, facts)


def classifier(
    scheme: str,
    *,
    names: Callable[[], list[str]] | None = None,
    ensure: Callable[[str], None] | None = None,
    digest: Callable[[str], str | None] | None = None,
) -> Callable[..., Any]:
    """Register a loader `(argument: str) -> nn.Module` of the classifiers named `scheme:argument`.

    `names()` lists the arguments; `ensure(argument)` is called before a sweep starts: it fetches what is missing and raises
    `BadInput` with one line where that cannot be had. `digest(argument)`, 8 hex digits of its files or None where they are not there, becomes part
    of the question: `scheme:argument@1a2b3c4d`, which the loader must take too.
    """
    return _register("classifier", scheme, {"names": names, "ensure": ensure, "digest": digest})


def defence(
    name: str,
    *,
    stochastic: bool | Callable[[Mapping[str, Value]], bool] = False,
    alone: str = "it wraps a classifier",
    costly: bool = False,
    ensure: Callable[[Mapping[str, Value]], None] | None = None,
    pins: Callable[[Mapping[str, Value]], Mapping[str, str]] | None = None,
    follows: Callable[[Mapping[str, Value]], Mapping[str, str]] | None = None,
    later: Collection[str] = (),
    choices: Mapping[str, Collection[str]] | None = None,
) -> Callable[..., Any]:
    """Register a factory `(*, knobs) -> nn.Module` from images (B,C,H,W) in [0,1] to logits (B,K).

    `stochastic` may depend on the knobs, and need not speak of the defence that a knob `inner` names; `alone` says why a defence has no such knob.
    A `costly` one takes part only where it is named. `ensure(knobs)` and `pins(knobs)`, which gives knobs with a digest added, are for files of its
    own that no classifier names. `follows(knobs)` gives the knobs whose default depends on another one. A knob that came `later` is no part of the
    question at its default: what was answered before it came still stands. `choices` are the words that a knob takes.
    """
    hooks = {"ensure": ensure, "pins": pins, "follows": follows}
    facts = {
        "stochastic": stochastic,
        "alone": alone,
        "costly": costly,
        "later": later,
        "choices": choices or {},
        **hooks,
    }
    return _register("defence", name, facts)


def attack(
    name: str,
    *,
    norms: set[str],
    access: str,
    family: str,
    needs_stochastic: bool = False,
    minimal: bool = False,
    choices: Mapping[str, Collection[str]] | None = None,
    calls: Callable[[Mapping[str, Any], bool], float] | None = None,
    later: Collection[str] = (),
    reads: Mapping[str, Callable[[str], str]] | None = None,
) -> Callable[..., Any]:
    """Register a function `(model, x, y, threat, *, knobs) -> x_adv`.

    `family` groups attacks in reports (gradient, score, decision, transfer, noise, none, check). An attack that `needs_stochastic` is left out of
    plans for deterministic defences, where it is another attack under a second name. A `minimal` attack looks for the nearest
    misclassified point, and leaves the ball without straying where that lies outside. `choices` are the words that a knob takes, alone or
    joined by `+`; whole numbers must be 1 at least. `calls(knobs, stochastic)` is the most that it asks of the target per example, in
    forward passes (a backward counts as two): what `--dry-run` multiplies. `later` as for a defence. `reads` gives the value of a knob of text
    in its one form, or raises BadInput.
    """
    if not norms <= set(NORMS) or access not in ACCESS:
        raise TypeError(
            f"attack '{name}': norms {norms} and access '{access}' must be among {NORMS} and {ACCESS}"
        )
    return _register(
        "attack",
        name,
        {
            "norms": norms,
            "access": access,
            "family": family,
            "needs_stochastic": needs_stochastic,
            "minimal": minimal,
            "choices": choices or {},
            "calls": calls,
            "later": later,
            "reads": reads or {},
        },
    )


def _register(kind: str, name: str, facts: Mapping[str, Any]) -> Callable[..., Any]:
    def keep(make: Callable[..., Any]) -> Callable[..., Any]:
        registries[kind].add(name, make, facts)
        return make

    return keep


def is_stochastic(spec: Spec) -> bool:
    """Whether a defence, with all of its knobs, or the one inside of it, is."""
    fact = defences.get(spec.name).facts["stochastic"]
    inner = inner_defence(spec)
    return bool(fact(spec.params) if callable(fact) else fact) or (
        inner is not None and is_stochastic(inner)
    )


def inner_defence(spec: Spec) -> Spec | None:
    """The defence, with all of its knobs, that the knob `inner` of a defence names."""
    text = str(spec.params.get("inner", ""))
    return defences.resolve(Spec.parse(text)) if text else None


def inner_attack(spec: Spec) -> Spec | None:
    """The attack, with all of its knobs, that the knob `attack` of a check, or of another attack, names."""
    text = str(spec.params.get("attack", ""))
    return attacks.resolve(Spec.parse(text)) if text else None


def split_scheme(text: str) -> tuple[Entry, str]:
    """`own:digits-at` -> the entry `own` and `digits-at`."""
    scheme, colon, argument = text.partition(":")
    if not colon or not argument:
        raise BadInput(
            f"classifier '{text}' is not scheme:name, such as {', '.join(f'{entry.name}:...' for entry in classifiers)}"
        )
    return classifiers.get(scheme), argument


def split_classifiers(value: str) -> list[str]:
    """`own:a+@robust` -> [`own:a`, `@robust`]; a text that is no list of classifiers stays whole."""
    parts = value.split("+")
    return (
        parts if all(part.startswith("@") or re.match(r"\w+:", part) for part in parts) else [value]
    )


def build_classifier(text: str) -> nn.Module:
    """The classifier named `text`, an `nn.Module` in eval mode on the CPU, its parameters frozen."""
    entry, argument = split_scheme(text)
    made: nn.Module = entry.make(argument)
    return made.eval().requires_grad_(False)


def build_defence(spec: Spec) -> nn.Module:
    """The defence, with all of its knobs, on the CPU, in eval mode, its parameters frozen."""
    made: nn.Module = defences.get(spec.name).make(**spec.params)
    return made.eval().requires_grad_(False)


def build_inner(classifier: str, inner: str) -> nn.Module:
    """What a defence with a knob `inner` classifies with: the defence that it names, or the classifier where it is empty."""
    return (
        build_defence(defences.resolve(Spec.parse(inner)))
        if inner
        else build_classifier(classifier)
    )


def discover(extra: tuple[Path, ...] = ()) -> None:
    """Import the entry points of the group `bench.plugins` (of a package, every public module in it) and the files in `extra`."""
    for point in declared("bench.plugins"):
        name = point.value
        module = importlib.import_module(name)
        for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
            if not found.ispkg and not found.name.startswith("_"):
                importlib.import_module(f"{name}.{found.name}")
    for path in extra:
        load_file(path)


def load_file(path: Path) -> ModuleType:
    name = f"bench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise BadInput(f"plug-in file '{path}' does not exist or is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadInput(
            f"plug-in file '{path}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module
