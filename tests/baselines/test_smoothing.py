"""Randomized smoothing against a linear classifier, and against scipy's own tests.

The smoothed class and the certified radius of a linear classifier are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom, binomtest, norm
from torch import Tensor, nn

import baselines.smoothing
from baselines.smoothing import Options, Smoothing, clear_majority, lower_limit
from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.randomness import random_stream
from bench.judging.target import abstained, is_correct
from bench.questions.discover import discover
from bench.questions.plan import plan
from bench.questions.registry import build_classifier, build_defence, defences
from bench.questions.request import Request
from bench.questions.spec import Spec
from carso.model import PIXELS_PER_BATCH

discover()
CPU = torch.device("cpu")
SIGMA = 0.3


class Half(nn.Module):
    """Class 1 on one side of a plane through the middle of the box, class 0 on the other."""

    direction: Tensor

    def __init__(self, steep: float = 10.0) -> None:
        super().__init__()
        self.register_buffer("direction", torch.tensor([1.0, -2.0, 3.0, -0.5, 0.25, 1.5]))
        self.steep = steep
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        score: Tensor = self.steep * (x.flatten(1) - 0.5) @ self.direction
        return torch.stack([-score, score], 1)

    def at(self, distance: float, count: int) -> Tensor:
        """`count` equal images of class 1 at this l2 distance from the plane."""
        image: Tensor = 0.5 + distance * self.direction / self.direction.norm()
        return image.view(1, 1, 2, 3).repeat(count, 1, 1, 1)


def smooth(inner: nn.Module, **knobs: float) -> Smoothing:
    options = Options(sigma=SIGMA, samples=40, alpha=0.05, n0=20, n=100, chunk=4000)
    return Smoothing(inner, replace(options, **knobs))


@pytest.mark.parametrize("distance", [0.05, 0.2, 0.45])
def test_a_radius_is_too_large_as_seldom_as_its_alpha_says(distance: float) -> None:
    """The true radius is the distance. How often the limit exceeds it is known exactly too.

    The bound alone would pass for a radius of 0.
    """
    runs, n, alpha = 4000, 100, 0.05
    half = Half()
    with random_stream(CPU, 0):
        labels, radii = smooth(half, n=n, alpha=alpha).certify(half.at(distance, runs))
    # A label 0 can be chosen by the n0 copies. The n others certify it only as often as alpha
    # allows.
    wrong = ((radii > distance) | (labels == 0)).float().mean().item()
    slack = 4 * (alpha * (1 - alpha) / runs) ** 0.5
    assert wrong <= alpha + slack
    p = norm.cdf(distance / SIGMA)
    beyond = [
        k
        for k in range(n + 1)
        if k and binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, "exact").low > p
    ]
    expected = binom.pmf(beyond, n, p).sum()
    assert (
        abs((radii > distance).float().mean().item() - expected)
        <= slack + norm.cdf(-distance / SIGMA) ** 5
    )


def test_the_radius_comes_close_with_many_samples_and_grows_with_them() -> None:
    half = Half()
    means = []
    for n in (100, 1000, 30000):
        with random_stream(CPU, 1):
            labels, radii = smooth(half, n=n, alpha=0.001).certify(half.at(0.25, 8))
        assert (labels == 1).all()
        assert (radii < 0.25).all()
        means.append(radii.mean().item())
    assert sorted(means) == means
    assert means[-1] > 0.96 * 0.25


def test_the_largest_radius_is_that_of_unanimous_copies() -> None:
    half = Half()
    labels, radii = smooth(half, sigma=0.01, n=50).certify(half.at(0.5, 3))
    assert (labels == 1).all()
    assert torch.allclose(
        radii, torch.full((3,), 0.01 * norm.ppf(0.05 ** (1 / 50)), dtype=torch.float64)
    )


def test_selection_and_estimation_use_different_noise() -> None:
    """On the boundary the others must not prefer the class that the first copies prefer.

    With the same copies they always do.
    """
    half = Half()
    with random_stream(CPU, 2):
        labels, radii = smooth(half, n0=100, n=100, alpha=0.05).certify(half.at(0.0, 4000))
    assert (labels >= 0).float().mean() < 0.05 + 4 * (
        0.05 * 0.95 / 4000
    ) ** 0.5  # the same copies: twice as often
    assert (radii[labels < 0] == 0).all()
    assert (radii[labels >= 0] > 0).all()


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_limit_is_that_of_clopper_and_pearson(alpha: float) -> None:
    n = 57
    expected = [
        binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, "exact").low
        for k in range(n + 1)
    ]
    assert lower_limit(torch.arange(n + 1), n, alpha).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.001])
def test_a_majority_is_clear_where_the_two_sided_binomial_test_says_so(alpha: float) -> None:
    needed = clear_majority(60, alpha)
    for together in range(61):
        for first in range((together + 1) // 2, together + 1):
            p = binomtest(first, together).pvalue if together else 1.0
            assert (first >= needed[together]) == (p <= alpha)


@pytest.mark.parametrize("distance", [0.0, 0.08, 0.3])
def test_it_abstains_as_often_as_the_theory_says_and_an_abstention_is_wrong(
    distance: float,
) -> None:
    runs, samples, alpha = 4000, 40, 0.05
    half = Half()
    with random_stream(CPU, 3):
        logits = smooth(half, samples=samples, alpha=alpha)(half.at(distance, runs))
    assert logits.isfinite().all()
    counts = range(samples + 1)
    p = norm.cdf(distance / SIGMA)
    clear = [k for k in counts if binomtest(k, samples).pvalue <= alpha]
    rate = 1 - binom.pmf(clear, samples, p).sum()
    silent = abstained(logits)
    assert abs(silent.float().mean().item() - rate) < 4 * (rate * (1 - rate) / runs) ** 0.5 + 1e-9
    if not distance:
        assert rate >= 1 - alpha
    named = torch.ones(runs, dtype=torch.long)
    share = binom.pmf([k for k in clear if k > samples / 2], samples, p).sum()
    ok = is_correct(logits, named) & ~silent
    assert abs(ok.float().mean().item() - share) < 4 * (share * (1 - share) / runs) ** 0.5 + 1e-3
    assert torch.allclose(logits[~silent].exp().sum(1), torch.ones(int((~silent).sum())))


class Split(nn.Module):
    """Barely class 1 on 70% of the copies, surely class 0 on the others.

    The vote is 1; the mean probability favours 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        few = x.flatten(1)[:, 0] > 0.5 + SIGMA * norm.ppf(0.7)
        sure, barely = x.new_tensor([9.0, -9.0]), x.new_tensor([0.0, 0.1])
        return torch.where(few[:, None], sure, barely)


def test_the_vote_decides_and_not_the_mean_probability() -> None:
    x = torch.full((50, 1, 2, 3), 0.5)
    smoothed = smooth(Split(), samples=400)
    with random_stream(CPU, 4):
        logits, soft = smoothed(x), smoothed.surrogates["soft"](x)
    assert (logits.argmax(1) == 1).all()
    assert not abstained(logits).any()
    assert (soft.argmax(1) == 0).all()
    assert (logits[:, 1].exp() - 0.7).abs().max() < 0.1


def test_without_noise_soft_is_the_classifier() -> None:
    net, x = build_classifier("own:digits-standard"), load(Spec.parse("digits[n=20]")).x
    assert torch.allclose(
        smooth(net, sigma=1e-7).surrogates["soft"](x), net(x).log_softmax(1), atol=1e-3
    )


def test_the_gradient_of_the_answer_points_where_that_of_soft_does() -> None:
    """An attacker climbs the mean probability: nothing is hidden behind the votes."""
    net, data = build_classifier("own:digits-at"), load(Spec.parse("digits[n=20]"))
    smoothed = smooth(net, sigma=0.1)

    def ascent(way: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        x = data.x.clone().requires_grad_()
        with random_stream(CPU, 5):
            logits = way(x)
        slope = torch.autograd.grad(nn.functional.cross_entropy(logits, data.y), x)[0].flatten(1)
        return logits, slope / slope.norm(dim=1, keepdim=True)

    logits, slope = ascent(smoothed)
    sure = ~abstained(logits)
    assert sure.float().mean() > 0.9
    assert (slope * ascent(smoothed.surrogates["soft"])[1]).sum(1)[sure].min() > 0.999


def count_kept_values(samples: int, net: nn.Module) -> int:
    """How many numbers autograd keeps for the way back."""
    sizes: list[int] = []

    def pack(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    x = load(Spec.parse("digits[n=3]")).x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        smooth(net, samples=samples, chunk=30)(x)
    return sum(sizes)


def test_memory_is_that_of_a_chunk_with_a_gradient_too(monkeypatch: pytest.MonkeyPatch) -> None:
    half, net = Half(), build_classifier("own:digits-standard")
    smooth(half, chunk=20).certify(half.at(0.1, 30))
    smooth(half, chunk=20)(half.at(0.1, 3).requires_grad_())
    assert half.largest == 20
    lean = count_kept_values(200, net) - count_kept_values(20, net)
    monkeypatch.setattr(baselines.smoothing, "checkpoint", call_plainly)
    assert lean < 0.05 * (count_kept_values(200, net) - count_kept_values(20, net))


def call_plainly(look: Callable[..., object], *given: object, use_reentrant: bool) -> object:
    return look(*given)


def test_on_a_cpu_a_chunk_goes_through_in_parts_and_has_the_same_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole, its activations would leave the cache: see `carso.model.PIXELS_PER_BATCH`."""

    def answer(half: Half) -> Tensor:
        with random_stream(CPU, 7):
            logits: Tensor = smooth(half)(half.at(0.1, 30))
        return logits

    whole, parted = Half(), Half()
    expected = answer(whole)
    monkeypatch.setitem(PIXELS_PER_BATCH, "cpu", 6 * 50)
    assert torch.allclose(answer(parted), expected, rtol=1e-6)
    assert (parted.largest, whole.largest) == (50, 1200)


def test_the_recomputed_gradient_is_that_of_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Half(1.0)
    x = half.at(0.1, 3).requires_grad_()

    def slope() -> Tensor:
        with random_stream(CPU, 6):
            return torch.autograd.grad(smooth(half, samples=100, chunk=20)(x)[:, 0].sum(), x)[0]

    lean = slope()
    monkeypatch.setattr(baselines.smoothing, "checkpoint", call_plainly)
    assert lean.any()
    assert torch.allclose(lean, slope())


def test_copies_that_are_nan_or_infinite_win_no_votes_they_should_not() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nan = x.flatten(1)[:, :1] > 0.5
            return torch.where(
                nan, torch.nan, x.new_tensor([-torch.inf, torch.inf]).expand(len(x), 2)
            )

    x = torch.full((5, 1, 2, 3), 0.5)
    with random_stream(CPU, 8):
        votes, _ = smooth(Odd()).tally(Odd(), x, 100)
        certain = smooth(Odd()).certify(x)[0].tolist()
    assert (votes[:, 0] == 0).all()
    assert (votes[:, 1] < 80).all()
    assert certain == [-1] * 5
    calm = torch.zeros(5, 1, 2, 3)
    assert smooth(Odd(), sigma=0.01)(calm).argmax(1).tolist() == [1] * 5


def test_it_stands_before_other_defences_and_reaches_their_surrogates() -> None:
    (cell,) = plan(
        [Request(defences=("smoothing[samples=20,inner=jpeg]",), attacks=("none",))]
    ).cells
    built = build_defence(cell.defence)
    assert set(built.surrogates) == {"soft", "soft+identity", "soft+soft"}
    x = load(Spec.parse("digits[n=3]")).x
    assert torch.equal(built.base(x), build_classifier("own:digits-standard")(x))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"sigma": 0.0}, "sigma=0.0 is not above 0"),
        ({"sigma": float("nan")}, "sigma=nan is not above 0"),
        ({"alpha": 1.0}, "alpha=1.0 is not between 0 and 1"),
        ({"samples": 10}, "samples=10 is too small at alpha=0.001; the least is 11"),
        ({"n": 9}, "n=9 is too small at alpha=0.001; the least is 10"),
        ({"n0": 0}, "n0=0 is too small"),
        ({"chunk": 0}, "chunk=0 is too small"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs: dict[str, float], message: str) -> None:
    with pytest.raises(BadInput, match="defence 'smoothing': ") as error:
        defences.get("smoothing").make(classifier="own:digits-standard", **knobs)
    assert message in str(error.value)


def test_the_least_numbers_of_copies_can_answer_and_certify() -> None:
    half = Half()
    smoothed = smooth(half, sigma=0.01, samples=11, n=10, alpha=0.001)
    assert not abstained(smoothed(half.at(0.5, 2))).any()
    assert (smoothed.certify(half.at(0.5, 2))[0] == 1).all()
    assert abstained(smooth(half, sigma=0.01, samples=10, alpha=0.001)(half.at(0.5, 2))).all()
