"""Records: their columns, and how parts become one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.questions.facts import AttackTraits, DefenceTraits
from bench.results.record import (
    Certificate,
    Cost,
    Env,
    Flag,
    Planted,
    Record,
    Routes,
    merge,
)
from tests.questions.test_spec import cell

ENV = Env("abc", "cmd", "CPU", (("torch", "2"),), (("own:a", "ff"),), "dd")
COST = Cost(2.0, 10, 5, 1, 2, 0.5, 0.25, 100)


def record(ids: tuple[int, ...] = (3, 1), **changes: object) -> Record:
    """A record of the examples `ids`, all right, with the given changes."""
    ones = (1,) * len(ids)
    base = Record(
        cell=cell(),
        ids=ids,
        clean=ones,
        selected=ones,
        margin=(-0.5,) * len(ids),
        correct=ones,
        distance=(0.03,) * len(ids),
        strayed=(0.0,) * len(ids),
        cost=COST,
        flags=(Flag("D1", "soft", "x"),),
        env=ENV,
        attack_traits=AttackTraits(family="gradient", iterated=True),
        defence_traits=DefenceTraits(bare=True),
    )
    return replace(base, **changes)


def test_merge_joins_by_id_and_adds_costs() -> None:
    joined = merge([record((5, 2)), record((4,), correct=(0,), flags=())])
    assert joined.ids == (2, 4, 5)
    assert joined.correct == (1, 0, 1)
    assert joined.cost == Cost(4.0, 20, 10, 2, 4, 0.5, 0.25, 100)
    assert joined.flags == (Flag("D1", "soft", "x"),)
    assert joined.accuracy == pytest.approx(2 / 3)


def test_an_example_judged_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"judged twice: \[2\]"):
        merge([record((5, 2)), record((2,))])


def test_parts_of_different_cells_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different cells"):
        merge([record((1,)), record((2,), cell=cell(seed=9))])


def test_columns_of_unequal_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="'correct'"):
        record(correct=(1,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"certificate": Certificate((1.0,))}, "1 certified radii for 2 ids"),
        ({"routes": Routes(("a",), (0,))}, "1 routes for 2 ids"),
        ({"nearest": (0.1,)}, "1 distances found for 2 ids"),
        ({"planted": Planted((1, 1), (1,), (0, 0))}, "1 planted examples for 2 ids"),
    ],
)
def test_optional_columns_of_unequal_length_are_an_error(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        record(**changes)


def test_merge_joins_what_a_record_may_lack() -> None:
    first = record(
        (5, 2),
        certificate=Certificate((0.5, 0.2), (("n", 9.0),), 1.0),
        routes=Routes(("a", "b"), (1, -1)),
        nearest=(0.5, 0.2),
        planted=Planted((1, 0), (1, 0), (0, 0)),
        checks=(("D12", 0.1),),
    )
    second = record(
        (4,),
        certificate=Certificate((0.4,), (("n", 9.0),), 0.5),
        routes=Routes(("a", "b"), (0,)),
        nearest=(0.4,),
        planted=Planted((1,), (0,), (1,)),
        checks=(("D12", 0.1), ("D11", 2.0)),
    )
    whole = merge([first, second])
    assert whole.certificate == Certificate((0.2, 0.4, 0.5), (("n", 9.0),), 1.5)
    assert whole.routes == Routes(("a", "b"), (-1, 0, 1))
    assert whole.nearest == (0.2, 0.4, 0.5)
    assert whole.planted == Planted((0, 1, 1), (0, 0, 1), (0, 1, 0))
    assert whole.checks == (("D11", 2.0), ("D12", 0.1))


def test_what_an_older_record_lacks_is_left_out_of_its_json() -> None:
    plain = record((1,), env=Env(commit="a")).to_json()["env"]
    assert not {"source", "sources", "files", "stale"} & plain.keys()
    env = Env(source="a", sources=(("mine.py", "b"),), files=(("w.safetensors", "c"),))
    known = record((1,), env=env)
    assert Record.from_json(known.to_json()) == known


PLANTED = Planted((1,), (1,), (0,))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"certificate": Certificate((1.0,))}, {}, "parts with different certificates"),
        (
            {"certificate": Certificate((1.0,), (("n", 9.0),))},
            {"certificate": Certificate((1.0,), (("n", 8.0),))},
            "parts with different certificates",
        ),
        ({"routes": Routes(("a",), (0,))}, {}, "parts with different routes"),
        (
            {"routes": Routes(("a",), (0,))},
            {"routes": Routes(("b",), (0,))},
            "parts with different routes",
        ),
        ({"nearest": (0.1,)}, {}, "parts with and without the distances found"),
        ({"planted": PLANTED}, {}, "parts with and without planted examples"),
        ({"env": Env(source="a")}, {"env": Env(source="b")}, "parts of other code or other images"),
        ({"env": Env(data="a")}, {"env": Env(data="b")}, "parts of other code or other images"),
    ],
)
def test_parts_that_clash_do_not_merge(
    first: dict[str, object], second: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{message} cannot be merged"):
        merge([record((1,), **first), record((2,), **second)])


def test_a_part_without_examples_may_lack_what_others_have() -> None:
    """A check that stops at its number of examples has nothing to say of later batches."""
    assert merge([record((1,), planted=PLANTED), record(())]).planted == PLANTED
