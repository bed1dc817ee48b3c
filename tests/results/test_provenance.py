"""What must not be mixed: records of other images are no evidence on a row."""

from __future__ import annotations

from bench.results.evidence import AskedCells, BoardData, Evidence, gather
from bench.results.record import Env, Record
from tests.fake_records import build_rows, cell, record

ATTACK = "pgd[steps=40]"
CHECK = "planted[attack=pgd[steps=40],examples=4]"
RIGHT = [1, 1, 1, 1]
BROKEN = [0, 0, 0, 0]


def on_images(data: str, attack: str, correct: list[int], eps: str = "1/5") -> Record:
    """The answer under `attack` on the images of the digest `data`; the ids are always 0, 1, ..."""
    return record(cell(attack, eps=eps), correct, env=Env(data=data))


def gather_evidence(*records: Record, other_eps: tuple[Record, ...] = ()) -> Evidence:
    cells = [answer.cell for answer in records]
    answers = {answer.cell.key: answer for answer in records}
    asked = AskedCells.collect(records, {"plan": cells}, {})
    return gather(cells, BoardData(asked, answers, failures={}, other_eps=other_eps))


def test_records_of_the_same_images_are_evidence() -> None:
    clean = on_images("a", "none", RIGHT)
    attacked = on_images("a", ATTACK, BROKEN)
    checked = on_images("a", CHECK, BROKEN)
    elsewhere = on_images("a", ATTACK, RIGHT, eps="1/10")
    evidence = gather_evidence(clean, attacked, checked, other_eps=(elsewhere,))
    assert evidence.records == (clean, attacked)
    assert evidence.checks == (checked,)
    assert evidence.other_eps == (elsewhere,)
    assert evidence.missing == ()


def test_records_of_other_images_are_no_evidence() -> None:
    clean = on_images("a", "none", RIGHT)
    attacked = on_images("b", ATTACK, BROKEN)
    checked = on_images("b", CHECK, BROKEN)
    elsewhere = on_images("b", ATTACK, RIGHT, eps="1/10")
    evidence = gather_evidence(clean, attacked, checked, other_eps=(elsewhere,))
    assert evidence.records == (clean,)
    assert evidence.checks == ()
    assert evidence.other_eps == ()
    assert evidence.missing == ("pgd: on other images",)


def test_records_of_other_examples_are_no_evidence() -> None:
    clean = on_images("a", "none", RIGHT)
    evidence = gather_evidence(clean, on_images("a", ATTACK, BROKEN[:3]))
    assert evidence.records == (clean,)
    assert evidence.missing == ("pgd: on other images",)


def test_the_images_of_the_clean_record_are_those_of_the_row() -> None:
    clean = on_images("b", "none", RIGHT)
    evidence = gather_evidence(on_images("a", ATTACK, BROKEN), clean)
    assert evidence.records == (clean,)


def test_robust_accuracy_is_of_one_set_of_images() -> None:
    records = [
        on_images("a", "none", RIGHT),
        on_images("a", "square", [1, 1, 1, 0]),
        on_images("b", ATTACK, BROKEN),
    ]
    (row,) = build_rows(records, {"plan": [answer.cell for answer in records]}, {})
    assert row.robust is not None
    assert row.robust.mean == 0.75
    assert not row.complete
