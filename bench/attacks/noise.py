"""Random points of the ball: the floor that every attack must beat."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bench.attacks.losses import margins
from bench.judging.norms import NORMS, largest, per_example, to_ball
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

ALL = {"linf", "l2", "l1", "l0"}
SCALES = (0.5, 1.0, 2.0)  # of `gaussian-noise`, by turns


@attack(
    "noise",
    norms=ALL,
    access="score",
    family="noise",
    calls=lambda knobs, stochastic: knobs["tries"],
)
def noise(model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, tries: int = 500) -> Tensor:
    """The best of `tries` random perturbations, by turns uniform in the ball and at one of its corners; `tries` queries per example.

    A corner is the step of length eps along a random gradient. Carlini et al. 2019, arXiv:1902.06705, ask for this baseline.
    """
    norm, eps = NORMS[threat.norm], float(threat.eps)

    def point(i: int) -> Tensor:
        return (
            norm.ascend(x, torch.randn_like(x), x, eps, eps)
            if i % 2
            else to_ball(x + norm.random_start(x, eps), x, threat.norm, eps)
        )

    return best_of(model, x, y, tries, point)


@attack(
    "gaussian-noise",
    norms=ALL,
    access="score",
    family="noise",
    calls=lambda knobs, stochastic: knobs["tries"],
)
def gaussian_noise(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    tries: int = 500,
    scale: float = 1.0,
) -> Tensor:
    """The best of `tries` images with Gaussian noise, put into the ball, of half, the whole and twice `scale` by turns; `tries` queries per example.

    In linf `scale` is the deviation relative to eps; in l2 and l1 the root mean square length and the mean length of the noise, relative to
    eps; in l0 the deviation, in pixel units, of what is added to floor(eps) pixels drawn at random. The noise with which Hendrycks and
    Dietterich 2019, arXiv:1903.12261, corrupt images, here held to the budget of an attack.
    """
    eps = float(threat.eps)

    def point(i: int) -> Tensor:
        added = scale * SCALES[i % len(SCALES)] * gaussian(x, threat.norm, eps)
        return to_ball(x + added, x, threat.norm, eps)

    return best_of(model, x, y, tries, point)


def gaussian(x: Tensor, norm: str, eps: float) -> Tensor:
    """Gaussian noise (B,C,H,W) as large as the ball: what `gaussian-noise` multiplies by its scale."""
    values = torch.randn_like(x)
    if norm == "l0":
        return values * largest(torch.rand_like(x[:, 0]), math.floor(eps)).unsqueeze(1)
    count = x[0].numel()
    return (
        values
        * {"linf": eps, "l2": eps / math.sqrt(count), "l1": eps / (count * math.sqrt(2 / math.pi))}[
            norm
        ]
    )


def best_of(
    model: Target, x: Tensor, y: Tensor, tries: int, point: Callable[[int], Tensor]
) -> Tensor:
    """Of the images `point(0)`, `point(1)`, ... that with the highest margin for each example; one query each."""
    best, best_gap = x, torch.full((len(x),), -torch.inf, device=x.device)
    for i in range(tries):
        x_try = point(i)
        gap = margins(model, x_try.unsqueeze(1), y).squeeze(1)
        best = torch.where(per_example(gap > best_gap, x), x_try, best)
        best_gap = torch.maximum(gap, best_gap)
    return best
