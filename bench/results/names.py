"""Short names for specs: only the knobs that tell them apart. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from bench.questions.pins import classifier_of, unpinned, without_pins
from bench.questions.spec import Cell, Spec, format_value

__all__ = [
    "CHECKS",
    "FAMILIES",
    "MEASURES",
    "SAMPLING",
    "classifier_of",
    "dataset_of",
    "family",
    "short_names",
    "unpinned",
    "without_pins",
]

SAMPLING = ("n", "first")  # the knobs of a dataset that say which of its examples are judged
MEASURES = ("signal", "indicators")  # checks whose figures are of all of their examples together
CHECKS = (
    "frozen",
    "planted",
    *MEASURES,
)  # no attacks on the defence as it is: their records say nothing of its robust accuracy
FAMILIES = {
    "white-box": "gradient",
    "score": "score",
    "decision": "decision",
    "transfer": "transfer",
}


def family(cell: Cell) -> str:
    """What the attack works from: none, noise, gradient, score, decision or transfer; or check, which is no attack on the defence."""
    name = cell.attack.name
    if name in CHECKS:
        return "check"
    return name if name in ("none", "noise") else FAMILIES[cell.threat.access]


def dataset_of(cell: Cell) -> Spec:
    """The dataset of a cell less the choice of examples."""
    return Spec(
        cell.dataset.name, tuple(item for item in cell.dataset.items if item[0] not in SAMPLING)
    )


def short_names(specs: Iterable[Spec], hide: tuple[str, ...] = ()) -> dict[Spec, str]:
    """The name of each spec, and in brackets the knobs whose values differ among the specs of that name.

    Pins are dropped unless nothing else tells two specs apart; the knobs in `hide` are shown elsewhere, and tell apart without being named.
    """
    groups: dict[str, list[Spec]] = defaultdict(list)
    for spec in dict.fromkeys(specs):
        groups[spec.name].append(spec)
    labels: dict[Spec, str] = {}
    for name, group in groups.items():
        plain = [without_pins(spec) for spec in group]
        shown = plain if len(set(plain)) == len(group) else group
        knobs = sorted({knob for spec in shown for knob, _ in spec.items} - set(hide))
        differ = [knob for knob in knobs if len({spec.params.get(knob) for spec in shown}) > 1]
        inner = short_names(
            (Spec.parse(text) for spec in shown if (text := str(spec.params.get("inner", "")))),
            hide,
        )
        for spec, look in zip(group, shown, strict=True):
            values = {
                knob: format_value(look.params[knob])
                for knob in differ
                if look.params.get(knob, "") != ""
            }
            if values.get("inner"):
                values["inner"] = inner[Spec.parse(values["inner"])]
            told = ",".join(f"{knob}={value}" for knob, value in values.items())
            labels[spec] = f"{name}[{told}]" if told else name
    return labels
