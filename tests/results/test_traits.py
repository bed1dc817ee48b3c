"""What an attack and a defence are is kept in the record, and filled in for older ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.judging.evaluate import evaluate
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Cell, Spec
from bench.results import legacy
from bench.results.record import Record
from bench.results.store import Store
from tests.fake_records import cell as fake_cell

TRAITS = ("attack_traits", "inner_traits", "defence_traits")


def ask(attack: str, defence: str = "undefended", dataset: str = "digits") -> Cell:
    request = Request(dataset=dataset, defences=(defence,), attacks=(attack,), n=4)
    return plan([request]).cells[-1]


def traits_of(record: Record) -> dict[str, object]:
    return {name: getattr(record, name) for name in TRAITS}


def test_a_record_keeps_the_facts_of_its_registration(tmp_path: Path) -> None:
    record = evaluate(ask("eight-bit[attack=pgd[steps=1]]"))
    Store(tmp_path).put(record)
    (kept,) = Store(tmp_path).records()
    assert traits_of(kept) == traits_of(record)
    assert kept.attack_traits == registry.attacks.get("eight-bit").facts.traits
    assert kept.effective_traits == registry.attacks.get("pgd").facts.traits
    assert kept.defence_traits == registry.defences.get("undefended").facts.traits
    assert record.to_json()["defence_traits"] == {"undefended": True, "bare": True}


@pytest.mark.parametrize("attack", ["none", "noise", "toy-exact", "toy-transfer"])
def test_an_older_record_has_the_traits_of_the_table(attack: str) -> None:
    record = evaluate(ask(attack, "toy-linear", "toy"))
    older = {name: value for name, value in record.to_json().items() if name not in TRAITS}
    assert Record.from_json(older).family == record.family
    assert traits_of(Record.from_json(older)) == legacy.traits_of(record.cell)


def test_the_table_says_of_every_attack_and_check_of_ours_what_its_registration_says() -> None:
    names = [
        entry.name
        for entry in registry.questions()
        if entry.make.__module__.startswith(("bench.attacks.", "bench.checks."))
    ]
    assert len(names) > 25
    for name in names:
        facts = registry.find_question(name).facts
        cell = fake_cell()
        cell = replace(cell, attack=Spec(name), threat=replace(cell.threat, access=facts.access))
        assert legacy.attack_traits(cell) == facts.traits, name


def test_the_table_says_of_every_defence_of_ours_what_its_registration_says() -> None:
    for entry in registry.defences:
        if entry.make.__module__.startswith(("baselines.", "carso.")):
            spec = Spec.of(entry.name, entry.resolve({}))
            cell = replace(fake_cell(), defence=spec)
            assert legacy.traits_of(cell)["defence_traits"] == entry.facts.traits, entry.name


def test_a_plan_file_keeps_what_its_attacks_are(tmp_path: Path) -> None:
    question = plan([Request(defences=("undefended",), attacks=("pgd", "planted"), n=4)])
    store = Store(tmp_path)
    store.put_plan(question.name, question.cells, question.attack_traits)
    assert store.plans() == {question.name: list(question.cells)}
    assert store.planned_traits() == {
        name: registry.find_question(name).facts.traits for name in ("none", "pgd", "planted")
    }
