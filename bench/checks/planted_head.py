"""Plant an adversarial example in a defence: the binarization test of Zimmermann et al. 2022."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.checks.planted_examples import (
    CLOSE,
    CORNER_DRAWS,
    INNER_DRAWS,
    JUDGED_DRAWS,
    LADDER,
    RANDOM_POINTS,
    SURE,
)
from bench.judging.norms import to_ball
from bench.judging.target import is_correct, margin, predict_draws

WITHIN = 0.95  # the inner points' largest distance, relative to eps
ROWS = 100  # images in one batch
RIDGE = 1e-6  # beside a sum over the points: no more than what keeps the equations solvable
SHORTEST = 1e-6  # of a Newton step, relative to the whole step


class Unfit(RuntimeError):
    """No example can be planted in the defence; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class PlantOptions:
    """`points` inner points and `boundary` corners of the linf ball of radius `eps`.

    `classes` and `stochastic` are the defence's.
    """

    eps: float
    classes: int
    stochastic: bool
    points: int
    boundary: int


@dataclass(frozen=True, slots=True)
class PlantedHead:
    """What takes the place of the layer `head`: `weight` (2,F) and `bias` (2,).

    `found_by_chance`: whether one of 200 random points of the ball is of class 1.
    """

    head: nn.Linear
    weight: Tensor
    bias: Tensor
    found_by_chance: bool = False


@contextlib.contextmanager
def planted_head(planted: PlantedHead) -> Iterator[None]:
    """Within the block the head answers with two logits, and the defence goes on from these."""

    def answer(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        return F.linear(inputs[0], planted.weight, planted.bias)

    hook = planted.head.register_forward_hook(answer)
    try:
        yield
    finally:
        hook.remove()


def plant(defence: nn.Module, x: Tensor, options: PlantOptions) -> PlantedHead | None:
    """A head of two classes: 0 around the image `x` (1,C,H,W), 1 at the corners of its ball.

    The head is a linear separator of the features of the inner points, `x` among them, from those
    of the corners. It is moved towards the corners until it nearly touches them, and scaled to the
    range of the defence's own logits. Draws of a stochastic defence overlap: there the head goes as
    far as the whole defence still names the corners surely. None where the points cannot be
    separated, or where the whole defence does not put `x` and the corners on their sides. Unfit
    where the defence has no head, or cannot go on from two logits.
    """
    stochastic = options.stochastic
    head = find_head(defence, x, options.classes)
    near = random_points(x, options.points - 1, WITHIN * options.eps)
    inner = torch.cat([x, near])
    outer = random_corners(x, options.boundary, options.eps)
    inner_rows, inner_logits = features(defence, head, repeat(inner, INNER_DRAWS, stochastic))
    outer_rows, outer_logits = features(defence, head, repeat(outer, CORNER_DRAWS, stochastic))
    weight, bias, separated = separate(inner_rows, outer_rows)
    if not (separated or stochastic):
        return None
    logits = torch.cat([inner_logits, outer_logits])
    logit_range = float(logits.max() - logits.min())
    inner_scores = inner_rows.double() @ weight + bias
    outer_scores = outer_rows.double() @ weight + bias
    low, high = 0.0, float(outer_scores.min())
    if stochastic:
        low, high = float(inner_scores.mean()), float(outer_scores.mean())
    scores = torch.cat([inner_scores, outer_scores])
    for closeness in LADDER if stochastic else (CLOSE,):
        middle = low + closeness * (high - low)
        size = logit_range / float((scores - middle).abs().max())
        planted = two_class_head(head, size / 2 * weight, size / 2 * (bias - middle))
        with planted_head(planted):
            refuse_other_logits(defence, x)
            if answers_as_planted(defence, x, outer, stochastic):
                by_chance = is_found_by_chance(defence, x, options.eps, stochastic)
                return replace(planted, found_by_chance=by_chance)
    return None


def repeat(images: Tensor, draws: int, stochastic: bool) -> Tensor:
    """Each image as often as the draws that a stochastic defence is asked for."""
    return images.repeat_interleave(draws if stochastic else 1, 0)


def two_class_head(head: nn.Linear, weight: Tensor, bias: float) -> PlantedHead:
    """A head whose second logit is `weight` (F,) times the features plus `bias`, the first less."""
    half = weight.to(head.weight)
    return PlantedHead(head, torch.stack([-half, half]), head.weight.new_tensor([-bias, bias]))


def find_head(defence: nn.Module, x: Tensor, classes: int) -> nn.Linear:
    """The last full layer that runs when the defence predicts images `x`.

    Unfit where there is none, or where its outputs are not `classes` logits.
    """
    layers: list[nn.Linear] = []

    def note(layer: nn.Linear, *_: Any) -> None:
        layers.append(layer)

    with contextlib.ExitStack() as stack, torch.no_grad():
        for module in defence.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(note).remove)
        defence(x)
    if not layers:
        raise Unfit(
            "planted: no full layer (nn.Linear) runs in this defence, so there is no head to "
            "replace"
        )
    head = layers[-1]
    if head.out_features != classes:
        raise Unfit(
            f"planted: the last full layer of this defence gives {head.out_features} values, not "
            f"{classes} logits"
        )
    return head


@torch.no_grad()
def features(defence: nn.Module, head: nn.Linear, images: Tensor) -> tuple[Tensor, Tensor]:
    """What reaches the head (R,F) while the defence predicts the images, and its output (R,K).

    Of every look of the defence at the images, in any order.
    """
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


def separate(inner: Tensor, outer: Tensor, steps: int = 60) -> tuple[Tensor, float, bool]:
    """Weights w (F,) float64 and a bias b for which w x + b separates two sets of rows.

    It is above 0 on the rows of `outer` (Q,F) and below 0 on those of `inner` (P,F). The third
    value says whether that holds on all rows. Logistic regression by Newton's method on
    standardised features, the two sets with equal weight, and as good as no ridge. The solution
    lies in the span of the rows, so there are no more unknowns than rows.
    """
    rows = torch.cat([inner, outer]).double()  # (P+Q,F)
    sign = torch.cat([-rows.new_ones(len(inner)), rows.new_ones(len(outer))])
    parts = [rows.new_full((len(part),), len(rows) / 2 / len(part)) for part in (inner, outer)]
    row_weights = torch.cat(parts)  # (P+Q,)
    centre, spread = rows.mean(0), rows.std(0)  # (F,)
    alive = spread > 1e-6 * spread.max()
    z = torch.where(alive, (rows - centre) / spread.where(alive, 1), 0)
    if z.shape[1] > len(z):
        basis = torch.linalg.qr(z.T)[0]  # (F,P+Q)
    else:
        basis = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    z = torch.cat([z @ basis, z.new_ones(len(z), 1)], 1) * sign[:, None]
    w = fit_logistic(z, row_weights, steps)
    weight = torch.where(alive, basis @ w[:-1] / spread.where(alive, 1), 0)
    return weight, float(w[-1] - weight @ centre), bool((z @ w > 0).all())


def fit_logistic(z: Tensor, row_weights: Tensor, steps: int) -> Tensor:
    """Weights w (D,) that make z w large for rows z (R,D), which have their signs in them."""
    w = z.new_zeros(z.shape[1])

    def loss(w: Tensor) -> Tensor:
        return row_weights @ F.softplus(-(z @ w)) + RIDGE / 2 * w @ w

    for _ in range(steps):
        miss = (-(z @ w)).sigmoid()
        hessian = (z * (row_weights * miss * (1 - miss))[:, None]).T @ z
        hessian.diagonal().add_(RIDGE)
        step = torch.linalg.solve(hessian, z.T @ (row_weights * miss) - RIDGE * w)
        length = 1.0
        here = loss(w)
        while length > SHORTEST and not loss(w + length * step) < here:
            length /= 2
        if length <= SHORTEST:
            break
        w = w + length * step
    return w


def refuse_other_logits(defence: nn.Module, x: Tensor) -> None:
    """Unfit where the defence cannot go on from the two logits that its head now has."""
    try:
        answer = predict_draws(defence, x, 1)  # (1,1,K)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first_line = str(error).partition("\n")[0]
        raise Unfit(f"planted: the defence cannot go on from two logits: {first_line}") from error
    if answer.shape[1:] != (1, 2):
        raise Unfit(
            f"planted: with two logits in its head the defence answers {tuple(answer.shape[2:])}, "
            "not two"
        )


def answers_as_planted(defence: nn.Module, x: Tensor, outer: Tensor, stochastic: bool) -> bool:
    """Whether the defence surely gives the image class 0, and the corners class 1."""
    if not has_label(defence, x, 0, stochastic, SURE).all():
        return False
    return bool(has_label(defence, outer, 1, stochastic, SURE).all())


@torch.no_grad()
def has_label(
    defence: nn.Module, images: Tensor, label: int, stochastic: bool, share: float = 0.5
) -> Tensor:
    """Whether each image (B,C,H,W) is given this label (B,).

    Of a stochastic defence in more than `share` of its draws.
    """
    draws = JUDGED_DRAWS if stochastic else 1
    labels = torch.full((len(images), draws), label, device=images.device)
    return is_correct(predict_draws(defence, images, draws), labels).sum(1) > share * draws


@torch.no_grad()
def is_found_by_chance(defence: nn.Module, x: Tensor, eps: float, stochastic: bool) -> bool:
    """Whether the most promising of 200 random points is of class 1, by one draw of each."""
    points = random_points(x, RANDOM_POINTS, eps)
    zero = torch.zeros(ROWS, dtype=torch.long, device=x.device)
    margins = torch.cat(
        [
            margin(predict_draws(defence, part, 1)[:, 0], zero[: len(part)])
            for part in points.split(ROWS)
        ]
    )
    most_promising = points[margins.argmax()][None]
    return bool(has_label(defence, most_promising, 1, stochastic))


def random_points(x: Tensor, count: int, radius: float) -> Tensor:
    """`count` random points (count,C,H,W) of the linf ball around the image (1,C,H,W).

    Half of them are corners: with these a random search finds most.
    """
    corners = random_corners(x, count // 2, radius)
    return torch.cat([corners, uniform_points(x, count - count // 2, radius)])


def uniform_points(x: Tensor, count: int, radius: float) -> Tensor:
    """`count` uniform points (count,C,H,W) of the linf ball around the image, put into the box."""
    offset = radius * (2 * torch.rand(count, *x.shape[1:], device=x.device) - 1)
    return (x + offset).clamp(0, 1)


def random_corners(x: Tensor, count: int, eps: float) -> Tensor:
    """`count` random corners (count,C,H,W) of the linf ball around the image, put into the box."""
    signs = 2.0 * torch.randint(0, 2, (count, *x.shape[1:]), device=x.device) - 1
    return to_ball(x + eps * signs, x, "linf", eps)
