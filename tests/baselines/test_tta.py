"""Test-time augmentation: exact versions, variance, bounded batches, and the true gradient."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.tta import Augmentation, Augmented
from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.randomness import random_stream
from bench.judging.target import predict_draws
from bench.questions.discover import discover
from bench.questions.plan import plan
from bench.questions.registry import build_defence, is_stochastic
from bench.questions.request import Request
from bench.questions.spec import Spec
from carso.model import PIXELS_PER_BATCH

discover()
CPU = torch.device("cpu")


class Extremes(nn.Module):
    """The largest and the smallest pixel.

    No shift and no mirror changes them, as long as they stay inside of the image.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1).amax(1), x.flatten(1).amin(1)], 1)


class Linear(nn.Module):
    """Logits of flattened images by a fixed matrix; notes the size of every batch."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.weight = torch.randn(3, pixels, generator=torch.Generator().manual_seed(0))
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return x.flatten(1) @ self.weight.to(x.dtype).T


class Rounded(nn.Module):
    """A defence that rounds its logits, and declares them unrounded as a surrogate."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.surrogates = {"smooth": base}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x)
        return logits.round()


def augmented(
    inner: nn.Module,
    samples: int = 8,
    shift: int = 0,
    flip: bool = False,
    noise: float = 0.0,
    mean: str = "logit",
) -> Augmented:
    return Augmented(inner, samples, Augmentation(shift, flip, noise), mean)


def defence(text: str) -> Spec:
    (cell,) = plan([Request(defences=(text,), attacks=("none",))]).cells
    return cell.defence


def test_on_an_invariant_classifier_it_is_the_identity() -> None:
    x = torch.full((4, 1, 9, 9), 0.5)
    x[:, :, 4, 3], x[:, :, 3, 5] = 0.9, 0.1
    assert torch.allclose(augmented(Extremes(), shift=2, flip=True)(x), Extremes()(x))
    x[:, :, 4, 3], x[:, :, 0, 0] = 0.5, 0.9  # a corner does not survive every shift
    assert not torch.allclose(augmented(Extremes(), shift=2)(x), Extremes()(x))


def test_versions_are_the_crops_of_the_reflected_image_each_as_often() -> None:
    image = torch.arange(2 * 5 * 6.0).view(1, 2, 5, 6) / 60
    padded = F.pad(image, (2, 2, 2, 2), mode="reflect")[0]
    crops = {
        tuple(padded[:, top : top + 5, left : left + 6].flatten().tolist())
        for top in range(5)
        for left in range(5)
    }
    torch.manual_seed(0)
    counts = Counter(
        tuple(version.flatten().tolist())
        for version in augmented(Extremes(), shift=2).purify(image.expand(5000, -1, -1, -1))
    )
    assert counts.keys() == crops
    assert (
        sum((count - 200) ** 2 / 200 for count in counts.values()) < 51
    )  # chi-square with 24 degrees of freedom: p = 0.001


def test_a_mirror_is_left_to_right_for_half_of_the_images_each_by_itself() -> None:
    x = torch.rand(1000, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    versions = augmented(Extremes(), flip=True).purify(x)
    same, mirrored = ((versions == image).flatten(1).all(1) for image in (x, x.flip(3)))
    assert (same | mirrored).all()
    assert 430 < mirrored.sum() < 570
    assert torch.equal(augmented(Extremes(), noise=0.0).purify(x), x)


def test_the_variance_of_a_linear_classifier_falls_as_one_over_samples() -> None:
    x = torch.full((1, 1, 4, 4), 0.5)
    inner = Linear(16)
    for samples in (1, 4, 16):
        torch.manual_seed(0)
        logits = predict_draws(augmented(inner, samples, noise=0.05), x, 4000)[0]
        assert torch.allclose(
            logits.var(0) * samples / (0.05**2 * inner.weight.square().sum(1)),
            torch.ones(3),
            atol=0.12,
        )  # 5 standard errors
        assert torch.allclose(logits.mean(0), inner(x)[0], atol=0.02)


def test_noise_stays_inside_the_box() -> None:
    torch.manual_seed(0)
    version = augmented(Extremes(), noise=0.5).purify(torch.rand(50, 1, 4, 4))
    assert version.min() == 0
    assert version.max() == 1


def test_means_are_over_the_samples_of_one_draw() -> None:
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for mean in ("logit", "prob"):
        model = augmented(Linear(16), 5, shift=1, mean=mean)
        with random_stream(CPU, 0):
            each = model.per_draw(x)
        with random_stream(CPU, 0):
            log_mean = model(x)
        assert each.shape == (3, 5, 3)
        assert torch.allclose(
            log_mean, each.mean(1) if mean == "logit" else each.softmax(2).mean(1).log(), atol=1e-5
        )


def test_draws_are_one_flat_batch_of_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Linear(16)
    x = torch.rand(6, 1, 4, 4)
    assert predict_draws(augmented(inner, 8, shift=1), x, 10).shape == (6, 10, 3)
    assert inner.batches == [480]
    inner.batches.clear()
    monkeypatch.setitem(PIXELS_PER_BATCH, "cpu", 16 * 50)
    predict_draws(augmented(inner, 8, shift=1), x, 10)
    assert inner.batches == [48] * 10


def test_the_answers_of_a_draw_belong_to_their_image() -> None:
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, 1, 4, 4) / 6
    answers = predict_draws(augmented(Extremes(), 3, shift=1), x, 4)
    assert torch.allclose(answers, Extremes()(x)[:, None].expand(-1, 4, -1))


def test_its_gradient_is_the_true_one() -> None:
    model = augmented(Linear(2 * 5 * 6), 3, shift=2, flip=True, noise=0.01, mean="prob")
    x = 0.3 + 0.4 * torch.rand(
        2, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )

    def drawn(x: Tensor) -> Tensor:
        with random_stream(CPU, 0):
            logits: Tensor = model(x)
        return logits

    assert torch.autograd.gradcheck(drawn, x.requires_grad_())


def test_it_is_random_only_where_a_knob_makes_it_so() -> None:
    assert is_stochastic(defence("tta"))
    assert is_stochastic(defence("tta[shift=0,noise=0,flip=true]"))
    assert not is_stochastic(defence("tta[shift=0,noise=0]"))
    assert is_stochastic(defence("tta[shift=0,noise=0,inner=carso[samples=2]]"))
    x = load(Spec.parse("digits[n=10]")).x
    plain = build_defence(defence("tta[shift=0,noise=0]"))
    assert torch.allclose(plain(x), plain.base(x), atol=1e-5)


def test_surrogates_of_the_inner_defence_are_behind_the_mean() -> None:
    inner = Rounded(Linear(16))
    model = augmented(inner, 4, noise=0.05)
    assert model.base is inner.base
    assert set(model.surrogates) == {"classifier", "exact+smooth"}
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with random_stream(CPU, 0):
        expected = augmented(inner.base, 4, noise=0.05)(x)
    with random_stream(CPU, 0):
        assert torch.allclose(model.surrogates["exact+smooth"](x), expected, atol=1e-5)
    total = model(x) * 4
    assert torch.allclose(total, total.round(), atol=1e-5)  # of four whole numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tta[samples=0]", "defence 'tta': samples=0 is not 1 or more"),
        ("tta[shift=-1]", "defence 'tta': shift=-1 is not 0 or more"),
        ("tta[noise=-0.1]", "defence 'tta': noise=-0.1 is not 0 or more"),
        ("tta[noise=nan]", "defence 'tta': noise=nan is not 0 or more"),
        ("tta[mean=logits]", "did you mean 'logit'?"),
    ],
)
def test_knobs_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        build_defence(defence(text))
    assert message in str(error.value)


def test_a_shift_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(BadInput, match="shift=4 is not less than the image's side, 4"):
        augmented(Linear(20), shift=4)(torch.rand(1, 1, 4, 5))
