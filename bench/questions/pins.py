"""Pins: the digest of the weights in the name of a classifier, as in `own:digits-at@1a2b3c4d`."""

from __future__ import annotations

import re

from bench.questions.spec import Spec

PIN = re.compile(r"@[0-9a-f]{8}\b")


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
