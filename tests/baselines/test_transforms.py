"""Input transformations: exact values of the simple ones, and the gradients that they have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from baselines.bit_depth import BitDepth
from baselines.gaussian import Blur
from baselines.median import Median
from baselines.noise import Noisy
from baselines.transform import Transformed, clip_to_box, mirror_positions, soft_round
from bench.data.sample import load
from bench.errors import BadInput
from bench.questions.plan import plan
from bench.questions.registry import build_classifier, build_defence, defences, is_stochastic
from bench.questions.request import Request
from bench.questions.spec import Spec
from carso.model import PIXELS_PER_BATCH

ROUNDED = ["jpeg", "bit-depth"]
TRUE = ["median", "gaussian", "tv[keep=1]"]
RANDOM = ["resize-pad", "noise", "tv"]


def rough(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def build_transformed(text: str) -> Transformed:
    (cell,) = plan([Request(defences=(text,), attacks=("none",))]).cells
    built = build_defence(cell.defence)
    assert isinstance(built, Transformed)
    assert built.random == is_stochastic(cell.defence) or "inner" in text
    return built


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x)[:, 0].sum(), x)[0]


def call_seeded(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return f(x)


def test_bit_depth_values() -> None:
    x = torch.tensor([0.0, 0.07, 0.08, 0.5, 0.51, 0.93, 1.0]).view(1, 1, 1, -1)
    assert torch.equal(BitDepth(1)(x).flatten(), torch.tensor([0.0, 0, 0, 0, 1, 1, 1]))
    assert torch.equal(BitDepth(3)(x).flatten() * 7, torch.tensor([0.0, 0, 1, 4, 4, 7, 7]))
    eight = torch.arange(256).view(1, 1, 16, 16) / 255
    assert torch.equal(BitDepth(8)(eight), eight)


def test_soft_round() -> None:
    x = torch.tensor([0.0, 0.25, 0.75, 2.5], requires_grad=True)
    slopes = torch.autograd.grad(soft_round(x).sum(), x)[0]
    assert torch.allclose(soft_round(x), torch.tensor([0.0, 0.25**3, 1 - 0.25**3, 2.125]))
    assert torch.allclose(slopes, 3 * torch.tensor([0.0, 0.25, 0.25, 0.5]) ** 2)


@pytest.mark.parametrize(("size", "before", "after"), [(8, 1, 0), (5, 2, 2), (3, 8, 7), (1, 2, 2)])
def test_mirrored_is_what_numpy_pads_with(size: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(size), (before, after), mode="symmetric")
    assert mirror_positions(size, before, after, torch.device("cpu")).tolist() == expected.tolist()


def test_inside_keeps_the_gradient() -> None:
    x = torch.tensor([-1e-7, 0.3, 1 + 2e-7], requires_grad=True)
    assert clip_to_box(x).tolist() == [0, x[1].item(), 1]
    assert torch.autograd.grad(clip_to_box(x).sum(), x)[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("window", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (2, 3, 13, 9)])
def test_median_is_scipys(window: int, shape: tuple[int, ...]) -> None:
    x = rough(*shape)
    assert np.array_equal(
        Median(window)(x).numpy(),
        ndimage.median_filter(x.numpy(), (1, 1, window, window), mode="reflect"),
    )


def test_median_hands_the_gradient_to_the_pixel_that_it_took() -> None:
    x = rough(1, 1, 6, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(Median(3), x)
    chosen = torch.autograd.grad(Median(3)(x)[0, 0, 2, 2], x)[0]
    assert chosen.sum() == chosen.max() == 1
    assert x[chosen > 0] == x[0, 0, 1:4, 1:4].median()


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (2, 3, 13, 9)])
def test_gaussian_is_scipys(sigma: float, shape: tuple[int, ...]) -> None:
    x = rough(*shape)
    expected = ndimage.gaussian_filter(
        x.double().numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=4
    )
    assert np.abs(Blur(sigma)(x).numpy() - expected).max() < 1e-6
    assert torch.autograd.gradcheck(
        Blur(sigma).double(), rough(1, 1, 5, 4).double().requires_grad_()
    )


def test_noise_has_its_spread_and_stays_in_the_box() -> None:
    torch.manual_seed(0)
    change = Noisy(0.05)(torch.full((50, 3, 32, 32), 0.5)) - 0.5
    assert abs(change.mean()) < 1e-3
    assert abs(change.std() - 0.05) < 1e-3
    assert abs((change.abs() > 0.1).float().mean() - 0.0455) < 0.005
    black = Noisy(0.05)(torch.zeros(50, 3, 32, 32))
    assert black.min() == 0
    assert abs((black == 0).float().mean() - 0.5) < 0.01


OUT_OF_RANGE = """
jpeg[quality=101] jpeg[quality=0] jpeg[subsampling=422] bit-depth[bits=0] bit-depth[bits=9]
median[window=1] median[window=16] gaussian[sigma=0] gaussian[sigma=nan] gaussian[sigma=11]
resize-pad[least=0] resize-pad[least=1] resize-pad[least=nan] noise[sigma=0] noise[sigma=-1]
noise[sigma=inf] tv[weight=0] tv[weight=inf] tv[steps=0] tv[steps=10001] tv[keep=0] tv[keep=1.5]
tv[keep=nan]
"""


@pytest.mark.parametrize("text", OUT_OF_RANGE.split())
def test_knobs_out_of_range_are_refused_by_name_value_and_range(text: str) -> None:
    spec = Spec.parse(text)
    ((knob, value),) = spec.params.items()
    params = defences.get(spec.name).resolve({**spec.params, "classifier": "own:digits-standard"})
    with pytest.raises(
        BadInput,
        match=rf"defence '{spec.name}': {knob}={value}(\.0)? is "
        "(not (between .* and|above 0 and at most) |neither 420 nor 444)",
    ):
        defences.get(spec.name).make(**params)


@pytest.mark.parametrize("text", ROUNDED + TRUE + RANDOM)
def test_the_parts_compose_to_the_defence(text: str) -> None:
    defended = build_transformed(text)
    x = load(Spec.parse("digits[n=50]")).x
    torch.manual_seed(0)
    logits = defended(x)
    torch.manual_seed(0)
    x_hat = defended.purify(x)
    assert 0 <= x_hat.min() <= x_hat.max() <= 1
    assert not torch.equal(x_hat, x)
    assert torch.equal(defended.classify(x_hat), logits)
    assert torch.equal(defended.base(x_hat), logits)
    assert torch.equal(build_classifier("own:digits-standard")(x_hat), logits)


@pytest.mark.parametrize("text", ROUNDED)
def test_the_rounding_hides_the_gradient_and_the_surrogates_show_it(text: str) -> None:
    defended = build_transformed(text)
    x = load(Spec.parse("digits[n=50]")).x
    assert not gradient(defended, x).any()
    assert list(defended.surrogates) == ["identity", "soft"]
    identity = defended.surrogates["identity"]
    assert torch.allclose(identity(x), defended(x), atol=1e-4)
    assert torch.allclose(
        gradient(identity, x), gradient(defended.base, defended.purify(x)), atol=1e-4
    )
    moved = (x + 0.3 / 255 + 0.01 * rough(*x.shape)).clamp(0, 1)
    assert (gradient(defended.surrogates["soft"], moved) != 0).flatten(1).any(
        1
    ).float().mean() > 0.9
    assert (defended.surrogates["soft"](x) - defended(x)).abs().max() < 0.5 * (
        defended.base(x) - defended(x)
    ).abs().max() + 1


@pytest.mark.parametrize("text", TRUE + RANDOM)
def test_the_gradient_is_that_of_finite_differences(text: str) -> None:
    """Along a random direction, in float64, with the same draw on both sides.

    Kinks are few, and so must be the disagreements.
    """
    defended = build_transformed(text).double()
    x = 0.2 + 0.6 * rough(20, 1, 8, 8).double()
    step = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    measured = (call_seeded(defended, x + step) - call_seeded(defended, x))[:, 0]
    claimed = (gradient(defended, x) * step).flatten(1).sum(1)
    agree = (measured - claimed).abs() < 1e-3 * claimed.abs() + 1e-9
    assert agree.double().mean() >= 0.9
    assert (claimed != 0).all()


def test_a_true_gradient_needs_no_surrogate_but_for_the_costly_one() -> None:
    assert [list(build_transformed(text).surrogates) for text in TRUE + RANDOM] == [
        [],
        [],
        ["identity"],
        [],
        [],
        ["identity"],
    ]
    defended, x = build_transformed("tv"), load(Spec.parse("digits[n=20]")).x
    assert torch.allclose(
        call_seeded(defended.surrogates["identity"], x), call_seeded(defended, x), atol=1e-4
    )
    assert torch.allclose(
        gradient(defended.surrogates["identity"], x),
        gradient(defended.base, call_seeded(defended.purify, x)),
        atol=1e-4,
    )


def test_the_surrogates_of_what_is_inside_are_behind_those_outside() -> None:
    hidden = {"identity", "soft"}
    assert set(build_transformed("median[inner=bit-depth]").surrogates) == {
        f"exact+{name}" for name in hidden
    }
    assert set(build_transformed("tv[inner=bit-depth]").surrogates) == {
        "identity",
        *(f"{way}+{name}" for way in ("exact", "identity") for name in hidden),
    }
    assert set(build_transformed("jpeg[inner=bit-depth]").surrogates) == hidden | {
        f"{way}+{name}" for way in hidden for name in hidden
    }
    defended, x = build_transformed("median[inner=bit-depth]"), rough(20, 1, 8, 8)
    assert not gradient(defended, x).any()
    inside_it = build_transformed("bit-depth")
    expected = gradient(
        lambda images: inside_it.surrogates["identity"](defended.transform(images)), x
    )
    assert torch.equal(gradient(defended.surrogates["exact+identity"], x), expected)
    assert expected.any()


class Seen(nn.Module):
    """Says how many images come at once, and answers with each one's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return x.flatten(1).mean(1, keepdim=True).expand(-1, 2)


def test_random_draws_come_in_bounded_batches_others_share_one_transform() -> None:
    seen, sigma = Seen(), 0.2
    x = 0.3 + 0.05 * torch.arange(7.0).view(7, 1, 1, 1).expand(
        -1, 3, 32, 32
    )  # each 20 standard deviations of a mean from the next
    answers = Transformed(seen, Noisy(sigma), random=True).draws(x, 20)
    assert answers.shape == (7, 20, 2)
    assert sum(seen.batches) == 140
    assert max(seen.batches) <= PIXELS_PER_BATCH["cpu"] // x[0].numel() < 140
    assert len(answers[..., 0].unique()) > 120
    assert (answers.std(1) > 0).all()
    assert (
        (answers[..., 0] - answers[..., 0].mean(1, keepdim=True)).abs() < 0.02
    ).all()  # a row is of one image
    assert answers[..., 0].mean(1).diff().min() > 0.03
    once: list[int] = []
    median, images = Median(2), rough(7, 3, 8, 8)
    median.register_forward_hook(lambda _module, given, _found: once.append(len(given[0])))
    fixed = Transformed(Seen(), median)
    assert torch.allclose(fixed.draws(images, 3), fixed(images)[:, None].expand(-1, 3, -1))
    assert once == [7, 7]
