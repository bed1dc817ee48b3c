"""D17, the binarization test: plant an adversarial example, so that an attack that is any good must find one (Zimmermann et al. 2022)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.judging.norms import to_ball
from bench.judging.target import is_correct, margin, predict_draws

WITHIN = 0.95  # the inner points' largest distance, relative to eps
CLOSE = 0.999  # how far the boundary is moved from the middle towards the planted example
# Where the defence is stochastic: how far from the mean of the inner points the boundary may go; the draws of an inner point and of a planted one;
# and the draws to judge by, of which a planted example must win more than `SURE`, and what is found the majority.
LADDER = (CLOSE, 0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
REPEATS, BESIDE = 4, 16
JUDGED, SURE = 11, 0.8
TRIES = 200  # random points
ROWS = 100  # images in one batch
RIDGE = 1e-6  # beside a sum over the points: no more than what keeps the equations solvable


class Unfit(RuntimeError):
    """The defence is not one that an example can be planted in; the message is one line that says why."""


def head_of(defence: nn.Module, x: Tensor, classes: int) -> nn.Linear:
    """The last full layer that runs when the defence predicts images `x`; Unfit where there is none, or its outputs are not `classes` logits."""
    ran: list[nn.Linear] = []
    with contextlib.ExitStack() as stack, torch.no_grad():
        for module in defence.modules():
            if isinstance(module, nn.Linear):
                stack.callback(
                    module.register_forward_hook(
                        lambda layer, inputs, output: ran.append(layer)
                    ).remove
                )
        defence(x)
    if not ran:
        raise Unfit(
            "planted: no full layer (nn.Linear) runs in this defence, so there is no head to replace"
        )
    if ran[-1].out_features != classes:
        raise Unfit(
            f"planted: the last full layer of this defence gives {ran[-1].out_features} values, not {classes} logits"
        )
    return ran[-1]


@torch.no_grad()
def features(defence: nn.Module, head: nn.Linear, images: Tensor) -> tuple[Tensor, Tensor]:
    """What reaches the head (R,F) while the defence predicts the images, and what it makes of it (R,K): of every look at them, in any order."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(layer: nn.Module, given: Any, answer: Tensor) -> None:
        inputs.append(given[0].flatten(0, -2))
        outputs.append(answer.flatten(0, -2))

    hook = head.register_forward_hook(keep)
    try:
        for part in images.split(ROWS):
            defence(part)
    finally:
        hook.remove()
    return torch.cat(inputs), torch.cat(outputs)


def separator(inner: Tensor, outer: Tensor, steps: int = 60) -> tuple[Tensor, float, bool]:
    """Weights (F,) float64 and a bias for which w x + b is above 0 on the rows of `outer` (Q,F) and below on those of `inner` (P,F), and whether it
    is so on all of them.

    Logistic regression by Newton's method on standardised features, the two sets with equal weight, and as good as no ridge. The solution lies in the
    span of the rows, so no more unknowns than rows are solved for.
    """
    rows = torch.cat([inner, outer]).double()
    sign = torch.cat([-rows.new_ones(len(inner)), rows.new_ones(len(outer))])
    weighs = torch.cat(
        [rows.new_full((len(part),), len(rows) / 2 / len(part)) for part in (inner, outer)]
    )
    centre, spread = rows.mean(0), rows.std(0)
    alive = spread > 1e-6 * spread.max()
    z = torch.where(alive, (rows - centre) / spread.where(alive, 1), 0)
    basis = (
        torch.linalg.qr(z.T)[0]
        if z.shape[1] > len(z)
        else torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    )
    z = torch.cat([z @ basis, z.new_ones(len(z), 1)], 1) * sign[:, None]
    w = z.new_zeros(z.shape[1])

    def loss(w: Tensor) -> Tensor:
        return weighs @ F.softplus(-(z @ w)) + RIDGE / 2 * w @ w

    for _ in range(steps):
        miss = (-(z @ w)).sigmoid()
        bend = (z * (weighs * miss * (1 - miss))[:, None]).T @ z
        bend.diagonal().add_(RIDGE)
        step = torch.linalg.solve(bend, z.T @ (weighs * miss) - RIDGE * w)
        length, here = 1.0, loss(w)
        while length > 1e-6 and not loss(w + length * step) < here:
            length /= 2
        if length <= 1e-6:
            break
        w = w + length * step
    weight = torch.where(alive, basis @ w[:-1] / spread.where(alive, 1), 0)
    return weight, float(w[-1] - weight @ centre), bool((z @ w > 0).all())


@contextlib.contextmanager
def replaced(head: nn.Linear, weight: Tensor, bias: Tensor) -> Iterator[None]:
    """Within the block `head` answers with two logits, by `weight` (2,F) and `bias` (2,); what follows it in the defence goes on from these."""
    hook = head.register_forward_hook(
        lambda layer, inputs, output: F.linear(inputs[0], weight, bias)
    )
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def planting(
    defence: nn.Module,
    x: Tensor,
    eps: float,
    classes: int,
    stochastic: bool,
    points: int,
    boundary: int,
) -> Iterator[bool | None]:
    """Within the block the defence has two classes: 0 around the image `x` (1,C,H,W), and 1 at `boundary` corners of its linf ball at least.

    The head is a linear separator of the features of `points` points within the ball, `x` among them, from those of the corners, moved towards the
    corners until it nearly touches them, and scaled to the range of the defence's own logits. Where the defence is stochastic, draws overlap: there
    it goes as far towards them as the whole defence still names them surely. Gives whether one of 200 random points of the ball, half of them
    corners, is of class 1; None, and the defence as it is, where the points could not be separated, or the whole defence does not put `x` and the
    corners on their sides. Unfit where the defence has no head, or cannot go on from two logits.
    """
    head = head_of(defence, x, classes)
    repeats, beside = (REPEATS, BESIDE) if stochastic else (1, 1)
    near, far = torch.cat([x, around(x, points - 1, WITHIN * eps)]), corners(x, boundary, eps)
    near_rows, near_logits = features(defence, head, near.repeat_interleave(repeats, 0))
    far_rows, far_logits = features(defence, head, far.repeat_interleave(beside, 0))
    weight, bias, parted = separator(near_rows, far_rows)
    if not (parted or stochastic):
        yield None
        return
    logits = torch.cat([near_logits, far_logits])
    inner, outer = near_rows.double() @ weight + bias, far_rows.double() @ weight + bias
    low, high = (
        (float(inner.mean()), float(outer.mean())) if stochastic else (0.0, float(outer.min()))
    )
    for close in LADDER if stochastic else (CLOSE,):
        middle = low + close * (high - low)
        size = float(logits.max() - logits.min()) / float(
            (torch.cat([inner, outer]) - middle).abs().max()
        )
        half = (size / 2 * weight).to(head.weight), size / 2 * (bias - middle)
        with replaced(
            head, torch.stack([-half[0], half[0]]), head.weight.new_tensor([-half[1], half[1]])
        ):
            passable(defence, x)
            if (
                named(defence, x, 0, stochastic, SURE).all()
                and named(defence, far, 1, stochastic, SURE).all()
            ):
                yield by_chance(defence, x, eps, stochastic)
                return
    yield None


def passable(defence: nn.Module, x: Tensor) -> None:
    """Unfit where the defence cannot go on from the two logits that its head now has."""
    try:
        answer = predict_draws(defence, x, 1)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise Unfit(
            f"planted: the defence cannot go on from two logits: {str(error).partition(chr(10))[0]}"
        ) from error
    if answer.shape[1:] != (1, 2):
        raise Unfit(
            f"planted: with two logits in its head the defence answers {tuple(answer.shape[2:])}, not two"
        )


def around(x: Tensor, count: int, reach: float) -> Tensor:
    """`count` random points (count,C,H,W) of the linf ball of radius `reach`, half of them corners: with these a random search finds most."""
    return torch.cat([corners(x, count // 2, reach), beside(x, count - count // 2, reach)])


def beside(x: Tensor, count: int, reach: float) -> Tensor:
    """`count` points (count,C,H,W) uniform in the linf ball of radius `reach` around the image (1,C,H,W), in the box."""
    return (x + reach * (2 * torch.rand(count, *x.shape[1:], device=x.device) - 1)).clamp(0, 1)


def corners(x: Tensor, count: int, eps: float) -> Tensor:
    """`count` random corners (count,C,H,W) of the linf ball around the image (1,C,H,W), put into the box."""
    signs = 2.0 * torch.randint(0, 2, (count, *x.shape[1:]), device=x.device) - 1
    return to_ball(x + eps * signs, x, "linf", eps)


@torch.no_grad()
def named(
    defence: nn.Module, images: Tensor, label: int, stochastic: bool, share: float = 0.5
) -> Tensor:
    """Whether each image (B,C,H,W) is given this label (B,): where the defence is stochastic, in more than this share of its draws."""
    count = JUDGED if stochastic else 1
    labels = torch.full((len(images), count), label, device=images.device)
    return is_correct(predict_draws(defence, images, count), labels).sum(1) > share * count


@torch.no_grad()
def by_chance(defence: nn.Module, x: Tensor, eps: float, stochastic: bool) -> bool:
    """Whether the most promising of 200 random points is of class 1; one draw of each says how promising it is."""
    points = around(x, TRIES, eps)
    zero = torch.zeros(ROWS, dtype=torch.long, device=x.device)
    gaps = torch.cat(
        [
            margin(predict_draws(defence, part, 1)[:, 0], zero[: len(part)])
            for part in points.split(ROWS)
        ]
    )
    return bool(named(defence, points[gaps.argmax()][None], 1, stochastic))
