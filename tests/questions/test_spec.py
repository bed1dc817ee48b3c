"""Names, budgets and keys: what two runs must agree on to have asked the same question."""

from dataclasses import replace
from fractions import Fraction

import pytest

from bench.errors import BadInput
from bench.questions.eps import parse_eps
from bench.questions.spec import Cell, Spec, ThreatModel


def cell(**changes: object) -> Cell:
    base = Cell(
        Spec.of("digits", {"n": 8}),
        Spec.of("at", {}),
        Spec.of("pgd", {"steps": 3}),
        ThreatModel("linf", Fraction(8, 255)),
        0,
        1,
        1,
        4,
    )
    return replace(base, **changes)


def test_text_form_round_trips_and_sorts_its_knobs() -> None:
    spec = Spec.parse("carso[samples=16, aggregation=logit]")
    assert str(spec) == "carso[aggregation=logit,samples=16]"
    assert Spec.parse(str(spec)) == spec


def test_a_value_may_hold_brackets() -> None:
    assert Spec.parse("jpeg[inner=carso[samples=2,aggregation=lse],quality=75]").params == {
        "inner": "carso[samples=2,aggregation=lse]",
        "quality": "75",
    }


@pytest.mark.parametrize("text", ["", "a[b", "a]b[", "a[b]", "a[=1]", "a[b=1,b=2]", "a[b=[1]"])
def test_malformed_specs_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Spec.parse(text)


def test_eps_is_exact() -> None:
    assert parse_eps("8/255") == Fraction(8, 255)
    assert parse_eps("0.031") == Fraction(31, 1000) != parse_eps("8/255")
    assert parse_eps("0.75/255") == parse_eps(" .75 / 255. ") == Fraction(3, 1020)
    assert parse_eps("3.1e-2") == Fraction(31, 1000)
    assert parse_eps("+0/255") == 0


@pytest.mark.parametrize(
    "text",
    [
        *("-8/255", "eight", "1/0", "8/0.0", "", "nan", "inf", "-inf", "8/-255", "1/2/3", "8 255"),
        *("1e99999", "1e-9999999", "1/1e-9999999", "0x8", "1_000", "8/", "/255", "\u0668/255"),
        *("1" * 100_000, "0." + "0" * 100_000 + "1", "8/255\n8/255"),
    ],
)
def test_bad_eps_is_refused_at_once_in_one_line(text: str) -> None:
    with pytest.raises(BadInput, match="eps") as caught:
        parse_eps(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_key_survives_json_and_changes_with_every_field() -> None:
    base = cell()
    assert Cell.from_json(base.to_json()) == base
    assert Cell.from_json(base.to_json()).key == base.key
    others = [
        cell(dataset=Spec.of("digits", {"n": 9})),
        cell(defence=Spec.of("carso", {})),
        cell(attack=Spec.of("pgd", {"steps": 4})),
        cell(threat=ThreatModel("linf", Fraction("0.031"))),
        cell(threat=ThreatModel("l2", Fraction(8, 255))),
        cell(seed=1),
        cell(select=2),
        cell(draws=2),
        cell(batch=5),
    ]
    assert len({base.key, *(other.key for other in others)}) == 1 + len(others)


def test_question_forgets_the_attack_and_its_access_alone() -> None:
    threat = ThreatModel("linf", Fraction(8, 255), "score")
    assert cell(attack=Spec("square"), threat=threat).question == cell().question
    assert cell(seed=1).question != cell().question


def test_key_is_pinned() -> None:
    """A change of this value orphans every stored answer: make it on purpose."""
    assert cell().key == "7dad2b7222bc7e15"


def test_a_mistyped_norm_is_met_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'linf'"):
        ThreatModel("linff", Fraction(1))


def test_a_cell_of_several_draws_is_asked_as_a_stochastic_one() -> None:
    assert not cell().stochastic
    assert cell(select=2).stochastic
    assert cell(draws=2).stochastic
