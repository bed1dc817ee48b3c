"""Facts of plug-ins: what is refused at registration, and what a knob reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench import registry as former
from bench.errors import BadInput
from bench.questions import registry
from bench.questions.facts import FAMILIES, AttackTraits, Knob


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[registry.Registry[Any]]:
    """The registry of attacks, whose additions go after the test."""
    monkeypatch.setattr(registry.attacks, "_entries", dict(registry.attacks._entries))
    return registry.attacks


def register(**facts: Any) -> Callable[..., Any]:
    return registry.attack("mine", **{"norms": {"linf"}, "access": "white-box", **facts})


def test_a_family_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match="attack 'mine': family 'gradients' is unknown; did you"):
        register(family="gradients")
    with pytest.raises(TypeError, match="there are: decision, gradient, noise, none, score"):
        register(family="bananas")


def test_a_check_is_no_family_of_an_attack() -> None:
    with pytest.raises(TypeError, match="attack 'mine': family 'check' is unknown"):
        register(family="check")


@pytest.mark.parametrize("facts", [{"norms": {"linf", "l3"}}, {"access": "grey-box"}])
def test_unknown_norms_and_access_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must be among"):
        register(family="gradient", **facts)


def test_a_fact_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match=r"attack 'mine': .*'iterate'"):
        register(family="gradient", iterate=True)


def test_an_attack_and_a_check_cannot_share_a_name(attacks: registry.Registry[Any]) -> None:
    with pytest.raises(BadInput, match="check 'planted' is registered twice"):
        registry.attack("planted", norms={"linf"}, access="white-box", family="gradient")(len)
    with pytest.raises(BadInput, match="attack 'pgd' is registered twice"):
        registry.check("pgd", norms={"linf"})(len)


def test_plugins_written_before_may_use_the_former_names(attacks: registry.Registry[Any]) -> None:
    facts = {"minimal": True, "needs_stochastic": True, "later": {"steps"}}

    @former.attack("mine", norms={"l2"}, access="decision", family="decision", **facts)
    def mine(model: Any, x: Any, y: Any, threat: Any, *, steps: int = 3) -> Any: ...

    entry = attacks.get("mine")
    assert entry.facts.minimum_norm
    assert entry.facts.stochastic_only
    assert entry.facts.added_later == {"steps"}


def test_attacks_and_checks_are_found_by_name_and_others_are_not() -> None:
    assert registry.find_question("pgd").facts.family == "gradient"
    assert registry.find_question("planted").facts.family == "check"
    with pytest.raises(BadInput, match="attack 'plantd' is unknown; did you mean 'planted'"):
        registry.find_question("plantd")


def test_every_attack_of_ours_has_a_family_and_every_check_that_of_checks() -> None:
    assert {entry.facts.family for entry in registry.attacks} == {*FAMILIES} - {"check"}
    assert {entry.facts.family for entry in registry.checks} == {"check"}


def test_traits_are_the_part_of_the_facts_that_a_record_keeps() -> None:
    expected = AttackTraits(family="gradient", iterated=True, rescales=True, traced=True)
    assert registry.attacks.get("pgd").facts.traits == expected
    assert expected.to_json() == {
        "family": "gradient",
        "iterated": True,
        "rescales": True,
        "traced": True,
    }


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        (Knob("steps", int, 5, minimum=1), "0", "steps=0 is too small; the least is 1"),
        (Knob("steps", int, 5), "2.5", "steps='2.5' is not a whole number; the default is 5"),
        (Knob("early", bool, True), "yes", "early='yes' is not true or false; the default is True"),
        (
            Knob("step", float, 2.0, minimum=0),
            "inf",
            "step=inf is not a finite number of at least 0; the default is 2.0",
        ),
        (
            Knob("loss", str, "ce", choices=("ce", "margin")),
            "ce+margins",
            "loss='margins' is unknown; did you mean 'margin'?",
        ),
    ],
)
def test_a_knob_refuses_what_it_does_not_take(knob: Knob, value: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        knob.read(value)
    assert str(caught.value) == message


def test_a_knob_reads_text_as_its_type_and_in_its_one_form() -> None:
    assert Knob("steps", int, 5).read(" 7 ") == 7
    assert Knob("early", bool, False).read("True") is True
    assert Knob("size", float, 0.1).read("1e-2") == 0.01
    assert Knob("size", float, 0.1).read("-1") == -1.0, "no minimum: any number"
    assert Knob("loss", str, "ce", choices=("ce", "margin")).read("margin+ce") == "margin+ce"
    assert Knob("scale", str, "1", parse=lambda text: f"{float(text):g}").read("2.00") == "2"
