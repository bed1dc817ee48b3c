"""Test-time optimisation: move the image to where the classifier is surer of what it sees (Alfarra et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from baselines.transform import behind_it
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence

Answer = Callable[[Tensor], Tensor]
TINY = 1e-12  # keeps 0/0 out of images whose gradient is zero everywhere


class AntiAdversary(nn.Module):
    """`inner`, a classifier or a defence, on images moved by `steps` signed steps of length `step` (pixel units of [0,1]) towards its prediction.

    Images (B,C,H,W) in [0,1] to logits (B,K). A step follows the sign of the gradient of the log-odds of the class that `inner` predicts for
    the image as given: the same sign as that of its cross-entropy, which is the paper's, but alive where the probability rounds to 1. The moved
    image is clipped to [0,1]. Where `inner` hides its gradient and declares the surrogate `identity`, which has its logits, the steps follow that.

    The gradient of `forward` is the true one: signs are piecewise constant, so the movement adds nothing to it, and the clipping takes away the
    pixels that it holds. Surrogates: `identity` has the same logits, and sees neither movement nor clipping on the way back (BPDA); `soft`
    replaces the sign by a tanh, and is differentiated through all steps (double backward), and so sees where signs are about to change;
    `classifier` is the bare one. Where `inner` has surrogates, they are behind each of the first two: `identity+lse`.
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
        answers: dict[str, Answer] = getattr(inner, "surrogates", {})
        self.guide = guide_of(inner, answers)
        behind: dict[str, Answer] = {
            "": inner,
            **{f"+{name}": answer for name, answer in answers.items()},
        }
        ways = {"identity": self.identity, "soft": self.soft}
        self.surrogates: dict[str, Answer] = {
            way + name: partial(behind_it, ways[way], answer)
            for way in ways
            for name, answer in behind.items()
        }
        self.surrogates["classifier"] = self.base

    def purify(self, x: Tensor) -> Tensor:
        """The moved images."""
        change = torch.zeros_like(x)
        predicted: Tensor | None = None
        for _ in range(self.steps):
            with torch.enable_grad():
                point = (x.detach() + change).requires_grad_()
                logits = self.guide(point)
                predicted = logits.argmax(1) if predicted is None else predicted
                (slope,) = torch.autograd.grad(log_odds(logits, predicted).sum(), point)
            change = change + self.step * slope.sign()
        return (x + change).clamp(0, 1)

    def classify(self, x_hat: Tensor) -> Tensor:
        logits: Tensor = self.inner(x_hat)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.purify(x))

    def identity(self, x: Tensor) -> Tensor:
        """The moved images, whose gradient is that of `x`."""
        with torch.no_grad():
            change = self.purify(x) - x
        return x + change

    def soft(self, x: Tensor) -> Tensor:
        """The images moved by the tanh of the gradient, relative to its mean size in each image, with the gradient of that."""
        watched = x.requires_grad and torch.is_grad_enabled()
        predicted: Tensor | None = None
        with torch.enable_grad():
            moved = x.clone() if watched else x.detach().clone().requires_grad_()
            for _ in range(self.steps):
                logits = self.guide(moved)
                predicted = logits.argmax(1) if predicted is None else predicted
                (slope,) = torch.autograd.grad(
                    log_odds(logits, predicted).sum(), moved, create_graph=watched
                )
                size = slope.abs().mean((1, 2, 3), keepdim=True) + TINY
                moved = moved + self.step * (slope / size).tanh()
                moved = moved if watched else moved.detach().requires_grad_()
            moved = moved.clamp(0, 1)
        return moved if watched else moved.detach()


def guide_of(inner: nn.Module, answers: Mapping[str, Answer]) -> Answer:
    """What has the logits of `inner` and a gradient: among its surrogates the one with the most layers of BPDA, none of them approximate."""
    names = [name for name in answers if set(name.split("+")) <= {"exact", "identity"}]
    return answers[max(names, key=lambda name: name.count("+"))] if names else inner


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log p_y - log(1 - p_y) (B,) of logits (B,K), without rounding: its gradient has the sign of that of log p_y, and does not vanish."""
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -math.inf).logsumexp(1)


@defence("anti-adversary")
def anti_adversary(
    *, classifier: str = "@standard", inner: str = "", steps: int = 2, step: float = 0.15
) -> nn.Module:
    """Move the image by signed gradient steps that raise the classifier's confidence in its own prediction, then classify.

    Alfarra, Perez, Thabet, Bibi, Torr and Ghanem (2022), arXiv 2103.14347, who prove and measure it for attackers that query a classifier without
    knowing it. What it does not defend against: an image that the classifier itself gets wrong is made more surely wrong, so the classifier's
    adversarial examples are the defence's (between two classes of a linear classifier no label ever changes). Croce et al. (2022),
    arXiv 2202.13711, found that no test-time defence that they attacked improved significantly on the classifier without it; some weakened it.
    Attack it with transfer from the bare classifier (surrogate `classifier`) first, then with PGD, BPDA (`identity`) and through all steps (`soft`).
    """
    return AntiAdversary(build_inner(classifier, inner), steps, step)
