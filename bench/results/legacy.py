"""The traits of attacks and defences of records that were stored before records kept them.

A table of names, of the plug-ins as they were then. Nothing else judges by a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.questions.facts import AttackTraits, DefenceTraits
from bench.questions.spec import Cell, Spec

FAMILIES = {
    "white-box": "gradient",
    "score": "score",
    "decision": "decision",
    "transfer": "transfer",
}
ATTACKS: Mapping[str, AttackTraits] = {
    "none": AttackTraits(family="none"),
    "noise": AttackTraits(family="noise"),
    "gaussian-noise": AttackTraits(family="noise"),
    "frozen": AttackTraits(family="check", stochastic_only=True),
    "planted": AttackTraits(family="check"),
    "signal": AttackTraits(family="check"),
    "indicators": AttackTraits(family="check"),
    "fgsm": AttackTraits(family="gradient", single_step=True, rescales=True),
    "pgd": AttackTraits(family="gradient", iterated=True, rescales=True, traced=True),
    "pgd-eot": AttackTraits(
        family="gradient",
        iterated=True,
        averages_draws=True,
        stochastic_only=True,
        rescales=True,
        traced=True,
    ),
    "apgd": AttackTraits(family="gradient", iterated=True, traced=True),
    "apgd-eot": AttackTraits(
        family="gradient", iterated=True, averages_draws=True, stochastic_only=True, traced=True
    ),
    "adaptive": AttackTraits(family="gradient", averages_draws=True),
    "autoattack": AttackTraits(family="gradient", returns_clean=True, ensemble=True),
    "eight-bit": AttackTraits(family="gradient", rounds=True),
    "square": AttackTraits(family="score", random_search=True),
    "deepfool": AttackTraits(family="gradient", minimum_norm=True),
    "cw": AttackTraits(family="gradient", minimum_norm=True),
    "fab": AttackTraits(family="gradient", minimum_norm=True),
    "boundary": AttackTraits(family="decision", minimum_norm=True),
    "hopskipjump": AttackTraits(family="decision", minimum_norm=True),
    "geoda": AttackTraits(family="decision", minimum_norm=True),
}


def attack_traits(cell: Cell) -> AttackTraits:
    """What the attack of the cell is: by the table, else by the access that it was given."""
    known = ATTACKS.get(cell.attack.name)
    return known or AttackTraits(family=FAMILIES[cell.threat.access])


def traits_of(cell: Cell) -> dict[str, Any]:
    """The traits of a record of the cell, by the names of its fields.

    A `bare` defence is one whose only knob is its classifier.
    """
    inner = str(cell.attack.params.get("attack", ""))
    return {
        "attack_traits": attack_traits(cell),
        "inner_traits": attack_traits(replace(cell, attack=Spec.parse(inner))) if inner else None,
        "defence_traits": DefenceTraits(
            undefended=cell.defence.name == "undefended",
            bare=set(cell.defence.params) <= {"classifier"},
        ),
    }
