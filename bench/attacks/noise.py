"""Random points of the ball: the floor that every attack must beat."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bench.attacks.best import BestImages
from bench.attacks.losses import margins
from bench.judging.norms import NORMS, largest, to_ball
from bench.judging.target import Target
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

ALL_NORMS = {"linf", "l2", "l1", "l0"}
SCALES = (0.5, 1.0, 2.0)  # of `gaussian-noise`, by turns


@attack(
    "noise",
    norms=ALL_NORMS,
    access="score",
    family="noise",
    calls=lambda knobs, stochastic: knobs["tries"],
)
def noise(model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, tries: int = 500) -> Tensor:
    """The best of `tries` random perturbations, by turns uniform in the ball and at a corner.

    A corner is the step of length eps along a random gradient. It takes `tries` queries per
    example. This baseline is asked for by Carlini et al. 2019, arXiv:1902.06705.
    """
    norm = NORMS[threat.norm]
    eps = float(threat.eps)

    def draw_point(i: int) -> Tensor:
        if i % 2:
            return norm.ascend(x, torch.randn_like(x), x, eps, eps)
        return to_ball(x + norm.random_start(x, eps), x, threat.norm, eps)

    return keep_best(model, x, y, tries, draw_point)


@attack(
    "gaussian-noise",
    norms=ALL_NORMS,
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
    """The best of `tries` images with Gaussian noise, put into the ball.

    The noise has half, the whole and twice `scale` by turns. In linf `scale` is the deviation
    relative to eps. In l2 and l1 it is the root mean square length and the mean length of the
    noise, relative to eps. In l0 it is the deviation, in pixel units, of what is added to
    floor(eps) pixels drawn at random. It takes `tries` queries per example.

    Hendrycks and Dietterich 2019, arXiv:1903.12261, corrupt images with this noise. Here it is held
    to the budget of an attack.
    """
    eps = float(threat.eps)

    def draw_point(i: int) -> Tensor:
        added = scale * SCALES[i % len(SCALES)] * draw_gaussian(x, threat.norm, eps)
        return to_ball(x + added, x, threat.norm, eps)

    return keep_best(model, x, y, tries, draw_point)


def draw_gaussian(x: Tensor, norm: str, eps: float) -> Tensor:
    """Gaussian noise (B,C,H,W) as large as the ball: what `gaussian-noise` scales."""
    noise = torch.randn_like(x)
    if norm == "l0":
        pixels = largest(torch.rand_like(x[:, 0]), math.floor(eps))
        return noise * pixels.unsqueeze(1)
    values = x[0].numel()
    deviation = {
        "linf": eps,
        "l2": eps / math.sqrt(values),
        "l1": eps / (values * math.sqrt(2 / math.pi)),
    }
    return noise * deviation[norm]


def keep_best(
    model: Target, x: Tensor, y: Tensor, tries: int, draw_point: Callable[[int], Tensor]
) -> Tensor:
    """Of the images `draw_point(0)`, `draw_point(1)`, ... those with the highest margins.

    Each takes one query per example.
    """
    best = BestImages(x)
    everyone = torch.arange(len(x), device=x.device)
    for i in range(tries):
        points = draw_point(i)
        best.record(everyone, points, margins(model, points.unsqueeze(1), y).squeeze(1))
    return best.images
