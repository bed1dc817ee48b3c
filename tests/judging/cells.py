"""Cells of the toys, for the tests of judging."""

from __future__ import annotations

from fractions import Fraction

from bench.questions import registry
from bench.questions.spec import Cell, Spec, ThreatModel


def cell(
    attack: str,
    defence: str = "toy-linear",
    *,
    eps: str = "1/10",
    norm: str = "linf",
    n: int = 40,
    batch: int = 7,
    draws: int = 1,
) -> Cell:
    """The toys under `attack`, with the linear model in the role of the standard classifier."""
    attack_spec = with_toy_classifier(registry.resolve_question(Spec.parse(attack)))
    access = registry.find_question(attack_spec.name).facts.access
    return Cell(
        dataset=Spec.of("toy", {"n": n}),
        defence=with_toy_classifier(registry.defences.resolve(Spec.parse(defence))),
        attack=attack_spec,
        threat=ThreatModel(norm, Fraction(eps), access),
        seed=0,
        select=draws,
        draws=draws,
        batch=batch,
    )


def with_toy_classifier(spec: Spec) -> Spec:
    knobs = {k: "toy:linear" if v == "@standard" else v for k, v in spec.items}
    return Spec.of(spec.name, knobs)
