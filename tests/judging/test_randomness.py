"""Random streams: the numbers of their names, nothing of them left behind."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from bench.judging.randomness import random_stream, seed_of, seeded

CPU = torch.device("cpu")


def dice() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_a_block_has_the_numbers_that_torch_gives_for_its_seed() -> None:
    torch.manual_seed(seed_of("a", 1))
    expected = torch.rand(5)
    for block in seeded(CPU, seed_of("a", 1)), random_stream(CPU, "a", 1):
        with block:
            assert torch.equal(torch.rand(5), expected)


def test_numpy_and_python_have_the_numbers_of_the_names_too() -> None:
    with random_stream(CPU, "a", 1):
        first = dice()
    with random_stream(CPU, "a", 1):
        assert dice() == first
    with random_stream(CPU, "a", 2):
        assert not set(dice()) & set(first)


def test_a_block_that_fails_leaves_the_generators_as_they_were() -> None:
    def fail() -> None:
        with random_stream(CPU, "a", 1):
            dice()
            raise ArithmeticError

    def begin() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    begin()
    expected = [dice(), dice()]
    begin()
    before = dice()
    with pytest.raises(ArithmeticError):
        fail()
    assert [before, dice()] == expected
