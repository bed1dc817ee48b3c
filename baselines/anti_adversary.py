"""Test-time optimisation: move the image to where the classifier is surer (Alfarra et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from baselines.transform import (
    Answer,
    compose_surrogates,
    inner_surrogates,
    with_identity_gradient,
)
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence

TINY = 1e-12  # keeps 0/0 out of images whose gradient is zero everywhere


class AntiAdversary(nn.Module):
    """`inner`, a classifier or a defence, on images moved towards its own prediction.

    Images (B,C,H,W) in [0,1] to logits (B,K). An image moves by `steps` signed steps of length
    `step`, in pixel units of [0,1], and is clipped to [0,1]. A step follows the sign of the
    gradient of the log-odds of the class that `inner` predicts for the image as given. The paper's
    cross-entropy has the same sign; the log-odds are alive where the probability rounds to 1.
    Where `inner` hides its gradient and declares the surrogate `identity`, which has its logits,
    the steps follow that.

    The gradient of `forward` is the true one. Signs are piecewise constant, so the movement adds
    nothing to it. The clipping takes away the pixels that it holds. Surrogates: `identity` has
    the same logits, and sees neither movement nor clipping on the way back (BPDA). `soft` replaces
    the sign by a tanh and is differentiated through all steps (double backward), so it sees where
    signs are about to change. `classifier` is the bare one. The surrogates of `inner` are there
    behind each of the first two, as `identity+lse`.

    It works the same under `torch.no_grad`. BadInput for a knob out of its range.
    """

    def __init__(self, inner: nn.Module, steps: int, step: float) -> None:
        super().__init__()
        if not 1 <= steps <= 100:
            raise BadInput(f"defence 'anti-adversary': steps={steps} is not between 1 and 100")
        if not 0 < step <= 1:
            raise BadInput(f"defence 'anti-adversary': step={step} is not above 0 and at most 1")
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.steps = steps
        self.step = step
        self.guide = find_guide(inner)
        self.surrogates: dict[str, Answer] = compose_surrogates(
            {"identity": self.identity, "soft": self.soft},
            {"": inner, **inner_surrogates(inner)},
        )
        self.surrogates["classifier"] = self.base

    def purify(self, x: Tensor) -> Tensor:
        """The moved images."""
        change = torch.zeros_like(x)
        predicted: Tensor | None = None
        for _ in range(self.steps):
            with torch.enable_grad():
                moved = (x.detach() + change).requires_grad_()
                logits = self.guide(moved)
                if predicted is None:
                    predicted = logits.argmax(1)
                (gradient,) = torch.autograd.grad(log_odds(logits, predicted).sum(), moved)
            change = change + self.step * gradient.sign()
        return (x + change).clamp(0, 1)

    def classify(self, x_hat: Tensor) -> Tensor:
        logits: Tensor = self.inner(x_hat)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.purify(x))

    def identity(self, x: Tensor) -> Tensor:
        return with_identity_gradient(self.purify, x)

    def soft(self, x: Tensor) -> Tensor:
        """The images moved by a tanh of the gradient, with the gradient of that.

        The tanh is of the gradient relative to its mean size in each image.
        """
        differentiated = x.requires_grad and torch.is_grad_enabled()
        predicted: Tensor | None = None
        with torch.enable_grad():
            moved = x.clone() if differentiated else x.detach().clone().requires_grad_()
            for _ in range(self.steps):
                logits = self.guide(moved)
                if predicted is None:
                    predicted = logits.argmax(1)
                (gradient,) = torch.autograd.grad(
                    log_odds(logits, predicted).sum(), moved, create_graph=differentiated
                )
                size = gradient.abs().mean((1, 2, 3), keepdim=True) + TINY  # (B,1,1,1)
                moved = moved + self.step * (gradient / size).tanh()
                if not differentiated:
                    moved = moved.detach().requires_grad_()
            moved = moved.clamp(0, 1)
        return moved if differentiated else moved.detach()


def find_guide(inner: nn.Module) -> Answer:
    """What has the logits of `inner` and a gradient.

    Among the surrogates of `inner` it is the one with the most layers of BPDA, none of them
    approximate; else `inner` itself.
    """
    answers: Mapping[str, Answer] = getattr(inner, "surrogates", {})
    names = [name for name in answers if set(name.split("+")) <= {"exact", "identity"}]
    if not names:
        return inner
    return answers[max(names, key=lambda name: name.count("+"))]


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log p_y - log(1 - p_y) (B,) of logits (B,K), without rounding.

    Its gradient has the sign of that of log p_y, and does not vanish.
    """
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -math.inf).logsumexp(1)


@defence("anti-adversary")
def anti_adversary(
    *, classifier: str = "@standard", inner: str = "", steps: int = 2, step: float = 0.15
) -> nn.Module:
    """Move the image by signed gradient steps towards the classifier's own prediction, classify.

    Alfarra, Perez, Thabet, Bibi, Torr and Ghanem (2022), arXiv 2103.14347, prove and measure it for
    attackers that query a classifier without knowing it. An image that the classifier itself gets
    wrong is made more surely wrong, so the classifier's adversarial examples are the defence's.
    Between two classes of a linear classifier no label ever changes. Croce et al. (2022),
    arXiv 2202.13711, found that no test-time defence that they attacked improved significantly on
    the classifier without it; some weakened it. Attack it with transfer from the bare classifier
    (surrogate `classifier`) first, then with PGD, BPDA (`identity`) and through all steps (`soft`).
    """
    return AntiAdversary(build_inner(classifier, inner), steps, step)
