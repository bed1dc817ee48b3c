"""D13 and the forecast of D14: true gradients agree with the smoothed margin's, false do not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.checks.smoothed_gradient import (
    measure_gradient,
    points_near,
    predict_draws_needed,
    sum_differences,
)
from bench.cli.app import main
from bench.errors import BadInput
from bench.judging.evaluate import evaluate
from bench.judging.target import Target, is_correct
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Cell
from bench.results.record import Record, merge
from bench.results.store import Store
from tests.attacks.linear import Linear, two_classes
from tests.conftest import TOYS

EPS = 0.1
PROBLEM = two_classes(batch=32, gap=0.3)
SIZE = PROBLEM.x[0].numel()


class Noisy(nn.Module):
    """The linear model, whose margin has a gradient of length 1, plus noise on that gradient.

    The noise is normal, of standard deviation `size` on each coordinate.
    """

    def __init__(
        self, size: float, surrogates: dict[str, Callable[[Tensor], Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.size = size
        self.surrogates = surrogates or {}

    def forward(self, x: Tensor) -> Tensor:
        noise = ((x - x.detach()) * self.size * torch.randn_like(x)).flatten(1).sum(1)
        return PROBLEM.model(x) + torch.stack([torch.zeros_like(noise), noise], 1)


def figures(
    model: nn.Module, *, stochastic: bool = False, directions: int = 400, draws: int = 16
) -> dict[str, float]:
    torch.manual_seed(0)
    return measure_gradient(
        Target(model, stochastic=stochastic, classes=2),
        PROBLEM.x,
        PROBLEM.y,
        EPS,
        directions,
        draws,
    )


def through(change: Callable[[Tensor], Tensor]) -> nn.Module:
    class Changed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = PROBLEM.model(change(x))
            return logits

    return Changed()


def test_a_linear_model_agrees_with_its_smoothed_margin() -> None:
    measured = figures(PROBLEM.model)
    assert measured["D13"] == pytest.approx(1, abs=0.02)
    # g = t + noise with |noise|^2 = |t|^2 (D + 1) / K, and cos(g1,g2) = 1 / (1 + (D + 1) / K)
    assert measured["cos(g1,g2)"] == pytest.approx(1 / (1 + (SIZE + 1) / 400), abs=0.02)
    assert set(measured) == {"D13", "cos(g1,g2)"}
    few = figures(PROBLEM.model, directions=30)
    assert few["cos(g1,g2)"] < 0.4
    assert few["D13"] == pytest.approx(1, abs=0.12), "the noise of few directions is corrected for"


def test_a_false_gradient_agrees_with_nothing() -> None:
    assert figures(through(lambda x: 2 * x.detach() - x))["D13"] == pytest.approx(-1, abs=0.02)
    assert figures(through(lambda x: x + 0.02 * torch.sin(2000 * x)))["D13"] < 0.4
    assert figures(through(lambda x: torch.round(20 * x) / 20))["D13"] == 0
    assert figures(through(lambda x: x.detach()))["D13"] == 0
    assert figures(through(lambda x: x + 0 * (x - x.detach()).square().sum().sqrt()))["D13"] == 0, (
        "NaN is no gradient"
    )


def test_a_faithful_surrogate_differs_from_a_false_one() -> None:
    other = Linear(torch.randn(2, SIZE, generator=torch.Generator().manual_seed(5)), torch.zeros(2))
    measured = figures(Noisy(3.0, {"wrong": other, "right": PROBLEM.model, "noisy": Noisy(3.0)}))
    assert measured["D13:right"] == pytest.approx(1, abs=0.02)
    assert abs(measured["D13:wrong"]) < 0.3
    # 16 draws of noise of length 3 sqrt(D) = 24 on a gradient of 1: the mean has the cosine
    # 1 / sqrt(1 + 576/16).
    assert measured["D13"] == pytest.approx(1 / (1 + 9 * SIZE / 16) ** 0.5, abs=0.06)
    assert measured["D13:noisy"] == pytest.approx(measured["D13"], abs=0.1)


@pytest.mark.parametrize("need", [1.0, 6.0])
def test_draws_needed_are_the_variance_over_the_squared_mean(need: float) -> None:
    measured = figures(Noisy((need / SIZE) ** 0.5), draws=64)
    assert measured["E.5"] == pytest.approx(need, rel=0.15)
    assert measured["U<=0"] == 0
    assert measured["D13"] == pytest.approx(1 / (1 + need / 64) ** 0.5, abs=0.03)


def test_noise_hides_the_mean_on_about_half_of_the_examples() -> None:
    measured = figures(Noisy(20.0))
    assert 0.2 < measured["U<=0"] < 0.8
    none = predict_draws_needed(torch.tensor([[[1.0]], [[-1.0]]], dtype=torch.float64))
    assert none == {"E.5": -1.0, "U<=0": 1.0}
    # Two draws 3 and 1: their product 3 is the squared mean. The mean of their squares is 5, and
    # 5 less 3 is the variance.
    assert predict_draws_needed(torch.tensor([[[3.0]], [[1.0]]], dtype=torch.float64)) == {
        "E.5": pytest.approx(2 / 3),
        "U<=0": 0.0,
    }


def test_both_ends_of_a_pair_are_under_the_same_draw() -> None:
    """Under draws of their own, noise of 1 in the logits would hide differences of about EPS/6."""
    noisy = through(lambda x: x)
    plain = noisy.forward
    noisy.forward = lambda x: plain(x) + torch.randn(len(x), 2)  # type: ignore[method-assign]
    assert figures(noisy, stochastic=True)["cos(g1,g2)"] == pytest.approx(
        1 / (1 + (SIZE + 1) / 400), abs=0.02
    )


def test_more_directions_are_taken_only_where_estimates_disagree() -> None:
    def asked(model: nn.Module) -> int:
        target = Target(model, classes=2)
        measure_gradient(target, PROBLEM.x, PROBLEM.y, EPS, 40, 16)
        return target.forwards // len(PROBLEM.x)

    flat = Linear(torch.zeros(2, SIZE), torch.tensor([0.0, 1.0]))
    assert 160 <= asked(PROBLEM.model) < 170
    assert 640 <= asked(flat) < 650
    assert figures(flat)["cos(g1,g2)"] == 0


def test_points_lie_near_the_images_where_the_model_is_right() -> None:
    torch.manual_seed(0)
    points = points_near(PROBLEM.model, PROBLEM.x, PROBLEM.y, EPS, EPS / 3)
    assert (points - PROBLEM.x).abs().max() <= EPS + 1e-6
    assert (points != PROBLEM.x).all()
    close = two_classes(
        batch=400, gap=0.05
    )  # a random point is on the right side about four times in five
    assert (
        is_correct(close.model(points_near(close.model, close.x, close.y, EPS, EPS / 3)), close.y)
        .float()
        .mean()
        > 0.97
    )
    edge = points_near(PROBLEM.model, torch.zeros_like(PROBLEM.x), PROBLEM.y, EPS, EPS / 3)
    assert edge.min() >= EPS / 3 - 1e-6


def test_a_margin_that_is_even_about_a_point_has_no_gradient() -> None:
    def curved(x: Tensor) -> Tensor:
        bend = 500 * (
            x - PROBLEM.x.repeat_interleave(len(x) // len(PROBLEM.x), 0)
        ).square().flatten(1).sum(1)
        return PROBLEM.model(x).double() + torch.stack([torch.zeros_like(bend), bend], 1)

    torch.manual_seed(0)
    summed = sum_differences(curved, PROBLEM.x, PROBLEM.y, 0.01, 64)
    torch.manual_seed(0)
    assert torch.allclose(
        summed, sum_differences(PROBLEM.model, PROBLEM.x, PROBLEM.y, 0.01, 64), atol=2e-2
    )


def test_twice_as_many_directions_make_a_sum_of_twice_the_length() -> None:
    torch.manual_seed(0)
    few, many = (
        sum_differences(PROBLEM.model, PROBLEM.x, PROBLEM.y, 0.01, count).norm(dim=1).mean()
        for count in (1000, 2000)
    )
    assert float(many / few) == pytest.approx(2, rel=0.05)


def cell(
    check: str, defence: str, *, dataset: str = "digits", n: int = 16, batch: int | None = None
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
def answer(defence: str) -> Record:
    return evaluate(cell("signal[directions=200]", defence))


@pytest.mark.parametrize(
    ("defence", "least", "most"),
    [
        ("undefended", 0.95, 1.05),
        ("at", 0.9, 1.05),
        ("resize-pad", 0.95, 1.05),
        ("gallery-shattered", -0.2, 0.5),
        ("gallery-kwta", 0.0, 0.7),
        ("bit-depth", 0.0, 0.0),
    ],
)
def test_on_digits_the_honest_agree_and_the_broken_do_not(
    defence: str, least: float, most: float
) -> None:
    measured = dict(answer(defence).checks)
    assert least <= measured["D13"] <= most
    assert "D12" in measured, "the figures of the probes are kept beside"
    assert ("E.5" in measured) == (defence == "resize-pad")


def test_a_surrogate_of_bit_depth_and_the_ripple_agrees() -> None:
    assert max(value for code, value in answer("bit-depth").checks if code.startswith("D13:")) > 0.9
    assert dict(answer("gallery-shattered").checks)["D13:identity"] > 0.9


def test_the_columns_are_those_of_the_clean_images() -> None:
    record = answer("at")
    assert set(record.distance) == {0.0}
    assert record.selected == record.clean == record.correct
    assert record.cost.backwards >= len(record.ids)
    entry = registry.checks.get("signal")
    spent = (record.cost.forwards + 2 * record.cost.backwards) / len(record.ids)
    assert 4 * 200 < spent <= entry.facts.calls(record.cell.attack.params, False)


def test_parts_of_signal_make_the_whole(
    tmp_path: Path,
) -> None:
    asked = cell("signal[directions=20,examples=5]", "resize-pad", n=8, batch=3)
    whole, parts = evaluate(asked), [evaluate(asked, [i]) for i in (2, 0, 1)]
    assert [len(part.ids) for part in parts] == [0, 5, 0]
    together = merge(parts)
    for name in ("clean", "selected", "margin", "correct", "distance", "strayed"):
        assert dict(zip(together.ids, getattr(together, name), strict=True)) == dict(
            zip(whole.ids, getattr(whole, name), strict=True)
        )
    assert (together.checks, together.flags) == (whole.checks, whole.flags)
    assert (together.cost.forwards, together.cost.backwards) == (
        whole.cost.forwards,
        whole.cost.backwards,
    )
    store = Store(tmp_path)
    store.put(whole)
    assert store.get(asked) == whole


def test_signal_is_of_linf_and_a_dry_run_forecasts_its_cost(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="attack 'signal' has no l2 form; it has linf"):
        plan([Request(dataset="digits", norm="l2", attacks=("signal",))])
    words = [
        "--with",
        str(TOYS),
        "--dataset",
        "toy",
        "--defences",
        "toy-linear",
        "--attacks",
        "signal",
        "--dry-run",
        "--out",
        str(tmp_path),
    ]
    assert main(["run", *words]) == 0
    assert "signal" in capsys.readouterr().out
