"""The store: whole files, parts that survive, failures that are not scores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import BadInput
from bench.questions.facts import AttackTraits, DefenceTraits
from bench.results.record import Cost, Env, Flag, Record, merge
from bench.results.store import Store
from tests.questions.test_spec import cell


def record(ids: tuple[int, ...] = (3, 1), **changes: object) -> Record:
    k = len(ids)
    base = Record(
        cell(), ids, (1,) * k, (1,) * k, (-0.5,) * k, (1,) * k, (0.03,) * k, (0.0,) * k,
        Cost(2.0, 10, 5, 1, 2, 0.5, 0.25, 100), (Flag("D1", "soft", "x"),), Env("abc", "cmd", "CPU", (("torch", "2"),), (("own:a", "ff"),), "dd"),
        attack_traits=AttackTraits(family="gradient", iterated=True), defence_traits=DefenceTraits(bare=True),
    )  # fmt: skip
    return replace(base, **changes)


def test_a_record_comes_back_as_it_went(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(record())
    assert store.get(cell()) == record()
    assert store.records() == [record()]
    assert (
        store.path(cell()) == tmp_path / "records/digits/linf-8_255/at" / f"pgd-{cell().key}.json"
    )


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


def test_answering_clears_parts_and_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_part(record((1,)), 0)
    store.put_part(record((2,)), 11)
    store.fail(cell(), "RuntimeError: x", "trace")
    assert sorted(store.parts(cell())) == [0, 11]
    assert store.failures() == {cell().key: "RuntimeError: x"}
    assert store.records() == []
    store.put(merge(list(store.parts(cell()).values())))
    assert store.parts(cell()) == {}
    assert store.failures() == {}
    assert [r.ids for r in store.records()] == [(1, 2)]


def test_a_plan_is_kept_with_its_cells(tmp_path: Path) -> None:
    Store(tmp_path).put_plan("digits-quick", [cell(), cell(seed=1)])
    assert Store(tmp_path).plans() == {"digits-quick": [cell(), cell(seed=1)]}


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(record())
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.put(record(margin=(float("nan"), 0.0)))
    assert store.get(cell()) == record()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [store.path(cell()).name]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(record())
    store.path(cell()).write_text("{")
    with pytest.raises(BadInput, match=cell().key):
        store.records()


def test_files_are_plain_json_with_sorted_keys(tmp_path: Path) -> None:
    Store(tmp_path).put(record())
    text = Store(tmp_path).path(cell()).read_text()
    assert list(json.loads(text)) == sorted(json.loads(text))
