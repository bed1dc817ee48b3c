"""Short names for specs: only the knobs that tell them apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from bench.questions.pins import without_pins
from bench.questions.spec import Cell, Spec, format_value

SAMPLING = ("n", "first")  # the knobs of a dataset that say which of its examples are judged


def dataset_of(cell: Cell) -> Spec:
    """The dataset of a cell less the choice of examples."""
    items = [(knob, value) for knob, value in cell.dataset.items if knob not in SAMPLING]
    return Spec(cell.dataset.name, tuple(items))


def short_names(specs: Iterable[Spec], hide: Sequence[str] = ()) -> dict[Spec, str]:
    """The name of each spec, and in brackets the knobs that tell the specs of that name apart.

    Pins are dropped unless nothing else tells two specs apart. The knobs in `hide` are shown
    elsewhere: they tell specs apart without being named.
    """
    groups: dict[str, list[Spec]] = defaultdict(list)
    for spec in dict.fromkeys(specs):
        groups[spec.name].append(spec)
    names: dict[Spec, str] = {}
    for group in groups.values():
        names |= short_names_of_group(group, hide)
    return names


def short_names_of_group(group: Sequence[Spec], hide: Sequence[str]) -> dict[Spec, str]:
    """The same of different specs of one name."""
    shown = [without_pins(spec) for spec in group]
    if len(set(shown)) < len(group):
        shown = list(group)  # only the pins tell two specs apart
    knobs = sorted({knob for spec in shown for knob, _ in spec.items} - set(hide))
    differing = [knob for knob in knobs if len({spec.params.get(knob) for spec in shown}) > 1]
    inner_texts = [str(spec.params.get("inner", "")) for spec in shown]
    inner_names = short_names((Spec.parse(text) for text in inner_texts if text), hide)
    names = {}
    for spec, shown_spec in zip(group, shown, strict=True):
        values = []
        for knob in differing:
            value = format_value(shown_spec.params.get(knob, ""))
            if knob == "inner" and value:
                value = inner_names[Spec.parse(value)]
            if value:
                values.append(f"{knob}={value}")
        names[spec] = f"{spec.name}[{','.join(values)}]" if values else spec.name
    return names
