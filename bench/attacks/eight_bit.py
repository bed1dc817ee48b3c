"""What is left of an attack once its images are stored in 8 bits."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from bench.judging.norms import to_ball
from bench.judging.target import Target
from bench.questions.registry import attack as register
from bench.questions.registry import find_question, inner_attack, inner_calls
from bench.questions.spec import Spec, ThreatModel

STEPS = 255  # from 0 to 1
ROUNDING = (
    2e-5  # of a step: what float32 makes of two images that are a whole number of steps apart
)


@register(
    "eight-bit",
    norms={"linf", "l2", "l1", "l0"},
    access="white-box",
    family="gradient",
    rounds=True,
    calls=inner_calls,
)
def eight_bit(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, attack: str = "pgd"
) -> Tensor:
    """V8: the gradient attack `attack` on images of 8 bits, as a file can hold them, rounded within the ball.

    The attack sees the answers to the nearest images of 8 bits, with the gradient as if they had not been rounded: else it would stop at the first
    image that is barely wrong, and rounding that would undo it. In linf its ball is the largest in which these stay within eps.

    Every pixel of a candidate is a whole number of 255ths, up to the rounding of float32, wherever the ball holds one, and the clean pixel
    elsewhere. In linf each takes the nearest one of the ball. In l2 and l1 the nearest one, and if that leaves the ball the nearest one towards the
    clean image for as many values as it takes. In l0 unchanged pixels stay as they are. Candidates are as many as those of `attack`, (m,B,C,H,W).
    For stochastic defences name pgd-eot. Carlini & Wagner 2017, arXiv:1608.04644.
    """
    inside = inner_attack(Spec.of("eight-bit", {"attack": attack}))
    assert inside
    reach = within(x, threat.eps) if threat.norm == "linf" else threat.eps
    if not reach:
        return x[None]
    given: Tensor | dict[str, Tensor] = find_question(inside.name).make(
        Stored(model), x, y, replace(threat, eps=reach), **inside.params
    )
    made = [
        one.detach().view(-1, *x.shape)
        for one in (given.values() if isinstance(given, dict) else [given])
    ]
    return torch.stack([rounded(one, x, threat.norm, float(threat.eps)) for one in torch.cat(made)])


class Stored(Target):
    """What the `exact` target says of the images as they are stored; calls and bad gradients are counted where they always are."""

    def __init__(self, exact: Target) -> None:
        super().__init__(
            exact,
            classes=exact.classes,
            access=exact.access,
            stochastic=exact.stochastic,
            device=exact.device,
        )
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.exact(stored(x))
        return logits

    def draws(self, x: Tensor, k: int) -> Tensor:
        return self.exact.draws(stored(x), k)


def stored(x: Tensor) -> Tensor:
    """The nearest images of 8 bits, with the gradient of `x`."""
    return x + ((x * STEPS).round() / STEPS - x).detach()


def within(x: Tensor, eps: Fraction) -> Fraction:
    """The largest linf radius around `x` in which the nearest image of 8 bits is not further than `eps`, or as good as that."""
    if torch.allclose(x * STEPS, (x * STEPS).round(), rtol=0, atol=STEPS * ROUNDING):
        return Fraction(math.floor(eps * STEPS), STEPS)
    return max(eps - Fraction(1, 2 * STEPS), Fraction(0))


def rounded(x_adv: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """The image (B,C,H,W) in 8 bits, within the `norm` ball of radius `eps` around `x` and in [0,1]; clean pixels where the ball holds none."""
    x_adv = to_ball(x_adv, x, norm, eps)
    clean, steps = x.double() * STEPS, x_adv.double() * STEPS
    nearest = steps.round()
    if norm == "linf":
        low, high = (
            (clean - eps * STEPS - ROUNDING).ceil().clamp_min(0),
            (clean + eps * STEPS + ROUNDING).floor().clamp_max(STEPS),
        )
        found = torch.where(low > high, clean, nearest.clamp(low, high))
    elif norm == "l0":
        found = torch.where((x_adv != x).any(1, keepdim=True), nearest, clean)
    else:
        found = shortened(
            nearest, towards(steps, clean), clean, steps, eps * STEPS, 2 if norm == "l2" else 1
        )
    return to_ball((found / STEPS).to(x.dtype), x, norm, eps)


def towards(steps: Tensor, clean: Tensor) -> Tensor:
    """The whole number that is nearest to `steps` of those from there to `clean`; `clean` where there is none."""
    whole = torch.where(steps < clean, (steps - ROUNDING).ceil(), (steps + ROUNDING).floor())
    beyond = torch.where(steps < clean, whole > clean, whole < clean)
    return torch.where(beyond, clean, whole)


def shortened(
    nearest: Tensor, inner: Tensor, clean: Tensor, steps: Tensor, radius: float, power: int
) -> Tensor:
    """`nearest`, but `inner` for as many values of each image as it takes to come within `radius` of `clean`, those first that lose least.

    `radius` is that of the l1 or l2 ball, by `power`; all values of `inner` are at least as close to `clean` as those of `steps`, which lie within.
    """
    saved = ((nearest - clean).abs() ** power - (inner - clean).abs() ** power).flatten(1)
    loss = ((steps - inner).abs() - (steps - nearest).abs()).flatten(1)
    order = loss.masked_fill(saved <= 0, torch.inf).argsort(1)
    before = saved.gather(1, order).cumsum(1) - saved.gather(1, order)
    excess = ((nearest - clean).abs() ** power).flatten(1).sum(1, keepdim=True) - radius**power
    drawn = (
        torch.zeros_like(saved, dtype=torch.bool)
        .scatter(1, order, before < excess)
        .view_as(nearest)
    )
    return torch.where(drawn, inner, nearest)
