"""D17: true gradients find what was planted; false gradients and chance do not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.checks.planted_head import (
    PlantOptions,
    Unfit,
    features,
    find_head,
    plant,
    planted_head,
    random_corners,
    random_points,
    separate,
)
from bench.cli.app import main
from bench.errors import BadInput
from bench.judging.evaluate import evaluate
from bench.judging.randomness import random_stream
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Cell
from bench.results.record import Record, merge
from bench.results.store import Store
from tests.conftest import TOYS

CPU = torch.device("cpu")
EPS = 0.1


def cell(
    check: str,
    defence: str = "toy-linear",
    *,
    dataset: str = "toy-grey",
    n: int = 16,
    batch: int | None = None,
) -> Cell:
    return plan(
        [
            Request(
                dataset=dataset,
                defences=(defence,),
                attacks=(check,),
                n=n,
                budget="quick",
                batch=batch,
            )
        ]
    ).cells[1]


@functools.cache
def answer(check: str, defence: str = "toy-linear", n: int = 16) -> Record:
    return evaluate(cell(check, defence, n=n))


def rates(check: str, *rest: Any) -> tuple[float, float, float]:
    planted = answer(check, *rest).planted
    assert planted
    return planted.rates


def grey() -> Tensor:
    x = torch.full((1, 1, 8, 8), 0.5)
    x[..., 0, 0] = 0.1
    return x


@pytest.mark.parametrize(
    ("rows", "wide"),
    [(60, 200), (200, 10)],
    ids=["more features than points", "more points than features"],
)
def test_a_separator_puts_all_points_on_their_sides(rows: int, wide: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(rows, wide, generator=generator)
    outer = torch.randn(3, wide, generator=generator) + (0 if wide > rows else 8)
    weight, bias, separated = separate(inner, outer)
    assert separated
    assert (inner.double() @ weight + bias < 0).all()
    assert (outer.double() @ weight + bias > 0).all()


def test_points_that_no_plane_separates_are_reported() -> None:
    square = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert not separate(*square)[2]
    assert not separate(square[0], square[0][:1])[2]


def test_constant_features_get_no_weight() -> None:
    inner = torch.cat(
        [torch.randn(50, 5, generator=torch.Generator().manual_seed(0)), torch.full((50, 2), 7.0)],
        1,
    )
    outer = torch.tensor([[9.0, 0, 0, 0, 0, 7, 7]])
    weight, bias, separated = separate(inner, outer)
    assert separated
    assert (weight[5:] == 0).all()
    assert float(outer.double() @ weight + bias) > 0


def test_overlapping_sets_are_separated_half_way() -> None:
    """The plane lies half way between two clouds, though one has a hundred times the points."""
    generator = torch.Generator().manual_seed(0)
    inner, outer = (
        torch.randn(20000, 2, generator=generator),
        torch.randn(200, 2, generator=generator) + torch.tensor([2.0, 0]),
    )
    weight, bias, separated = separate(inner, outer)
    assert not separated
    assert abs(float(weight[1] / weight[0])) < 0.1
    assert float(-bias / weight[0]) == pytest.approx(1, abs=0.15)


def test_random_points_lie_in_the_ball_and_corners_at_its_edge() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 1, 8, 8)
    far, near = random_corners(x, 50, EPS), random_points(x, 101, EPS)
    assert torch.equal(far, torch.where((far - x).abs() > EPS - 1e-6, far, far.round())), (
        "eps away, or at the edge of the box"
    )
    assert near.shape == (101, 1, 8, 8)
    assert (near - x).abs().max() <= EPS + 1e-6
    assert near.min() >= 0
    assert near.max() <= 1
    off_corner = ((near - x).abs() < EPS - 1e-3).flatten(1)
    assert (off_corner[:50].float().mean(1) < 0.4).all(), "the first half are corners"
    assert (off_corner[50:].float().mean(1) > 0.9).all()


def test_a_planted_head_separates_and_keeps_the_size_of_logits() -> None:
    model, x = registry.build_classifier("toy:net"), grey()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    was = model(x)
    options = PlantOptions(EPS, classes=2, stochastic=False, points=300, boundary=1)
    with random_stream(CPU, 0):
        head = plant(model, x, options)
    assert head is not None
    with random_stream(CPU, 0):
        near = torch.cat([x, random_points(x, 299, 0.95 * EPS)])
        far = random_corners(x, 1, EPS)
    with planted_head(head):
        logits, planted = model(near), model(far)
        assert (logits[:, 0] > logits[:, 1]).all(), (
            "none of the points around it is of the other class"
        )
        assert (planted[:, 1] > planted[:, 0]).all(), "and what was planted is"
        assert (planted[:, 1] - planted[:, 0]).abs().max() < 0.01 * (
            logits[:, 0] - logits[:, 1]
        ).max(), "but only just"
        moved = torch.cat([logits, planted])
        assert torch.allclose(moved[:, 0], -moved[:, 1], atol=1e-6)
    _, old = features(model, find_head(model, x, 2), torch.cat([near, far]))
    assert float((moved[:, 1] - moved[:, 0]).abs().max()) == pytest.approx(
        float(old.max() - old.min()), rel=1e-3
    )
    assert torch.equal(model(x), was), "outside of the block the model is what it was"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_true_gradients_find_all_and_masked_gradients_nothing() -> None:
    assert rates("planted") == (1, 1, 0)
    assert rates("planted", "toy-masked") == (1, 0, 0)
    assert rates("planted", "toy-masked[leak=1]") == (1, 1, 0), "the same model with its gradient"


def test_a_weak_attack_finds_less_than_a_strong_one() -> None:
    assert rates("planted[attack=noise[tries=5]]")[1] == 0
    assert rates("planted[attack=square[queries=20]]")[1] < 0.5
    planted = [
        evaluate(
            cell(f"planted[attack={attack},examples=12]", "undefended", dataset="digits", n=12)
        ).planted
        for attack in ("fgsm", "pgd")
    ]
    weak, strong = (p.rates[1] for p in planted if p)
    assert weak < 0.5
    assert strong > 0.7


def test_the_columns_are_those_of_the_planted_models() -> None:
    record = answer("planted", "toy-masked")
    assert record.accuracy == 1
    assert set(record.clean) == {1}
    record = answer("planted")
    assert record.accuracy == 0
    assert max(record.distance) <= EPS + 1e-6


def test_a_stochastic_defence_is_judged_by_the_majority_of_draws() -> None:
    """Noise in which the draws of the points and of the corner overlap."""
    noisy = "noise[sigma=0.05,classifier=toy:net]"
    valid, attack_share, chance = rates(
        "planted[attack=pgd-eot[steps=40,restarts=3],points=499]", noisy, 8
    )
    assert (valid, attack_share, chance) == (1, 1, 0)
    assert rates("planted[attack=noise[tries=5],points=499]", noisy, 8)[1] == 0


def test_parts_of_planted_examples_make_the_whole() -> None:
    asked = cell("planted[examples=5,points=199]", n=8, batch=3)
    whole, parts = evaluate(asked), [evaluate(asked, [i]) for i in (2, 0, 1)]
    assert len(whole.ids) == 5
    assert [len(part.ids) for part in parts] == [0, 3, 2]
    together = merge(parts)
    assert together.planted
    assert whole.planted
    assert sorted(together.ids) == sorted(whole.ids)
    for name in ("clean", "selected", "margin", "correct", "distance", "strayed"):
        assert dict(zip(together.ids, getattr(together, name), strict=True)) == dict(
            zip(whole.ids, getattr(whole, name), strict=True)
        )
    for name in ("valid", "found", "random"):
        mine, theirs = (
            dict(zip(r.ids, getattr(r.planted, name), strict=True)) for r in (together, whole)
        )
        assert mine == theirs
    assert (together.cost.forwards, together.cost.backwards) == (
        whole.cost.forwards,
        whole.cost.backwards,
    )


def test_a_record_with_planted_examples_survives_the_store(tmp_path: Path) -> None:
    record, store = answer("planted", "toy-masked"), Store(tmp_path)
    store.put(record)
    assert store.get(record.cell) == record


class Several(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 9), nn.Linear(9, out)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(x.flatten(1)))
        return logits


def test_the_head_is_the_last_full_layer_that_runs() -> None:
    x = grey()
    defence = Several(4)
    assert find_head(defence, x, 4) is defence.last
    with pytest.raises(
        Unfit, match=r"planted: the last full layer of this defence gives 4 values, not 7 logits"
    ):
        find_head(defence, x, 7)
    with pytest.raises(Unfit, match=r"planted: no full layer \(nn.Linear\) runs in this defence"):
        find_head(nn.Flatten(), x, 64)
    options = PlantOptions(EPS, classes=4, stochastic=False, points=50, boundary=1)
    with pytest.raises(Unfit, match="cannot go on from two logits"):
        plant(Fixed(), x, options)


class Fixed(Several):
    """Goes on from its four logits in a way that two do not fit."""

    def __init__(self) -> None:
        super().__init__(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ torch.eye(4)


def test_a_defence_without_a_head_fails_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--with",
        str(TOYS),
        "--dataset",
        "toy",
        "--n",
        "6",
        "--defences",
        "toy-linear",
        "--attacks",
        "toy-exact,planted[points=9]",
    ]
    assert main(["run", *words, "--out", str(tmp_path)]) == 1
    said = "planted: no full layer (nn.Linear) runs in this defence, so there is no head to replace"
    out = capsys.readouterr()
    assert (
        len([line for line in (out.out + out.err).splitlines() if said in " ".join(line.split())])
        <= 2
    )
    (row,) = (tmp_path / "leaderboards/toy-linf-1_10.csv").read_text().splitlines()[1:]
    assert f"planted failed: Unfit: {said}" in row


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            "planted[attack=autoattack]",
            "attack=autoattack needs three classes, and a planted model has two; give apgd, or pgd",
        ),
        (
            "planted[attack=apgd[loss=ce+targeted]]",
            "loss=targeted needs three classes, and a planted model has two; "
            "give ce, margin or ce+margin",
        ),
        ("planted[attack=onepixel]", "attack=onepixel has no linf form; it has l0"),
        ("planted[attack=frozen]", "attack=frozen asks nothing of the model before it"),
        ("planted[examples=0]", "examples=0 is too small"),
    ],
)
def test_an_attack_that_needs_three_classes_is_refused(check: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        cell(check)
    assert message in str(caught.value)


def test_planted_costs_no_more_than_its_forecast() -> None:
    record = answer("planted", "toy-masked")
    entry = registry.checks.get("planted")
    spent = (record.cost.forwards + 2 * record.cost.backwards) / len(record.ids)
    assert 0 < spent <= entry.facts.calls(record.cell.attack.params, False)
    assert entry.facts.calls(record.cell.attack.params, True) > entry.facts.calls(
        record.cell.attack.params, False
    )
