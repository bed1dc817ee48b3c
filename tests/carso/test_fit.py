"""Training: it learns, repeats, moves only what it may, and refuses what it cannot use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from carso.batches import pack_images
from carso.checkpoint import fingerprint
from carso.fit import Validation, fit_purifier, new_purifier, validate, wrap
from carso.loss import elbo
from carso.model import CARSO, VAE
from carso.optimiser import Lookahead
from carso.purifier import Purifier
from carso.recipe import Recipe, read_recipe
from carso.representation import taps
from carso.resume import Epoch
from tests.carso.small import IMAGE, LAYERS, Small, classifier


def blobs(n: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A bright quadrant, whose place is the class, and noise."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=g)
    coarse = torch.zeros(n, 1, 4, 4)
    for i, label in enumerate(y.tolist()):
        coarse[
            i, 0, 2 * (label // 2) : 2 * (label // 2) + 2, 2 * (label % 2) : 2 * (label % 2) + 2
        ] = 0.8
    return (interpolate(coarse, scale_factor=2) + 0.1 * torch.rand(n, 1, 8, 8, generator=g)).clamp(
        0, 1
    ), y


def recipe(kind: str = "carso", **changes: object) -> Recipe:
    layers = LAYERS if kind == "carso" else ()
    small = replace(
        read_recipe("digits", kind),
        bottleneck=8,
        latent=3,
        encoder=(2, 4),
        decoder=(8, 6, 4),
        epochs=40,
        batch=24,
        pgd_steps=2,
        layers=layers,
    )
    return replace(small, **changes)


def trained_classifier() -> Small:
    x, y = blobs()
    f = classifier().requires_grad_(True)
    optimiser = torch.optim.Adam(f.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(f(x), y).backward()
        optimiser.step()
    return f.requires_grad_(False)


def run(kind: str = "carso", **changes: object) -> tuple[Small, Purifier, list[Epoch]]:
    f = trained_classifier()
    torch.manual_seed(3)
    p = new_purifier(f, IMAGE, recipe(kind, **changes))
    return f, p, fit_purifier(p, f, *blobs(), recipe(kind, **changes))


@pytest.mark.parametrize("kind", ["carso", "vae"])
def test_it_learns_to_reconstruct_what_the_classifier_recognises(kind: str) -> None:
    f, p, history = run(kind, beta=0.02)
    assert len(history) == 40
    assert history[-1].reconstruction < 0.7 * history[0].reconstruction
    d = wrap(f, p, 4)
    assert type(d) is (CARSO if kind == "carso" else VAE)
    clean, attacked = validate(d, *blobs(seed=1), eps=0.6)
    assert clean > (0.95 if kind == "carso" else 0.35)  # chance: 0.25
    assert attacked < clean - 0.2


def test_the_same_seed_gives_the_same_weights_and_the_classifier_is_left_alone() -> None:
    f = trained_classifier()
    before = fingerprint(f)
    _, first, _ = run(epochs=3)
    _, second, _ = run(epochs=3)
    assert fingerprint(first) == fingerprint(second)
    assert not first.training
    fit_purifier(first, f.train(), *blobs(), recipe(epochs=1))
    assert fingerprint(f) == before
    assert not f.training


def test_what_goes_in_is_attacked_and_the_target_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), f = blobs(), trained_classifier()
    r = recipe(epochs=1, batch=40, adversarial=0.5)
    p = new_purifier(f, IMAGE, r)
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    optimisers: list[Lookahead] = []

    def look(_module: Any, args: Any) -> None:
        inputs.append(args[0])
        for got, want in zip(
            args[1], taps(f, args[0], LAYERS), strict=True
        ):  # of the attacked images, detached
            torch.testing.assert_close(got, want.detach())
            assert not got.requires_grad

    class Kept(Lookahead):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            optimisers.append(self)

    p.register_forward_pre_hook(look)
    monkeypatch.setattr("carso.fit.Lookahead", Kept)

    def spy(x_rec: Tensor, target: Tensor, *rest: Any) -> Any:
        targets.append(target)
        return elbo(x_rec, target, *rest)

    monkeypatch.setattr("carso.fit.elbo", spy)
    fit_purifier(p, f, x, y, r)
    seen = sorted(image.flatten().tolist() for image in torch.cat(targets))
    assert seen == sorted(image.flatten().tolist() for image in x)  # every clean image once
    attacked = [
        int(((a - b).abs().flatten(1).amax(1) > 0).sum())
        for a, b in zip(inputs, targets, strict=True)
    ]
    assert attacked == [20, 20, 8]  # of 40, 40 and 16
    for parameter, slow in zip(p.parameters(), optimisers[0].slow, strict=True):
        assert torch.equal(parameter, slow)


def test_packed_images_train_as_float_ones_do() -> None:
    x, y = blobs()
    x = (x * 255).round() / 255
    assert pack_images(x).dtype == torch.uint8
    weights = []
    for images in (x, pack_images(x)):
        f = trained_classifier()
        torch.manual_seed(3)
        p = new_purifier(f, IMAGE, recipe(epochs=2))
        fit_purifier(p, f, images, y, recipe(epochs=2))
        weights.append(fingerprint(p))
    assert weights[0] == weights[1]


def test_every_epoch_has_a_stream_of_its_own() -> None:
    f, (x, y), r = trained_classifier(), blobs(), recipe(epochs=4)
    seen: list[tuple[int, float]] = []

    def measure(p: Purifier) -> tuple[float, float]:
        assert not p.training
        seen.append((len(seen), float(torch.rand(()))))
        wrap(f, p)  # freezes what it is given
        return 0.5, 0.25

    weights = []
    for every in (0, 1, 3):
        torch.manual_seed(3)
        p = new_purifier(f, IMAGE, r)
        history = fit_purifier(p, f, x, y, r, validation=Validation(measure, every))
        weights.append(fingerprint(p))
        assert [e.epoch for e in history if e.clean_acc is not None] == {
            0: [3],
            1: [0, 1, 2, 3],
            3: [2, 3],
        }[every]
        assert (history[-1].clean_acc, history[-1].pgd_acc) == (0.5, 0.25)
        after = float(torch.rand(()))
    assert len(set(weights)) == 1
    draws = [draw for _, draw in seen]
    assert draws[0] == draws[4] == draws[6]  # of the last epoch
    assert draws[5] == draws[3]
    assert len(set(draws[1:5])) == 4
    torch.manual_seed(3)
    new_purifier(f, IMAGE, r)
    torch.randint(2**62, ())
    assert (
        float(torch.rand(())) == after
    )  # the global generator has given one number, whatever the epochs took


def test_what_is_validated_is_what_training_would_leave() -> None:
    f, (x, y), r = (
        trained_classifier(),
        blobs(),
        recipe(epochs=4, lr=0.02),
    )  # 16 steps, which do not end on a meeting
    fingerprints: list[str] = []

    def measure(p: Purifier) -> tuple[float, float]:
        fingerprints.append(fingerprint(p))
        return 0.0, 0.0

    torch.manual_seed(3)
    p = new_purifier(f, IMAGE, r)
    fit_purifier(p, f, x, y, r, validation=Validation(measure))
    assert fingerprints == [fingerprint(p)]


def test_the_curve_says_what_the_adversaries_took() -> None:
    _, _, history = run(epochs=2)
    for epoch in history:
        assert 0 < epoch.adversaries < epoch.seconds < 60


def test_a_last_batch_of_one_is_left_out() -> None:
    x, y = blobs(41)
    f = trained_classifier()
    p = new_purifier(f, IMAGE, recipe())
    fit_purifier(p, f, x, y, recipe(epochs=1, batch=40))
    assert p.joint[1][1].num_batches_tracked == 1


def test_bad_input() -> None:
    f = trained_classifier()
    x, y = blobs()
    p = new_purifier(f, IMAGE, recipe())
    with pytest.raises(ValueError, match="not finite, or outside"):
        fit_purifier(p, f, x.index_fill(0, torch.tensor([5]), float("nan")), y, recipe())
    with pytest.raises(
        ValueError, match=r"1 training images in batches of 24 on 1 device\(s\) give no batch"
    ):
        fit_purifier(p, f, x[:1], y[:1], recipe())
    with pytest.raises(ValueError, match="no layer 'conv9'"):
        new_purifier(f, IMAGE, recipe(layers=("conv9",)))
    with pytest.raises(ValueError, match=r"tap 0 \(5x8x8\) is too small for 4 blocks"):
        new_purifier(f, IMAGE, recipe(blocks=4, padding=0))
    with pytest.raises(FloatingPointError, match=r"diverged in epoch 0: .* lower lr"):
        fit_purifier(p, f, x, y, recipe(lr_start=1e38, epochs=2))
