"""The benchmarks' tables, and what they compute."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from benchmarks import attacks
from benchmarks.apgd import main
from benchmarks.carso_samples import Times, cost_ratios, resnet18
from benchmarks.training import attack_one_by_one
from carso.adversary import Adversaries

FLAGS = "--n 20 --roles robust --steps 5 --targets 2 --queries 0 --device cpu"
WORDS = FLAGS.split()


def table(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    main([*WORDS, *words])
    return [line[56:].split() for line in capsys.readouterr().out.splitlines()[2:]]


@pytest.mark.parametrize(("eps", "robust"), [("1/10000", "0.950"), ("1", "0.000")])
def test_the_parts_of_two_processes_are_added_up(
    capsys: pytest.CaptureFixture[str], eps: str, robust: str
) -> None:
    """Nothing changes the 19 right answers at eps 1/10000: every attack makes all its calls.

    At eps 1 none is left.
    """
    single = table(capsys, "--eps", eps, "--processes", "1")
    parallel = table(capsys, "--eps", eps, "--processes", "2")
    assert [row[:2] for row in single] == [row[:2] for row in parallel] == [[robust, "0"]] * 2
    assert all(row[4:] == ["1.00", "1.00"] for row in (single[0], parallel[0]))
    if robust == "0.950":
        assert [row[2] for row in single] == [row[2] for row in parallel], "calls per example"


def test_impossible_requests_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--processes", "0"], ["--n", "0"], ["--dataset", "digit"], ["--roles", "robst"]):
        assert main([*WORDS, *words]) == 2
        assert words[1] in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("torchattacks") is not None, reason="it is here")
def test_a_missing_library_is_named_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert attacks.main(["--only", "spsa"]) == 2
    shown = capsys.readouterr()
    assert "needs the extra 'libraries'" in shown.err
    assert shown.out == ""


def test_a_cost_ratio_is_the_prediction_over_its_parts() -> None:
    seconds = {"prediction": 30.0, "classifier": 2.0, "condition": 1.0, "decoder": 9.0}
    times = {name: Times((value,), (2 * value,)) for name, value in seconds.items()}
    assert cost_ratios(times, 9, "cpu") == [30 / (10 * 2 + 1 + 9)]
    assert cost_ratios(times, 9, "wall") == [1.0]


def test_adversaries_one_by_one_are_those_of_training() -> None:
    """Without a random start's luck: at strength 0 PGD stays, and FGSM has none."""
    model = resnet18(2).eval().requires_grad_(False)
    x = torch.rand(8, 3, 32, 32)
    y = torch.arange(8) % 10
    settings = Adversaries(share=1.0, weak=0.0, strong=0.0, steps=2, step=0.1)
    expected = settings.attack_batch(model, x, y)
    assert torch.equal(attack_one_by_one(settings, model, x, y), expected)
    assert torch.equal(expected, x)
    strong = Adversaries(share=0.5, weak=0.1, strong=0.2, steps=1, step=0.1)
    torch.testing.assert_close(
        attack_one_by_one(strong, model, x, y)[-2:], strong.attack_batch(model, x, y)[-2:]
    )
