"""Gradient attacks for every norm: one loop, with the norm, the loss, the momentum and the number of draws as parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.attacks.losses import (
    LOSSES,
    TARGETED,
    Loss,
    StandIns,
    answers,
    gradient,
    likely,
    loss_named,
    mean_logits,
    scale_of,
    scaled,
)
from bench.attacks.precision import PRECISIONS, confirmed, lowered
from bench.judging.norms import NORMS, per_example, to_ball
from bench.judging.target import Target, margin
from bench.questions.registry import attack
from bench.questions.runs import TARGETS, runs
from bench.questions.spec import ThreatModel

ALL = {"linf", "l2", "l1", "l0"}
SURE = 10  # draws in a row that are misclassified before a stochastic defence's example has fallen
SHRINKING = 0.6  # the share of the steps over which the ball shrinks to its size


@attack(
    "fgsm",
    norms=ALL,
    access="white-box",
    family="gradient",
    single_step=True,
    rescales=True,
    choices={"loss": LOSSES},
    calls=lambda knobs, stochastic: 3 * len(knobs["loss"].split("+")),
    added_later={"scale"},
    parsers={"scale": scale_of},
)
def fgsm(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, loss: str = "ce", scale: str = "1"
) -> Tensor:
    """One step of length eps along the steepest direction of the norm, from the image itself.

    One candidate per loss, (losses,B,C,H,W). In l1 and l0 this is the best perturbation of the linearised model. `scale` is that of pgd.
    Goodfellow et al. 2015, arXiv:1412.6572.
    """
    eps = float(threat.eps)
    slopes = [
        gradient(model, x, y, scaled(loss_named(name), scale), 1)[0] for name in loss.split("+")
    ]
    return torch.stack([NORMS[threat.norm].ascend(x, slope, x, eps, eps) for slope in slopes])


@attack(
    "pgd",
    norms=ALL,
    access="white-box",
    family="gradient",
    iterated=True,
    rescales=True,
    traced=True,
    choices={"loss": TARGETED, "precision": PRECISIONS},
    calls=lambda knobs, stochastic: passes(knobs),
    added_later={"precision", "scale", "targets"},
    parsers={"scale": scale_of},
)
def pgd(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    loss: str = "ce",
    steps: int = 40,
    restarts: int = 1,
    step: float = 2.0,
    wide: float = 3.0,
    momentum: float = 0.0,
    from_x: bool = False,
    precision: str = "float32",
    scale: str = "1",
    targets: int = TARGETS,
) -> Tensor:
    """Projected gradient ascent from random starts, one draw per step, with a step size that decays to zero.

    `loss` is one of ce, margin, dlr and targeted, or several, each run in turn: `ce+margin`; targeted, once for each of `targets` classes, is that
    of apgd. `step` is the first step's length relative to eps. In l2 and l1 the ball shrinks from `wide` times eps to eps over the first 60% of the
    steps, as in APGD for l1 (Croce & Hein 2021). `from_x` starts the first restart of each at the image itself. `precision` is the model's under
    the attack, for GPUs; what falls in half precision only has not fallen. Returns the last, the highest-loss and the highest-margin iterate of each
    loss, or target, and restart (3*runs,B,C,H,W).

    `scale` is what the logits are multiplied by before the loss, and for the loss alone: a positive number, or `gap`, which divides them by the
    largest less the third largest (of two, less the smaller). The cross-entropy of large logits has no gradient in float32, and a small scale gives
    it one; on logits of ordinary size it finds less, which `gap` does not. Madry et al. 2018, arXiv:1706.06083; Carlini & Wagner 2016,
    arXiv:1607.04311.
    """
    return climb(
        *(lowered(model, precision), x, y, threat),
        loss=loss,
        steps=steps,
        restarts=restarts,
        step=step,
        wide=wide,
        momentum=momentum,
        from_x=from_x,
        scale=scale,
        targets=targets,
        spare=True,
    )


@attack(
    "pgd-eot",
    norms=ALL,
    access="white-box",
    family="gradient",
    iterated=True,
    averages_draws=True,
    rescales=True,
    traced=True,
    stochastic_only=True,
    choices={"loss": TARGETED, "precision": PRECISIONS},
    calls=lambda knobs, stochastic: passes(knobs),
    added_later={"precision", "scale", "targets"},
    parsers={"scale": scale_of},
)
def pgd_eot(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    loss: str = "ce",
    steps: int = 40,
    restarts: int = 1,
    step: float = 2.0,
    wide: float = 3.0,
    momentum: float = 0.0,
    from_x: bool = False,
    eot: int = 20,
    precision: str = "float32",
    scale: str = "1",
    targets: int = TARGETS,
) -> Tensor:
    """PGD on the mean loss over `eot` draws per step, evaluated as one batch.

    The other knobs and the candidates are those of pgd. Athalye et al. 2018, arXiv:1707.07397.
    """
    return climb(
        *(lowered(model, precision), x, y, threat),
        loss=loss,
        steps=steps,
        restarts=restarts,
        step=step,
        wide=wide,
        momentum=momentum,
        from_x=from_x,
        eot=eot,
        scale=scale,
        targets=targets,
        spare=True,
    )


def climb(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    loss: str,
    steps: int,
    restarts: int,
    step: float,
    wide: float,
    momentum: float,
    from_x: bool = False,
    start: Tensor | None = None,
    eot: int = 1,
    scale: str = "1",
    targets: int = TARGETS,
    spare: bool = False,
    stand_ins: StandIns = None,
) -> Tensor:
    """The candidates of projected gradient ascent, three for each loss, or target, and restart: last, highest loss, highest margin.

    The first restart begins at `start` where that is given. With `spare`, which is right where `model` is the defence itself, an example leaves the
    batch for good once it has fallen, with that iterate for its last: at the first misclassified one or, where the defence is stochastic, when
    ten draws in a row, of two iterates at least, were misclassified. `scale` is that of the logits in the loss. `stand_ins` lend their gradient
    where that of `model` is not finite.
    """
    norm, eps = NORMS[threat.norm], float(threat.eps)
    first = max(wide, 1.0) if threat.norm in ("l2", "l1") else 1.0
    candidates = []
    left, fallen = torch.arange(len(x), device=x.device), torch.zeros_like(y)
    enough = max(2, math.ceil(SURE / eot)) if model.stochastic else 1
    measures: list[tuple[Loss, Tensor]] = []
    for name in loss.split("+"):
        goals = (
            likely(mean_logits(model, x, eot), y, targets).unbind() if name == "targeted" else ()
        )
        measures += [
            (scaled(loss_named(name), scale), labels)
            for labels in [torch.stack([y, goal], 1) for goal in goals] or [y]
        ]
    for (measure, labels), restart in itertools.product(measures, range(restarts)):
        given = x if from_x else start
        x_adv = (
            given.clone()
            if given is not None and restart == 0
            else to_ball(x + norm.random_start(x, first * eps), x, threat.norm, first * eps)
        )
        steepest, strongest = (to_ball(x_adv, x, threat.norm, eps) for _ in range(2))
        best_loss, best_gap = (torch.full((len(x),), -torch.inf, device=x.device) for _ in range(2))
        heading = torch.zeros_like(x)
        for i in range(steps):
            if not len(left):
                break
            radius = eps * max(1.0, first + (1 - first) * i / (SHRINKING * steps))
            x_left = x[left]
            here = to_ball(x_adv[left], x_left, threat.norm, radius)
            grad, value, gap, wrong = ask(
                model, here, y[left], labels[left], measure, eot, stand_ins
            )
            heading[left] = momentum * heading[left] + unit(grad) if momentum else grad
            x_adv[left] = norm.ascend(
                here,
                heading[left],
                x_left,
                radius,
                step * eps * (1 + math.cos(math.pi * i / steps)) / 2,
            )
            if radius == eps:
                for best, new, kept in ((best_loss, value, steepest), (best_gap, gap, strongest)):
                    rises = new > best[left]
                    best[left] = torch.where(rises, new, best[left])
                    kept[left] = torch.where(per_example(rises, x), here, kept[left])
                fallen[left] = torch.where(wrong, fallen[left] + 1, 0)
                gone = (fallen[left] >= enough) & spare
                x_adv[left[gone]], left = here[gone], left[~gone]
        candidates += [to_ball(x_adv, x, threat.norm, eps), steepest, strongest]
    return torch.stack(candidates)


def ask(
    model: Target,
    x_adv: Tensor,
    y: Tensor,
    labels: Tensor,
    loss: Loss,
    eot: int,
    stand_ins: StandIns = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient (B,C,H,W), loss (B,) and margin (B,), each the mean over `eot` draws, and whether all of these are misclassified (B,).

    `labels` are what the loss takes: `y`, or pairs of it and a target.
    """
    grad, value, logits = answers(model, x_adv, labels, loss, eot, stand_ins)
    gaps = margin(logits, y.unsqueeze(1).expand(-1, logits.shape[1]))
    return grad, value, gaps.mean(1), confirmed(model, x_adv, y, (gaps > 0).all(1))


def passes(knobs: Mapping[str, Any]) -> int:
    """The cost of `climb` per example: a forward and a backward, which counts as two, for each run, step and draw.

    In half precision there is one more forward to confirm, and before the targeted loss a look at the image.
    """
    each = 3 if knobs.get("precision", "float32") == "float32" else 4
    looks = str(knobs["loss"]).split("+").count("targeted")
    return int(knobs.get("eot", 1)) * (each * runs(knobs) * int(knobs["steps"]) + looks)


def unit(grad: Tensor) -> Tensor:
    """Scaled to a mean size of one per example, so that momentum weighs every step alike (Dong et al. 2018)."""
    top = grad.abs().flatten(1).amax(1)
    scaled = grad / per_example(top, grad).clamp_min(torch.finfo(grad.dtype).tiny)
    return scaled / per_example(scaled.abs().flatten(1).mean(1), grad).clamp_min(1e-12)
