"""The store: whole files, parts that survive, failures that are not scores."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.errors import BadInput
from bench.results.record import merge
from bench.results.store import Store
from tests.questions.test_spec import cell
from tests.results.test_record import record


def test_a_record_comes_back_as_it_went(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(record())
    assert store.get(cell()) == record()
    assert store.records() == [record()]
    assert (
        store.path(cell()) == tmp_path / "records/digits/linf-8_255/at" / f"pgd-{cell().key}.json"
    )


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


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """In the block no file can grow beyond `size` bytes: a write of more dies half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_dies_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(record())
    old = store.path(cell()).read_bytes()
    with disk_of(len(old) // 2), pytest.raises(OSError, match="File too large"):
        store.put(record(ids=(3, 2, 1)))
    assert store.path(cell()).read_bytes() == old
    assert store.records() == [record()]


def test_what_cannot_be_written_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
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
