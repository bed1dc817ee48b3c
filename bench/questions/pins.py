"""Names of classifiers in the knobs of specs, and their pins.

A pin is the digest of the weights in the name: `own:digits-at@1a2b3c4d`. Standard library only.
"""

from __future__ import annotations

import re

from bench.questions.spec import Spec

PIN = re.compile(r"@[0-9a-f]{8}(?=$|[],+])")  # at the end of a name, not in a path


def unpinned(text: str) -> str:
    """`own:digits-at@1a2b3c4d` -> `own:digits-at`."""
    return PIN.sub("", text)


def without_pins(spec: Spec) -> Spec:
    """The spec with every pin taken out of its text knobs."""
    items = []
    for knob, value in spec.items:
        plain = unpinned(value) if isinstance(value, str) else value
        items.append((knob, plain))
    return Spec(spec.name, tuple(items))


def classifier_of(spec: Spec) -> str:
    """The classifier that a defence stands before, without its pin; several are joined by `+`.

    Empty where the defence names none.
    """
    return unpinned(str(spec.params.get("classifier") or spec.params.get("classifiers", "")))


def split_classifiers(text: str) -> list[str]:
    """`own:a+@robust` -> [`own:a`, `@robust`]; any other text stays whole."""
    parts = text.split("+")
    are_classifiers = all(part.startswith("@") or re.match(r"\w+:", part) for part in parts)
    return parts if are_classifiers else [text]


def knob_texts(spec: Spec) -> set[str]:
    """The values of a spec's knobs as text, and those of the defences inside of it."""
    texts: set[str] = set()
    for part in with_inner_defences(spec):
        for value in part.params.values():
            texts.update(split_classifiers(str(value)))
    return texts


def with_inner_defences(spec: Spec) -> list[Spec]:
    """The spec, and the defences inside of it."""
    inner = str(spec.params.get("inner", ""))
    return [spec, *with_inner_defences(Spec.parse(inner))] if inner else [spec]
