"""D15: a frozen defence is the defence under one draw, and falls where only chance protects."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.checks.frozen_defence import Frozen
from bench.errors import BadInput
from bench.judging.evaluate import evaluate
from bench.judging.randomness import random_stream
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Cell
from bench.results.record import Record, merge
from bench.results.store import Store

CPU = torch.device("cpu")


class Dice(nn.Module):
    """Noise of torch, of numpy and of Python on a linear map; its parts take images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 48).view(3, 16))
        self.surrogates = {"noisy": self.purify, "plain": lambda x: x}

    def purify(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.randn_like(x)

    def classify(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.tensor([random.random(), float(np.random.rand())]).sum()
        return self.classify(self.purify(x)) ** 2 + shift * x.sum((1, 2, 3))[:, None]


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def cells(*attacks: str, n: int = 24, batch: int | None = None) -> tuple[Cell, ...]:
    request = Request(
        dataset="toy-grey", defences=("toy-key",), attacks=attacks, n=n, budget="quick", batch=batch
    )
    return tuple(
        cell for cell in plan([request]).cells if cell.attack.name != "none" or "none" in attacks
    )


def answer(attack: str) -> Record:
    (cell,) = cells(attack)
    return evaluate(cell)


def test_known_randomness_breaks_a_defence_by_randomness_alone() -> None:
    known, unknown = answer("frozen[attack=pgd-eot]"), answer("pgd-eot")
    assert known.accuracy == 0
    assert unknown.accuracy > 0.99
    assert sum(known.clean) == 24 * known.cell.select, (
        "each image is right under its own key before it is attacked"
    )
    assert max(known.distance) <= 0.1 + 1e-6


def test_a_frozen_draw_answers_alike_in_every_batch() -> None:
    torch.manual_seed(5)
    frozen, x = Frozen(Dice(), 7), images()
    whole = frozen(x)
    assert torch.equal(frozen(x), whole)
    assert torch.equal(frozen(x.flip(0)).flip(0), whole)
    assert torch.equal(torch.cat([frozen(x[:2]), frozen(x[2:])]), whole)
    assert torch.equal(frozen.draws(x, 3), whole[:, None].expand(-1, 3, -1))
    with random_stream(CPU, 7):
        assert torch.equal(frozen.defence(x[3:4]), whole[3:4])
    assert not torch.equal(Frozen(frozen.defence, 8)(x), whole)


def test_parts_and_surrogates_are_under_the_same_draw() -> None:
    frozen, x = Frozen(Dice(), 7), images()
    assert torch.equal(frozen.purify(x), frozen.surrogates["noisy"](x))
    assert torch.equal(frozen.purify(x)[2:3], frozen.purify(x[2:3]))
    assert torch.equal(frozen.surrogates["plain"](x), x)
    assert not hasattr(frozen, "base"), "what the defence does not declare is not there"


def test_the_gradient_is_that_of_the_frozen_draw() -> None:
    frozen = Frozen(Dice().double(), 7)
    x = images(2).double().requires_grad_()
    assert torch.autograd.gradcheck(frozen, x)


def test_no_other_random_stream_moves() -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    Frozen(Dice(), 7)(images())
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_parts_of_frozen_make_the_whole(tmp_path: Path) -> None:
    (cell,) = cells("frozen[attack=pgd]", n=8, batch=3)
    whole, parts = evaluate(cell), [evaluate(cell, [i]) for i in (2, 0, 1)]
    together = merge(parts)
    for name in ("clean", "selected", "margin", "correct", "distance", "strayed"):
        assert dict(zip(together.ids, getattr(together, name), strict=True)) == dict(
            zip(whole.ids, getattr(whole, name), strict=True)
        )
    assert (together.cost.forwards, together.cost.backwards) == (
        whole.cost.forwards,
        whole.cost.backwards,
    )
    store = Store(tmp_path)
    store.put(whole)
    assert store.get(cell) == whole


def test_equal_draws_are_asked_for_once() -> None:
    """More of them change neither the answer nor the cost, and the bound on the calls says so."""
    single, many = (answer(f"frozen[attack=pgd-eot[eot={eot}]]") for eot in (1, 32))
    assert (single.correct, single.margin) == (many.correct, many.margin)
    cost = single.cost
    assert (cost.forwards, cost.backwards) == (many.cost.forwards, many.cost.backwards)
    bound = registry.checks.get("frozen").facts.calls
    calls = bound(single.cell.attack.params, True)
    assert calls == bound(many.cell.attack.params, True)
    assert cost.forwards + 2 * cost.backwards <= calls * len(single.ids)


def test_each_image_has_a_draw_of_its_own() -> None:
    """One key for all would let one lucky draw speak for the whole row."""
    (cell,) = cells("frozen[attack=pgd]", n=8)
    entry = registry.checks.get("frozen")
    seeds = set()
    for number in range(8):
        with (
            random_stream(CPU, cell.key, number, "attack"),
            entry.make(
                Dice(), images(1), torch.zeros(1).long(), cell.threat, 3, True, **cell.attack.params
            ) as trial,
        ):
            seeds.add(trial.model.seed)
            assert not trial.stochastic
    assert len(seeds) == 8


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (
            "frozen[attack=none]",
            "attack=none asks nothing of the model before it; give an attack that does, "
            "such as pgd",
        ),
        ("frozen[attack=transfer]", "attack=transfer asks nothing of the model before it"),
        ("frozen[attack=planted]", "attack=planted asks nothing of the model before it"),
        ("frozen[attack=pdg]", "attack 'pdg' is unknown; did you mean 'pgd'?"),
        ("frozen[attack=pgd[step=x]]", "attack 'pgd': step='x' is not a number; the default is 2"),
    ],
)
def test_an_unfit_inner_attack_is_refused_in_one_line(attack: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        cells(attack)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_question_holds_all_knobs_of_the_inner_attack() -> None:
    (cell,) = cells("frozen[attack=pgd[steps=7]]")
    inner = registry.inner_attack(cell.attack)
    assert inner
    assert inner.params["steps"] == 7
    assert set(inner.params) == set(registry.attacks.get("pgd").knobs)
    assert len(plan([Request(defences=("undefended",), attacks=("frozen",))]).cells) == 1
