"""What is left of an attack once its images are stored in 8 bits."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from bench.attacks.wrapped import WrappedTarget
from bench.judging.norms import to_ball
from bench.judging.target import Target
from bench.questions.registry import attack as register
from bench.questions.registry import find_question, inner_attack, inner_calls
from bench.questions.spec import Spec, ThreatModel

STEPS = 255  # from 0 to 1
# Of a step: what float32 makes of two images that are a whole number of steps apart.
ROUNDING = 2e-5


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
    """V8: the gradient attack `attack` on images of 8 bits, as a file can hold them.

    The attack sees the answers to the nearest images of 8 bits, with the gradient as if they had
    not been rounded. Otherwise it would stop at the first image that is barely wrong, and rounding
    would undo that. In linf its ball is the largest in which the rounded images stay within eps.
    For stochastic defences name pgd-eot.

    Every pixel of a candidate is a whole number of 255ths, up to the rounding of float32, wherever
    the ball holds one. Elsewhere it is the clean pixel. In linf each pixel takes the nearest number
    of the ball. In l2 and l1 it takes the nearest one. If that leaves the ball, as many values as
    it takes go to the nearest number towards the clean image. In l0 unchanged pixels stay as they
    are. Returns as many candidates as `attack` (m,B,C,H,W).

    Carlini & Wagner 2017, arXiv:1608.04644.
    """
    inner = inner_attack(Spec.of("eight-bit", {"attack": attack}))
    assert inner
    radius = largest_safe_radius(x, threat.eps) if threat.norm == "linf" else threat.eps
    if not radius:
        return x[None]
    run = find_question(inner.name).make
    proposals = run(EightBitTarget(model), x, y, replace(threat, eps=radius), **inner.params)
    tensors = proposals.values() if isinstance(proposals, dict) else [proposals]
    images = torch.cat([tensor.detach().view(-1, *x.shape) for tensor in tensors])  # (m,B,C,H,W)
    eps = float(threat.eps)
    return torch.stack([round_in_ball(x_adv, x, threat.norm, eps) for x_adv in images])


class EightBitTarget(WrappedTarget):
    """What the `exact` target answers to the images as they are stored."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.exact(round_straight_through(x))
        return logits

    def draws(self, x: Tensor, k: int) -> Tensor:
        return self.exact.draws(round_straight_through(x), k)


def round_straight_through(x: Tensor) -> Tensor:
    """The nearest images of 8 bits, with the gradient of `x`."""
    return x + ((x * STEPS).round() / STEPS - x).detach()


def largest_safe_radius(x: Tensor, eps: Fraction) -> Fraction:
    """The largest linf radius around `x` in which the nearest images of 8 bits are within `eps`.

    It is right up to rounding.
    """
    if torch.allclose(x * STEPS, (x * STEPS).round(), rtol=0, atol=STEPS * ROUNDING):
        return Fraction(math.floor(eps * STEPS), STEPS)
    return max(eps - Fraction(1, 2 * STEPS), Fraction(0))


def round_in_ball(x_adv: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """The image (B,C,H,W) in 8 bits, within the ball of radius `eps` around `x` and in [0,1].

    Where the ball holds no such value, it is the clean pixel.
    """
    x_adv = to_ball(x_adv, x, norm, eps)
    clean = x.double() * STEPS
    steps = x_adv.double() * STEPS
    nearest = steps.round()
    if norm == "linf":
        low = (clean - eps * STEPS - ROUNDING).ceil().clamp_min(0)
        high = (clean + eps * STEPS + ROUNDING).floor().clamp_max(STEPS)
        rounded = torch.where(low > high, clean, nearest.clamp(low, high))
    elif norm == "l0":
        rounded = torch.where((x_adv != x).any(1, keepdim=True), nearest, clean)
    else:
        rounded = shorten(nearest, steps, clean, eps * STEPS, power=2 if norm == "l2" else 1)
    return to_ball((rounded / STEPS).to(x.dtype), x, norm, eps)


def round_towards(steps: Tensor, clean: Tensor) -> Tensor:
    """The whole number nearest to `steps` of those between there and `clean`.

    It is `clean` where there is none.
    """
    whole = torch.where(steps < clean, (steps - ROUNDING).ceil(), (steps + ROUNDING).floor())
    beyond = torch.where(steps < clean, whole > clean, whole < clean)
    return torch.where(beyond, clean, whole)


def shorten(nearest: Tensor, steps: Tensor, clean: Tensor, radius: float, *, power: int) -> Tensor:
    """`nearest`, with as many values rounded towards `clean` as it takes to come within `radius`.

    The values that lose least come first. `radius` is that of the l1 or l2 ball, by `power`. Values
    rounded towards `clean` are at least as close to it as `steps`, which lie within.
    """
    inner = round_towards(steps, clean)
    saved = ((nearest - clean).abs() ** power - (inner - clean).abs() ** power).flatten(1)  # (B,D)
    loss = ((steps - inner).abs() - (steps - nearest).abs()).flatten(1)
    order = loss.masked_fill(saved <= 0, torch.inf).argsort(1)
    saved_before = saved.gather(1, order).cumsum(1) - saved.gather(1, order)
    excess = ((nearest - clean).abs() ** power).flatten(1).sum(1, keepdim=True) - radius**power
    chosen = torch.zeros_like(saved, dtype=torch.bool).scatter(1, order, saved_before < excess)
    return torch.where(chosen.view_as(nearest), inner, nearest)
