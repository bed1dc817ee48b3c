"""The worst case over attacks: by hand, and against a simulation whose true answer is known."""

from __future__ import annotations

import random

import pytest

from bench.results.record import Record
from bench.results.worst_case import worst_case
from tests.fake_records import cell, record

NOISY = {"defence": "carso[classifier=own:digits-at]", "select": 4, "draws": 10}


def test_a_deterministic_example_is_robust_only_if_it_resists_every_attack() -> None:
    worst = worst_case(
        [
            record(cell("none"), [1, 1, 1, 0]),
            record(cell("pgd"), [1, 0, 1, 0]),
            record(cell("square"), [1, 1, 0, 0]),
        ]
    )
    assert worst.correct == (1, 0, 0, 0)
    assert worst.robust.mean == 0.25
    assert worst.selection_gap == 0


def test_selection_does_not_rescue_a_deterministic_example() -> None:
    # The second judging found the example broken under square, though the first did not.
    worst = worst_case(
        [
            record(cell("pgd"), [1, 1], margin=[5, 5]),
            record(cell("square"), [0, 1], selected=[1, 1]),
        ]
    )
    assert worst.correct == (0, 1)


def test_the_attack_is_chosen_on_selection_draws_and_scored_on_evaluation_draws() -> None:
    pgd = record(cell("pgd", **NOISY), [9, 2, 5], selected=[1, 3, 2], margin=[0, 0, 0.5])
    spsa = record(cell("spsa", **NOISY), [1, 9, 6], selected=[2, 0, 2], margin=[0, 0, 0.7])
    worst = worst_case([pgd, spsa])
    # The lucky low scores of the attacks that were not chosen (1 and 2 of 10) do not count.
    # The third example is tied: the attack with the larger margin is chosen.
    assert worst.chosen == (0, 1, 1)
    assert worst.correct == (9, 9, 6)
    assert worst.robust.mean == pytest.approx(24 / 30)


def test_a_complete_tie_goes_to_the_earlier_attack() -> None:
    pgd = record(cell("pgd", **NOISY), [3], selected=[2], margin=[0.5])
    spsa = record(cell("spsa", **NOISY), [8], selected=[2], margin=[0.5])
    assert worst_case([pgd, spsa]).correct == (3,)
    assert worst_case([spsa, pgd]).correct == (8,)


def test_useless_attacks_do_not_lower_the_score_of_a_random_defence() -> None:
    """Ten attacks that all leave the same chance p of a right answer: the truth is mean p.

    A union over the scored draws claims far less.
    """
    rng = random.Random(0)
    chances = [rng.betavariate(0.6 * 5, 0.4 * 5) for _ in range(400)]

    def useless(name: str) -> Record:
        selected = [sum(rng.random() < p for _ in range(4)) for p in chances]
        correct = [sum(rng.random() < p for _ in range(10)) for p in chances]
        return record(
            cell(f"pgd[seed={name}]", **NOISY),
            correct,
            selected=selected,
            margin=[rng.random() for _ in chances],
        )

    records = [useless(str(i)) for i in range(10)]
    worst = worst_case(records)
    truth = sum(chances) / len(chances)
    assert worst.robust.lo < truth < worst.robust.hi
    union = sum(min(r.correct[i] for r in records) for i in range(400)) / 4000
    assert union < truth - 0.15
    assert worst.selection_gap > 0.15


def test_records_of_different_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="different questions"):
        worst_case([record(cell("pgd"), [1, 1]), record(cell("square", seed=1), [1, 1])])
    with pytest.raises(ValueError, match="different questions"):
        worst_case([record(cell("pgd"), [1, 1]), record(cell("square"), [1, 1, 1])])
