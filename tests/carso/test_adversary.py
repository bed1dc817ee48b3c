"""The training adversaries: who is attacked, by how much, and to what effect."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from carso.adversary import Adversaries, fgsm, pgd
from carso.recipe import read_recipe
from tests.carso.small import classifier, images

ALL = Adversaries(0.5, 0.05, 0.1, steps=5, step=0.02)


@pytest.mark.parametrize(
    ("batch", "share", "m"),
    [
        (640, 0.5, 80),
        (490, 0.5, 61),
        (640, 0.15, 24),
        (340, 0.15, 12),
        (128, 0.01, 0),
        (84, 0.01, 0),
        (1024, 0.01, 2),
    ],
)
def test_a_batch_is_dealt_as_in_the_paper(batch: int, share: float, m: int) -> None:
    x, y = images(batch), torch.zeros(batch, dtype=torch.int64)
    mixed = Adversaries(share, 0.05, 0.1, 1, 0.01).attack_batch(classifier(), x, y)
    changed = (mixed - x).abs().flatten(1).amax(1) > 0
    assert changed.nonzero().flatten().tolist() == list(range(batch - 4 * m, batch))


def test_four_chunks_of_the_right_strength() -> None:
    x, y = images(80), torch.arange(80) % 4
    moved = (ALL.attack_batch(classifier(), x, y) - x).abs().flatten(1).amax(1)
    for i, (eps, exact) in enumerate(((0.05, False), (0.1, False), (0.05, True), (0.1, True))):
        chunk = moved[40 + 10 * i : 50 + 10 * i]
        assert chunk.max() <= eps + 1e-6
        assert (chunk > 0.5 * eps).all()
        if exact:  # a single signed step goes all the way somewhere
            torch.testing.assert_close(chunk, torch.full_like(chunk, eps))


def test_both_raise_the_loss_within_box_and_ball() -> None:
    f, x, y = classifier(), images(20), torch.arange(20) % 4
    eps = torch.full((20, 1, 1, 1), 0.1)
    torch.manual_seed(0)
    clean, by_fgsm, by_pgd = x, fgsm(f, x, y, eps), pgd(f, x, y, eps, steps=10, step=0.03)
    losses = [float(cross_entropy(f(v), y)) for v in (clean, by_fgsm, by_pgd)]
    assert losses[0] < losses[1] < losses[2]
    for v in (by_fgsm, by_pgd):
        assert ((v - x).abs() <= 0.1 + 1e-6).all()
        assert 0 <= v.min() <= v.max() <= 1
        assert not v.requires_grad
    assert all(p.grad is None for p in f.parameters())


def test_fgsm_on_a_linear_model_is_closed_form() -> None:
    """For two classes the loss rises fastest along the sign of the difference of the weights."""
    f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).requires_grad_(False)
    x, y = 0.25 + images(6) / 2, torch.tensor([0, 1] * 3)
    weight = f[1].weight
    want = x + 0.1 * torch.where(y == 0, 1.0, -1.0)[:, None, None, None] * (
        weight[1] - weight[0]
    ).sign().view(1, 1, 8, 8)
    torch.testing.assert_close(fgsm(f, x, y, torch.full((6, 1, 1, 1), 0.1)), want)


def test_strengths_of_the_paper() -> None:
    a = Adversaries.from_recipe(read_recipe("cifar10"))
    assert (a.weak, a.strong, a.steps, a.step, a.share) == (4 / 255, 8 / 255, 40, 0.01, 0.5)


@pytest.mark.parametrize(
    ("name", "weak", "strong"),
    [
        ("cifar10", 0.062562, 0.125123),
        ("cifar100", 0.058831, 0.117662),
        ("tinyimagenet200", 0.068910, 0.137821),
    ],
)
def test_strengths_of_the_released_weights(name: str, weak: float, strong: float) -> None:
    a = Adversaries.from_recipe(read_recipe(name, changes={"eps_unit": "std"}))
    assert (a.weak, a.strong) == (pytest.approx(weak, abs=5e-7), pytest.approx(strong, abs=5e-7))
    assert (a.steps, a.step) == (40, 0.01)  # which the unit does not touch


def test_pgd_step_by_step() -> None:
    """The paper's words: into the box, then into [0,1], at every step; the last iterate."""
    f, x, y = classifier(), images(12), torch.arange(12) % 4
    eps = torch.tensor([0.04] * 6 + [0.3] * 6).view(12, 1, 1, 1)
    torch.manual_seed(6)
    got = pgd(f, x, y, eps, steps=7, step=0.05)
    torch.manual_seed(6)
    adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(7):
        adv.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(f(adv), y, reduction="sum"), adv)
        adv = adv.detach() + 0.05 * gradient.sign()
        adv = torch.minimum(torch.maximum(adv, x - eps), x + eps).clamp(0, 1)
    torch.testing.assert_close(got, adv, rtol=0, atol=1e-6)
    assert ((adv - x).abs() > eps - 1e-6).any()
    assert ((adv == 0) | (adv == 1)).any()


def test_no_gradient_of_a_parameter_is_computed() -> None:
    f = classifier()
    asked: list[int] = []
    f.fc.register_full_backward_hook(lambda *_: asked.append(1))
    saved: list[torch.Size] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        saved.append(t.shape)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fgsm(f, images(3), torch.zeros(3, dtype=torch.int64), torch.full((3, 1, 1, 1), 0.1))
    assert asked
    assert (
        torch.Size([3, 96]) not in saved
    )  # the input of fc, which only the gradient of its weight would need


def test_labels_go_with_their_images() -> None:
    f, x, y = classifier(), images(80), torch.arange(80) // 3 % 4
    eps = torch.tensor([0.05] * 10 + [0.1] * 10).view(20, 1, 1, 1)
    torch.manual_seed(4)
    mixed = ALL.attack_batch(f, x, y)
    torch.manual_seed(4)
    want = torch.cat(
        [x[:40], pgd(f, x[40:60], y[40:60], eps, steps=5, step=0.02), fgsm(f, x[60:], y[60:], eps)]
    )
    torch.testing.assert_close(mixed, want)
