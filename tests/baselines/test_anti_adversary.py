"""The anti-adversary: its exact movement and gradients on known classifiers, and its limit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from baselines.anti_adversary import AntiAdversary, log_odds
from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.target import Target
from bench.questions.discover import discover
from bench.questions.plan import plan
from bench.questions.registry import build_defence, is_stochastic
from bench.questions.request import Request
from bench.questions.spec import Spec

discover()


class Linear(nn.Module):
    """Two classes of 1x4x4 images, apart by a plane through the grey image."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = scale * torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
        self.towards = (
            (self.weight[0] - self.weight[1]).sign().view(1, 1, 4, 4)
        )  # what makes class 0 likelier

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T


class Curved(nn.Module):
    """A smooth network in float64 with three classes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.last = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((6, 16), (3, 6))
        )

    def forward(self, x: Tensor) -> Tensor:
        return (2 * (x - 0.5).flatten(1) @ self.first.T).tanh() @ self.last.T


class Rounded(nn.Module):
    """A defence that rounds the image to 32 levels, with BPDA as its surrogate.

    It stands before a classifier or another such defence.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.base = getattr(inner, "base", inner)
        behind = {
            "": inner,
            **{f"+{name}": answer for name, answer in getattr(inner, "surrogates", {}).items()},
        }
        self.surrogates = {
            f"identity{name}": partial(self.bpda, answer) for name, answer in behind.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x * 31).round() / 31)
        return logits

    def bpda(self, answer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return answer(x + ((x * 31).round() / 31 - x).detach())


def images(count: int = 8, spread: float = 1.0) -> Tensor:
    return 0.5 + spread * (
        torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5
    )


def signs(model: Linear, x: Tensor) -> Tensor:
    """The direction in which each image moves."""
    return torch.where(model(x).argmax(1).view(-1, 1, 1, 1) == 0, model.towards, -model.towards)


def gradient(answer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(answer(x)[:, 0].sum(), x)
    return grad


def defence(text: str) -> Spec:
    (cell,) = plan([Request(defences=(text,), attacks=("none",))]).cells
    return cell.defence


@pytest.mark.parametrize(
    "scale", [1.0, 1e4]
)  # at 1e4 the probability rounds to 1, and the gradient of the cross-entropy to 0
@pytest.mark.parametrize("steps", [1, 3])
def test_a_linear_classifiers_image_moves_by_steps_along_the_sign_of_its_weights(
    steps: int, scale: float
) -> None:
    model, x = Linear(scale), images(spread=0.5)
    assert {0, 1} == set(model(x).argmax(1).tolist())
    moved = AntiAdversary(model, steps, 0.02).purify(x)
    assert torch.allclose(moved, x + steps * 0.02 * signs(model, x), atol=1e-6)


def test_the_movement_is_clipped_to_the_box() -> None:
    model, x = Linear(), images()
    defended = AntiAdversary(model, 2, 0.15)
    moved = (x + 0.3 * signs(model, x)).clamp(0, 1)
    assert ((moved == 0) | (moved == 1)).any()
    assert torch.allclose(defended.purify(x), moved, atol=1e-6)
    assert torch.allclose(defended(x), model(moved), atol=1e-6)


def test_the_gradient_is_the_classifiers_but_for_clipped_pixels() -> None:
    model, x = Linear(), images()
    defended = AntiAdversary(model, 2, 0.15)
    weight = model.weight[0].view(1, 1, 4, 4).expand(8, -1, -1, -1)
    free = x + 0.3 * signs(model, x)
    assert torch.allclose(gradient(defended, x), weight * ((free >= 0) & (free <= 1)), atol=1e-6)
    identity = defended.surrogates["identity"]
    assert torch.allclose(identity(x), defended(x), atol=1e-6)
    assert torch.allclose(gradient(identity, x), weight, atol=1e-6)


def test_no_label_of_a_linear_classifier_changes_and_every_margin_grows() -> None:
    """Its limit: what the classifier gets wrong, the defence gets wrong, and more surely."""
    model, x = Linear(), images(200)
    before, after = model(x), AntiAdversary(model, 4, 0.1)(x)
    assert torch.equal(before.argmax(1), after.argmax(1))
    own = before.argmax(1)
    assert (log_odds(after, own) > log_odds(before, own)).all()


def test_forward_and_soft_have_true_gradients() -> None:
    """By finite differences on a curved classifier.

    The signs do not change within the differences; the tanh of `soft` does.
    """
    defended = AntiAdversary(Curved(), 3, 0.02)
    x = images(3, spread=0.4).double().requires_grad_()
    assert torch.autograd.gradcheck(defended, x, eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(defended.surrogates["soft"], x, eps=1e-7, atol=1e-4)
    (through,) = torch.autograd.grad(defended.surrogates["soft"](x)[:, 0].sum(), x)
    moved = defended.soft(x.detach()).requires_grad_()
    (at_moved,) = torch.autograd.grad(Curved()(moved)[:, 0].sum(), moved)
    assert not torch.allclose(through, at_moved, rtol=0.05)  # the steps have a share in it


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = torch.randn(
        6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(log_odds(logits, y), (p / (1 - p)).log())
    ours, (entropy,) = (
        torch.autograd.grad(log_odds(logits, y).sum(), logits)[0],
        torch.autograd.grad(p.log().sum(), logits),
    )
    assert torch.equal(ours.sign(), entropy.sign())


def test_it_works_without_gradients_and_hides_its_own_from_the_meter() -> None:
    model, x = Linear(), images()
    defended = AntiAdversary(model, 2, 0.15)
    with torch.no_grad():
        silent, soft = defended(x), defended.surrogates["soft"](x)
    assert torch.equal(silent, defended(x))
    assert torch.allclose(soft, defended.surrogates["soft"](x.clone().requires_grad_()), atol=1e-6)
    assert not defended.soft(x).requires_grad
    score = Target(defended, classes=2, access="score")
    assert torch.equal(score(x), silent)
    white = Target(defended, classes=2)
    watched = x.clone().requires_grad_()
    white.surrogates["soft"](watched)
    logits = white(watched)
    assert white.backwards == 0  # the steps' own gradients are the defence's, not the attacker's
    logits.sum().backward()
    assert white.backwards == len(x)


@pytest.mark.parametrize("inner", [Rounded(Linear()), Rounded(Rounded(Linear()))])
def test_before_a_defence_that_hides_its_gradient_it_follows_the_surrogate(inner: Rounded) -> None:
    defended = AntiAdversary(inner, 2, 0.02)
    x, base = images(spread=0.5), inner.base
    sure = (inner(x)[:, 0] - inner(x)[:, 1]).abs() > 0.1
    assert isinstance(base, Linear)
    assert defended.base is base
    assert torch.allclose(
        defended.purify(x)[sure], (x + 0.04 * signs(base, (x * 31).round() / 31))[sure], atol=1e-6
    )
    assert {
        "identity",
        "soft",
        "identity+identity",
        "soft+identity",
        "classifier",
    } <= defended.surrogates.keys()
    deepest = max(defended.surrogates, key=len)
    assert gradient(defended.surrogates[deepest], x).all()


def test_on_digits_it_is_surer_and_as_right() -> None:
    data = load(Spec.parse("digits[n=200]"))
    spec = defence("anti-adversary")
    assert not is_stochastic(spec)
    assert is_stochastic(defence("anti-adversary[inner=carso[samples=2]]"))
    defended = build_defence(spec)
    with torch.no_grad():
        before, after = defended.base(data.x), defended(data.x)
    own = before.argmax(1)
    assert (log_odds(after, own) > log_odds(before, own)).float().mean() > 0.95
    assert (after.argmax(1) == own).float().mean() > 0.98


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anti-adversary[steps=0]", "defence 'anti-adversary': steps=0 is not between 1 and 100"),
        ("anti-adversary[steps=101]", "steps=101 is not between 1 and 100"),
        ("anti-adversary[step=0]", "step=0.0 is not above 0 and at most 1"),
        ("anti-adversary[step=nan]", "step=nan is not above 0 and at most 1"),
    ],
)
def test_knobs_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        build_defence(defence(text))
    assert message in str(error.value)
