"""From the text of a defence or an attack to its spec with every knob. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.errors import BadInput, did_you_mean
from bench.questions.facts import DefenceFacts, QuestionFacts
from bench.questions.pins import split_classifiers
from bench.questions.plugin_calls import call_hook, read_knobs, read_text
from bench.questions.registry import (
    Entry,
    defences,
    digest_of,
    find_question,
    names_of,
    split_scheme,
)
from bench.questions.spec import Spec, Value
from bench.weights import split_pin

Params = Mapping[str, Value]
Find = Callable[[str], Entry[Any]]


@dataclass(frozen=True, slots=True)
class Context:
    """What the text leaves open: the dataset's roles, and the budget's knobs by attack."""

    roles: Mapping[str, str]
    budget: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resolution:
    """A spec on its way: the text's own knobs in `spec`, all knobs as far as known in `params`."""

    entry: Entry[DefenceFacts] | Entry[QuestionFacts]
    spec: Spec
    params: Params
    context: Context


def resolve_named(find: Find, text: str, context: Context) -> Spec:
    """The spec of what the user named; BadInput where it cannot be had."""
    resolution = fill_knobs(find, text, context)
    try:
        return run_steps(resolution)
    except BadInput as error:
        entry = resolution.entry
        raise BadInput(f"{entry.kind} '{entry.name}': {error}") from None


def resolve_listed(find: Find, text: str, context: Context, notes: list[str]) -> Spec | None:
    """The spec of what a default list names; None, and a note, where it cannot be had."""
    resolution = fill_knobs(find, text, context)
    try:
        return run_steps(resolution)
    except BadInput as error:
        notes.append(f"{resolution.entry.kind} '{text}' is left out: {error}")
        return None


def fill_knobs(find: Find, text: str, context: Context) -> Resolution:
    """Every knob: the text's own value, the budget's, or the default."""
    spec = Spec.parse(text)
    entry = find(spec.name)
    params = entry.resolve({**context.budget.get(spec.name, {}), **spec.params})
    return Resolution(entry, spec, params, context)


def run_steps(resolution: Resolution) -> Spec:
    for step in STEPS:
        resolution = replace(resolution, params=step(resolution))
    return Spec.of(resolution.spec.name, resolution.params)


def fill_dependent_defaults(resolution: Resolution) -> Params:
    facts = resolution.entry.facts
    if not isinstance(facts, DefenceFacts) or not facts.dependent_defaults:
        return resolution.params
    return replace_knobs(resolution, "dependent_defaults", facts.dependent_defaults)


def replace_knobs(resolution: Resolution, name: str, hook: Callable[..., Any]) -> Params:
    """All knobs, with the values that the hook gives in place of some."""
    label = f"its {name}"
    knobs = resolution.params
    return {**knobs, **read_knobs(label, call_hook(label, hook, knobs), knobs)}


def resolve_inner_defence(resolution: Resolution) -> Params:
    """The knob `inner` with all that it leaves open; `classifier` is the inner defence's own."""
    text = str(resolution.params.get("inner", ""))
    if not text:
        return resolution.params
    own = resolution.spec.params
    if "classifier" in own:
        raise BadInput(
            f"inner={text} and classifier={own['classifier']} exclude each other: "
            f"give inner={text} a classifier of its own"
        )
    inner = resolve_named(defences.get, text, Context(resolution.context.roles))
    classifier = inner.params.get("classifier") or inner.params.get("classifiers", "")
    return {**resolution.params, "inner": str(inner), "classifier": str(classifier)}


def resolve_attack_inside(resolution: Resolution) -> Params:
    """The knob `attack` of a check or an attack, with all that it leaves open."""
    entry = resolution.entry
    if not isinstance(entry.facts, QuestionFacts) or "attack" not in resolution.params:
        return resolution.params
    text = str(resolution.params["attack"])
    inner = resolve_inner_attack(entry, text, resolution.context)
    return {**resolution.params, "attack": inner}


def resolve_inner_attack(outer: Entry[QuestionFacts], text: str, context: Context) -> str:
    """The attack inside of `outer`, as text with all knobs; BadInput where it cannot be there."""
    inner = resolve_named(find_question, text, context)
    refuse_unfit(outer, find_question(inner.name), inner.params)
    return str(inner)


def refuse_unfit(outer: Entry[QuestionFacts], inner: Entry[QuestionFacts], knobs: Params) -> None:
    """BadInput where `inner` with these knobs cannot be the attack inside of `outer`."""
    name = f"attack={inner.name}"
    access = outer.facts.access
    norms = inner.facts.norms
    if inner.facts.family in ("check", "none") or inner.facts.access == "transfer":
        raise BadInput(
            f"{name} asks nothing of the model before it; give an attack that does, such as pgd"
        )
    if "attack" in knobs:
        raise BadInput(f"{name} runs an attack of its own; give that one")
    if outer.facts.family != "check" and inner.facts.access != access:
        raise BadInput(
            f"{name} has {inner.facts.access} access; give one with {access} access, such as pgd"
        )
    if not norms & outer.facts.norms:
        forms = " or ".join(sorted(outer.facts.norms))
        raise BadInput(f"{name} has no {forms} form; it has {', '.join(sorted(norms))}")
    label = "its accepts"
    reason = read_text(label, call_hook(label, outer.facts.accepts, inner, knobs))
    if reason:
        raise BadInput(reason)


def resolve_roles_and_pins(resolution: Resolution) -> Params:
    """Every text with its roles replaced, and its classifiers pinned to their digests."""
    roles = resolution.context.roles
    return {
        knob: resolve_text(value, roles) if isinstance(value, str) else value
        for knob, value in resolution.params.items()
    }


def resolve_text(text: str, roles: Mapping[str, str]) -> str:
    """A text of one classifier or several joined by `+`, or any other text."""
    return "+".join(resolve_classifier(part, roles) for part in split_classifiers(text))


def resolve_classifier(text: str, roles: Mapping[str, str]) -> str:
    if text.startswith("@"):
        if text[1:] not in roles:
            raise BadInput(
                f"the dataset has nothing for '{text}'; give own:NAME, file:PATH or another "
                "scheme:name"
            )
        text = roles[text[1:]]
    scheme, colon, _ = text.partition(":")
    names_classifier = colon and "[" not in scheme  # not the text of an inner spec
    return pin_classifier(text) if names_classifier else text


def pin_classifier(text: str) -> str:
    """`own:digits-at` -> `own:digits-at@1a2b3c4d`: a question names the weights it asks about.

    Without a pin where the files have no digest, or are not there yet. BadInput where the text has
    another pin, or where its scheme does not know the name.
    """
    name, pinned = split_pin(text)
    entry, bare = split_scheme(name)
    digest = digest_of(entry, bare)
    names = None if digest else names_of(entry)
    if names is not None and bare not in names:
        raise BadInput(f"classifier '{name}' is unknown{did_you_mean(bare, names)}")
    pin = digest[:8]
    if pinned and not pin:
        raise BadInput(f"'{name}' has no digest here")
    if pinned and pinned != pin:
        raise BadInput(f"weights '{name}' have the digest {pin}, not {pinned}")
    return f"{name}@{pin}" if pin else name


def pin_own_files(resolution: Resolution) -> Params:
    facts = resolution.entry.facts
    if not isinstance(facts, DefenceFacts) or not facts.pin:
        return resolution.params
    return replace_knobs(resolution, "pin", facts.pin)


def drop_unchanged_new_knobs(resolution: Resolution) -> Params:
    """All knobs but those that were added later and stand at their default."""
    entry = resolution.entry
    return {
        knob: value
        for knob, value in resolution.params.items()
        if knob not in entry.facts.added_later or value != entry.knobs[knob].default
    }


STEPS: tuple[Callable[[Resolution], Params], ...] = (
    # First, for what they give may be a role, as `@vae`.
    fill_dependent_defaults,
    # Before the roles: the classifier of the inner defence takes the place of the default role.
    resolve_inner_defence,
    # Before the roles too: the inner attack resolves its own, and its text is left alone then.
    resolve_attack_inside,
    # Before a defence's own files, which are found by the classifier that stands for a role.
    resolve_roles_and_pins,
    # After the roles: the files may be those of a purifier that a role stands for.
    pin_own_files,
    # Last, for an earlier step may set a new knob.
    drop_unchanged_new_knobs,
)
