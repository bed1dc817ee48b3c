"""What the gradient of a defence is worth, against differences of its margin and between draws."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.attacks.losses import images_per_gradient, rows_per_query, zero_nonfinite
from bench.checks.gradient_quality import ALIKE, MOST, TRIES
from bench.judging.norms import per_example
from bench.judging.randomness import judging_stream
from bench.judging.target import Target, is_correct, margin

Answer = Callable[[Tensor], Tensor]
SMOOTHED = 6  # eps over the standard deviation of the directions
LEAST = 1e-3  # what the cosine of two estimates counts for at least
SAME = 0.999  # the cosine from which on two gradients are one


def measure_gradient(
    model: Target, x: Tensor, y: Tensor, eps: float, directions: int, draws: int
) -> dict[str, float]:
    """Figures of images x (B,C,H,W) in [0,1] with labels y (B,), medians over the images.

    They are taken at random points within linf `eps` of the images.

    - `D13`: how well the gradient of the margin, averaged over `draws` draws where it is random,
      agrees with the gradient of the smoothed margin. 1 where it is that, but for a factor; 0 where
      it has nothing to do with it. `D13:NAME`: the same of each declared surrogate.
    - `cos(g1,g2)`: how well two estimates of the smoothed gradient agree, each from `directions`
      pairs of differences, or up to four times as many.
    - Of a random gradient also `E.5`: the draws whose mean gradient has a cosine of about 1/2 with
      another such mean; -1 where no number of draws has. And `U<=0`: the share of images where
      `draws` draws show no mean at all.

    A zeroth-order estimate is g = t + noise, t the true gradient. It has cos(g1,g2) = r^2 and
    cos(a,g1) = cos(a,t) r, hence the quotient (see `agreement`).
    """
    size = min(eps, 1.0) / SMOOTHED
    points = points_near(model, x, y, eps, 2 * size)
    first, second = estimate_twice(model, points, y, size, directions)
    alike = cosine(first, second)
    is_random = model.stochastic or varies(model, points, y)
    gradients = margin_gradients(model, points, y, draws if is_random else 1)
    figures = {
        "D13": agreement(gradients.mean(0), first, alike),
        "cos(g1,g2)": median(alike.tolist()),
    }
    for name, surrogate in getattr(model, "surrogates", {}).items():
        count = draws if varies(surrogate, points, y) else 1
        surrogate_gradient = margin_gradients(surrogate, points, y, count).mean(0)
        figures[f"D13:{name}"] = agreement(surrogate_gradient, first, alike)
    if len(gradients) > 1:
        figures |= predict_draws_needed(gradients)
    return figures


@torch.no_grad()
def points_near(model: Answer, x: Tensor, y: Tensor, eps: float, edge: float) -> Tensor:
    """A random point (B,C,H,W) of the linf ball around each image, all `edge` inside of the box.

    One that the model gets right, where such a point is found.
    """

    def draw() -> Tensor:
        return (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(edge, 1 - edge)

    points = draw()
    for _ in range(TRIES - 1):
        wrong = ~is_correct(model(points), y)
        if not wrong.any():
            break
        points = torch.where(per_example(wrong, x), draw(), points)
    return points


def estimate_twice(
    model: Answer, points: Tensor, y: Tensor, size: float, directions: int
) -> tuple[Tensor, Tensor]:
    """Two estimates (B,D) of the smoothed gradient, each from `directions` directions.

    From up to four times as many where the two have little in common.
    """
    first = sum_differences(model, points, y, size, directions)
    second = sum_differences(model, points, y, size, directions)
    done = directions
    while median(cosine(first, second).tolist()) < ALIKE and done < MOST * directions:
        first = first + sum_differences(model, points, y, size, done)
        second = second + sum_differences(model, points, y, size, done)
        done *= 2
    return first, second


@torch.no_grad()
def sum_differences(
    model: Answer, points: Tensor, y: Tensor, size: float, directions: int
) -> Tensor:
    """The sum (B,D) over Gaussian directions u of (m(p + size u) - m(p - size u)) u.

    On average it is a multiple of the smoothed margin's gradient at p. What a stochastic defence
    draws is the same on both sides of a pair, and fresh for each pair.
    """
    total = points.new_zeros(len(points), points[0].numel(), dtype=torch.float64)
    group = max(1, rows_per_query(points) // len(points))
    for done in range(0, directions, group):
        count = min(group, directions - done)
        shape = (len(points), count, *points.shape[1:])
        u = torch.randn(shape, dtype=points.dtype, device=points.device)  # (B,G,C,H,W)
        labels = y.repeat_interleave(count)
        seed = int(torch.randint(2**62, ()))
        ahead = seeded_margin(model, points[:, None] + size * u, labels, seed)
        behind = seeded_margin(model, points[:, None] - size * u, labels, seed)
        differences = (ahead - behind).view(len(points), -1)  # (B,G)
        total += torch.einsum("bk,bkd->bd", differences, u.flatten(2).double())
    return total


def seeded_margin(model: Answer, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """The margins (B*G,) of images (B,G,C,H,W), under the draws of the seed."""
    with judging_stream(images.device, seed):
        return margin(model(images.flatten(0, 1)), labels).double()


def margin_gradients(answer: Answer, points: Tensor, y: Tensor, draws: int) -> Tensor:
    """The gradient of the margin at each point, of `draws` single draws (draws,B,D).

    Zero where there is none, or where it is not finite.
    """
    images = points.repeat(draws, 1, 1, 1)
    labels = y.repeat(draws)
    size = images_per_gradient(points, 1)
    parts = []
    for part, part_labels in zip(images.split(size), labels.split(size), strict=True):
        leaf = part.clone().requires_grad_()
        gradient = None
        with torch.enable_grad():
            value = margin(answer(leaf), part_labels).sum()
            if value.requires_grad:
                gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0]
        parts.append(torch.zeros_like(part) if gradient is None else zero_nonfinite(gradient))
    return torch.cat(parts).flatten(1).double().reshape(draws, len(points), -1)


def agreement(gradient: Tensor, estimate: Tensor, alike: Tensor) -> float:
    """The median over points of the cosine of `gradient` and `estimate` (B,D).

    It is corrected for the noise of the estimate by `alike` (B,), its cosine with another one.
    """
    corrected = cosine(gradient, estimate) / alike.clamp_min(LEAST).sqrt()
    return float(median(corrected.tolist()))


def predict_draws_needed(gradients: Tensor) -> dict[str, float]:
    """What single-draw gradients (draws,B,D) say of their mean.

    U estimates its squared length without bias, T the trace of their covariance.
    """
    count = len(gradients)
    sum_of_squares = gradients.square().sum((0, 2))
    square_of_sum = gradients.sum(0).square().sum(1)
    u = (square_of_sum - sum_of_squares) / (count * (count - 1))  # (B,)
    t = sum_of_squares / count - u
    need = median(torch.where(u > 0, t / u, torch.inf).tolist())
    return {
        "E.5": need if need < float("inf") else -1.0,
        "U<=0": float((u <= 0).double().mean()),
    }


def varies(answer: Answer, points: Tensor, y: Tensor) -> bool:
    """Whether two gradients at the same two points differ."""
    first = margin_gradients(answer, points[:2], y[:2], 1)[0]
    second = margin_gradients(answer, points[:2], y[:2], 1)[0]
    differ = (first != second).any(1) & (cosine(first, second) < SAME)
    return bool(differ.any())


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine (B,) of rows (B,D); 0 where one of the two is zero."""
    value: Tensor = F.cosine_similarity(a, b, dim=1, eps=torch.finfo(a.dtype).tiny)
    return value
