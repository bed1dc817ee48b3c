"""The whole of CARSO against a plain loop over samples, and its declared parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from carso import CARSO, Purifier
from carso.aggregate import AGGREGATIONS
from carso.model import PIXELS_PER_BATCH, VAE
from carso.representation import taps
from tests.carso.small import LAYERS, Small, classifier, images, purifier


def carso(samples: int = 3, aggregation: str = "peel") -> CARSO:
    return CARSO(classifier(), purifier(), samples, aggregation)


def vae(samples: int = 3) -> VAE:
    return VAE(classifier(), purifier(unconditional=True), samples)


@contextmanager
def count_passes(module: nn.Module) -> Iterator[list[int]]:
    """The batch sizes of every pass through a module."""
    sizes: list[int] = []
    hook = module.register_forward_hook(lambda _m, _i, out: sizes.append(len(out)))
    yield sizes
    hook.remove()


@pytest.mark.parametrize("name", list(AGGREGATIONS))
def test_the_prediction_is_a_loop_over_samples(name: str) -> None:
    """In float64: the untrained decoder hardly tells images apart.

    In float32 one image's condition in place of another's would round away.
    """
    d, x = carso(3, name).double(), images().double()
    z = torch.randn(len(x), 3, 3, dtype=torch.float64)
    c = d.purifier.condition(taps(d.base, x, LAYERS))
    want = torch.stack([d.base(d.purifier.decode(z[:, e], c)) for e in range(3)], 1)
    torch.testing.assert_close(d.sample_logits(x, z), want)
    assert (want[0] - want[1]).abs().max() > 1e-6
    torch.manual_seed(5)
    z = torch.randn(len(x), 3, 3, dtype=torch.float64)
    torch.manual_seed(5)
    torch.testing.assert_close(d(x), AGGREGATIONS[name](d.sample_logits(x, z)))


def test_gradients_reach_the_image_through_the_representation() -> None:
    d, x = carso().double(), images().double()
    z = torch.randn(len(x), 3, 3, dtype=torch.float64)

    def loop(v: Tensor) -> Tensor:
        c = d.purifier.condition(taps(d.base, v, LAYERS))
        return AGGREGATIONS["peel"](
            torch.stack([d.base(d.purifier.decode(z[:, e], c)) for e in range(3)], 1)
        )

    def flat(v: Tensor) -> Tensor:
        return d.aggregate(d.sample_logits(v, z))

    got, want = (
        torch.autograd.grad(f(v)[:, 1].sum(), v)[0]
        for f, v in ((flat, x.clone().requires_grad_()), (loop, x.clone().requires_grad_()))
    )
    torch.testing.assert_close(got, want)
    assert (got.flatten(1).abs().amax(1) > 0).all()
    assert not any(p.requires_grad for p in d.parameters())


def test_gradcheck_of_the_whole() -> None:
    d = carso(2).double()
    z = torch.randn(2, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda v: d.aggregate(d.sample_logits(v, z)), images(2).double().requires_grad_()
    )


def test_z_is_fresh_per_call_per_image_and_per_sample() -> None:
    d, x = carso(4), images(1).expand(3, -1, -1, -1)
    first, second = d.sample_logits(x), d.sample_logits(x)
    everything = torch.cat([first, second], 1).flatten(0, 1)
    assert len({tuple(row.tolist()) for row in everything}) == 3 * 4 * 2
    torch.manual_seed(0)
    z = torch.cat([d._noise(torch.zeros(500, 6), 8)]).flatten()
    assert abs(float(z.mean())) < 0.03
    assert abs(float(z.std()) - 1) < 0.03


@pytest.mark.parametrize("make", [carso, vae])
def test_draws_share_the_representation(make: type) -> None:
    d, x = make(3), images()
    encoder = d.base if isinstance(d, CARSO) and d.purifier.layers else d.purifier.encoder
    part = d.purifier.bottleneck if d.purifier.layers else encoder
    with (
        count_passes(part) as encoded,
        count_passes(d.purifier.decoder) as decoded,
        count_passes(d.base) as classified,
    ):
        out = d.draws(x, 4)
    assert out.shape == (5, 4, 4)
    assert (encoded, decoded) == ([5], [5 * 4 * 3])
    assert classified == ([5, 60] if d.purifier.layers else [60])


def test_a_draw_is_a_prediction() -> None:
    """The k draws are forward passes whose z lie side by side, image by image."""
    d, x = carso(3).double(), images().double()
    torch.manual_seed(1)
    got = d.draws(x, 4)
    torch.manual_seed(1)
    z = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    want = torch.stack([d.aggregate(d.sample_logits(x, z[:, k])) for k in range(4)], 1)
    torch.testing.assert_close(got, want)


def limit_batches(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """At most so many images of 1x8x8 in a flat batch."""
    monkeypatch.setitem(PIXELS_PER_BATCH, "cpu", 64 * images)


@pytest.mark.parametrize("make", [carso, vae])
def test_large_batches_are_split_and_stay_the_same(
    make: Callable[[int], CARSO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients to float rounding; the representation is still one pass."""
    d, x = make(3).double(), images().double()

    def run() -> tuple[list[Tensor], list[list[int]]]:
        v = x.clone().requires_grad_()
        torch.manual_seed(1)
        representation = d.purifier.bottleneck or d.purifier.encoder
        with (
            count_passes(representation) as encoded,
            count_passes(d.purifier.decoder) as decoded,
            count_passes(d.final) as judged,
        ):
            logits, drawn = d.sample_logits(v), d.draws(v, 5)
        gradient = torch.autograd.grad(logits.square().sum() + drawn.sum(), v)[0]
        assert (gradient != 0).any()
        return [logits, drawn, gradient], [encoded, decoded, [n for n in judged if n != 5]]

    whole, passes = run()
    assert passes == [[5, 5], [15, 75], [15, 75]]
    limit_batches(monkeypatch, 8)
    split, passes = run()
    assert passes == [[5, 5], [8, 7, *([8] * 5), *([7] * 5)], [8, 7, *([8] * 5), *([7] * 5)]]
    for got, want in zip(split, whole, strict=True):
        torch.testing.assert_close(got, want)


def test_a_batch_of_one_image_is_never_split_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIXELS_PER_BATCH, "cpu", 1)
    d = carso(2)
    with count_passes(d.purifier.decoder) as decoded:
        assert d(images()).shape == (5, 4)
    assert decoded == [1] * 10


@pytest.mark.parametrize("samples", [0, 1, 8])
def test_the_representation_is_computed_once_per_image(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass of the classifier up to the taps, and one of the purifier's.

    It is so for any number of samples and draws, and for any batches that they are cut into.
    """
    limit_batches(monkeypatch, 3)
    d, x = carso(samples), images()
    calls: list[int] = []
    plain = type(d.purifier).condition

    def condition(self: Purifier, taps: Sequence[Tensor]) -> Tensor:
        calls.append(len(taps[0]))
        return plain(self, taps)

    monkeypatch.setattr(Purifier, "condition", condition)
    for use in (
        d,
        lambda v: d.draws(v, 1),
        lambda v: d.draws(v, 20),
        d.sample_logits,
        d.purify,
        d.surrogates["lse"],
        d.surrogates["mean-latent"],
    ):
        calls.clear()
        with (
            count_passes(d.base) as classified,
            count_passes(d.purifier.compressors[0]) as compressed,
        ):
            use(x)
        assert (calls, compressed) == ([5], [5])
        assert classified[0] == 5  # the pass that is tapped; the others are of reconstructions


@pytest.mark.parametrize("make", [carso, vae])
def test_no_samples_is_the_prior_mean_and_deterministic(make: type) -> None:
    d, x = make(0), images()
    assert torch.equal(d(x), d(x))
    assert d.per_draw(x).shape == (5, 1, 4)
    torch.testing.assert_close(d.surrogates["mean-latent"](x), d.per_draw(x)[:, 0])
    torch.testing.assert_close(d.draws(x, 3), d(x)[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(d.surrogates["mean-latent"](x), make(3).surrogates["mean-latent"](x))


def test_declared_parts_compose() -> None:
    d, x = carso(0), images()
    torch.testing.assert_close(
        d.classify(d.decode(torch.zeros(5, d.latent_dim), d.latent(x))), d.per_draw(x)[:, 0]
    )
    torch.testing.assert_close(d.classify(d.purify(x)), d.per_draw(x)[:, 0])
    assert d.base is d.final
    noisy = carso(2)
    for name, surrogate in noisy.surrogates.items():
        v = images().requires_grad_()
        torch.manual_seed(0)
        out = surrogate(v)
        assert out.shape == (5, 4), name
        assert torch.autograd.grad(out.sum(), v)[0].abs().sum() > 0
    torch.manual_seed(0)
    logits = noisy.per_draw(x)
    for name, want in (
        ("lse", logits.logsumexp(1)),
        ("mean-logit", logits.mean(1)),
        ("classifier", noisy.base(x)),
    ):
        torch.manual_seed(0)
        torch.testing.assert_close(noisy.surrogates[name](x), want)


def test_a_copy_is_independent() -> None:
    d, x = carso(0), images()
    twin = copy.deepcopy(d)
    with torch.no_grad():
        next(twin.base.parameters()).add_(1.0)
    torch.testing.assert_close(d.surrogates["classifier"](x), classifier()(x))
    assert not torch.allclose(twin.surrogates["classifier"](x), d.surrogates["classifier"](x))


def test_another_classifier_may_judge_the_reconstructions() -> None:
    other = classifier(9)
    d = CARSO(classifier(), purifier(), 0, final=other)
    x = images()
    torch.testing.assert_close(d.per_draw(x)[:, 0], other(d.purify(x)))


def test_the_unconditional_vae_encodes_the_image() -> None:
    d, x = vae(2), images()
    mu, logvar = d.purifier.encode(x, torch.zeros(5, 0))
    z = torch.randn(5, 2, 3)
    want = torch.stack(
        [
            d.base(d.purifier.decode(mu + (logvar / 2).exp() * z[:, e], torch.zeros(5, 0)))
            for e in range(2)
        ],
        1,
    )
    torch.testing.assert_close(d.sample_logits(x, z), want)


def test_float32_logits_of_50_pass_through_everything() -> None:
    class Loud(Small):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return 50 * logits / logits.detach().abs().amax(1, keepdim=True)

    torch.manual_seed(0)
    loud = Loud()
    for name in ("peel", "logit", "prob", "lse"):
        d, v = CARSO(loud, purifier(), 4, name), images().requires_grad_()
        logits = d(v)
        margin = logits[:, 1:].amax(1) - logits[:, 0]
        (gradient,) = torch.autograd.grad(margin.sum(), v)
        assert logits.isfinite().all()
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="'meen' is unknown"):
        carso(3, "meen")
    with pytest.raises(ValueError, match="samples=-1 is negative"):
        carso(-1)
    with pytest.raises(ValueError, match="no layer 'conv1'"):
        CARSO(nn.Sequential(nn.Linear(1, 1)), purifier())
