"""D13 and D14's predictor: what the gradient of a defence is worth, against differences of its margin and between its draws."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.attacks.losses import finite, gradients_at_once, rows_at_once
from bench.judging.norms import per_example
from bench.judging.randomness import random_stream
from bench.judging.target import Target, is_correct, margin
from bench.soundness.audits.figures import ALIKE

Answer = Callable[[Tensor], Tensor]
SMOOTHED = 6  # eps over the standard deviation of the directions
MOST = 4  # times as many directions, where two estimates have less in common than `ALIKE`
LEAST = 1e-3  # what the cosine of two estimates counts for at least
SAME = 0.999  # the cosine from which on two gradients are one
TRIES = 4  # points beside an image, of which one where the defence is right is taken


def signal(
    model: Target, x: Tensor, y: Tensor, eps: float, directions: int, draws: int
) -> dict[str, float]:
    """The figures of images x (B,C,H,W) in [0,1] with labels y (B,), medians over the images unless said, at points within linf `eps` of them.

    `D13`: how well the gradient of the margin, averaged over `draws` draws where it is random, agrees with the gradient of the
    smoothed margin: 1 where it is that, but for a factor; 0 where it has nothing to do with it. `D13:NAME`: the same of the gradient of each
    declared surrogate. `cos(g1,g2)`: how well two estimates of the latter agree, each from `directions` pairs of differences, or up to four times as
    many. Of a random gradient also `E.5`, the draws whose mean gradient has a cosine of about 1/2 with another such mean (-1: no number of them
    has), and `U<=0`, the share of images where `draws` draws show no mean at all.

    A zeroth-order estimate g = t + noise of the true t has cos(g1,g2) = r^2 and cos(a,g1) = cos(a,t) r, hence the quotient (see `agreement`).
    """
    size = min(eps, 1.0) / SMOOTHED
    points = beside(model, x, y, eps, 2 * size)
    first, second = (rises(model, points, y, size, directions) for _ in range(2))
    done = directions
    while median(cosine(first, second).tolist()) < ALIKE and done < MOST * directions:
        first, second = (one + rises(model, points, y, size, done) for one in (first, second))
        done *= 2
    alike = cosine(first, second)
    single = slopes(model, points, y, draws if model.stochastic or varies(model, points, y) else 1)
    found = {"D13": agreement(single.mean(0), first, alike), "cos(g1,g2)": median(alike.tolist())}
    for name, answer in getattr(model, "surrogates", {}).items():
        several = slopes(answer, points, y, draws if varies(answer, points, y) else 1)
        found[f"D13:{name}"] = agreement(several.mean(0), first, alike)
    return found | (predicted(single) if len(single) > 1 else {})


@torch.no_grad()
def beside(model: Answer, x: Tensor, y: Tensor, eps: float, edge: float) -> Tensor:
    """A random point (B,C,H,W) of the linf ball around each image, one that the model gets right where it can be found, all `edge` inside of the box,
    so that nearly nothing of what is smoothed there lies outside, where an image is none."""

    def draw() -> Tensor:
        return (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(edge, 1 - edge)

    points = draw()
    for _ in range(TRIES - 1):
        wrong = ~is_correct(model(points), y)
        if not wrong.any():
            break
        points = torch.where(per_example(wrong, x), draw(), points)
    return points


@torch.no_grad()
def rises(model: Answer, points: Tensor, y: Tensor, size: float, directions: int) -> Tensor:
    """The sum (B,D) over Gaussian directions u of (m(p + size u) - m(p - size u)) u: on average a multiple of the smoothed margin's gradient at p.

    What a stochastic defence draws is the same on both sides of a pair, and fresh for each pair.
    """
    total = points.new_zeros(len(points), points[0].numel(), dtype=torch.float64)
    group = max(1, rows_at_once(points) // len(points))
    for done in range(0, directions, group):
        ways = torch.randn(
            len(points),
            min(group, directions - done),
            *points.shape[1:],
            dtype=points.dtype,
            device=points.device,
        )
        labels, seed = y.repeat_interleave(ways.shape[1]), int(torch.randint(2**62, ()))
        gaps = []
        for sign in (1, -1):
            with random_stream(points.device, seed):
                gaps.append(
                    margin(
                        model((points[:, None] + sign * size * ways).flatten(0, 1)), labels
                    ).double()
                )
        total += torch.einsum(
            "bk,bkd->bd", (gaps[0] - gaps[1]).view(len(points), -1), ways.flatten(2).double()
        )
    return total


def slopes(answer: Answer, points: Tensor, y: Tensor, draws: int) -> Tensor:
    """The gradient of the margin at each point, of `draws` single draws (draws,B,D); zero where there is none, or it is not finite."""
    images, labels = points.repeat(draws, 1, 1, 1), y.repeat(draws)
    parts = []
    for some, names in zip(
        images.split(gradients_at_once(points, 1)),
        labels.split(gradients_at_once(points, 1)),
        strict=True,
    ):
        leaf = some.clone().requires_grad_()
        with torch.enable_grad():
            value = margin(answer(leaf), names).sum()
            slope = (
                torch.autograd.grad(value, leaf, allow_unused=True)[0]
                if value.requires_grad
                else None
            )
        parts.append(torch.zeros_like(some) if slope is None else finite(slope))
    found: Tensor = torch.cat(parts).flatten(1).double().unflatten(0, (draws, len(points)))
    return found


def agreement(slope: Tensor, estimate: Tensor, alike: Tensor) -> float:
    """The median over points of the cosine of `slope` and `estimate` (B,D), corrected for the noise of the latter by `alike` (B,), its cosine with
    another one."""
    return float(median((cosine(slope, estimate) / alike.clamp_min(LEAST).sqrt()).tolist()))


def predicted(single: Tensor) -> dict[str, float]:
    """What single-draw gradients (draws,B,D) say of their mean: U estimates its squared length without bias, T the trace of their covariance."""
    count = len(single)
    squares, square = single.square().sum((0, 2)), single.sum(0).square().sum(1)
    mean = (square - squares) / (count * (count - 1))
    spread = squares / count - mean
    need = median(torch.where(mean > 0, spread / mean, torch.inf).tolist())
    return {
        "E.5": need if need < float("inf") else -1.0,
        "U<=0": float((mean <= 0).double().mean()),
    }


def varies(answer: Answer, points: Tensor, y: Tensor) -> bool:
    """Whether two gradients at the same two points differ."""
    one, other = (slopes(answer, points[:2], y[:2], 1)[0] for _ in range(2))
    return bool(((one != other).any(1) & (cosine(one, other) < SAME)).any())


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """(B,) of (B,D); 0 where one of the two is zero."""
    value: Tensor = F.cosine_similarity(one, other, dim=1, eps=torch.finfo(one.dtype).tiny)
    return value
