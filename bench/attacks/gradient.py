"""Gradient attacks for every norm: one loop for all norms, losses, momenta and draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.attacks.best import BestImages
from bench.attacks.losses import (
    ALL_LOSSES,
    LOSSES,
    Loss,
    SurrogateModels,
    find_loss,
    likeliest_wrong,
    mean_gradient,
    mean_logits,
    parse_scale,
    query_gradient,
    scale_logits,
)
from bench.attacks.precision import PRECISIONS, confirm_wrong, lower_precision
from bench.judging.norms import NORMS, per_example, to_ball
from bench.judging.target import Target, margin
from bench.questions.registry import attack
from bench.questions.runs import TARGETS, runs
from bench.questions.spec import ThreatModel

ALL_NORMS = {"linf", "l2", "l1", "l0"}
WRONG_DRAWS = 10  # in a row, after which an example of a stochastic defence has fallen
SHRINKING = 0.6  # the share of the steps over which the ball shrinks to its size


@attack(
    "fgsm",
    norms=ALL_NORMS,
    access="white-box",
    family="gradient",
    single_step=True,
    rescales=True,
    choices={"loss": LOSSES},
    calls=lambda knobs, stochastic: 3 * len(knobs["loss"].split("+")),
    added_later={"scale"},
    parsers={"scale": parse_scale},
)
def fgsm(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, *, loss: str = "ce", scale: str = "1"
) -> Tensor:
    """One step of length eps along the steepest direction of the norm, from the image itself.

    Returns one candidate for each loss (losses,B,C,H,W). In l1 and l0 it is the best perturbation
    of the linearised model. `scale` is that of pgd.

    Goodfellow et al. 2015, arXiv:1412.6572.
    """
    norm = NORMS[threat.norm]
    eps = float(threat.eps)
    candidates = []
    for name in loss.split("+"):
        grad, _, _ = mean_gradient(model, x, y, scale_logits(find_loss(name), scale), 1)
        candidates.append(norm.ascend(x, grad, x, eps, eps))
    return torch.stack(candidates)


def pgd_calls(knobs: Mapping[str, Any]) -> int:
    """The cost of `pgd_loop` per example: for each run, step and draw a forward and a backward.

    A backward counts as two. Half precision takes one more forward to confirm. The targeted loss
    takes a look at the image before.
    """
    each = 3 if knobs.get("precision", "float32") == "float32" else 4
    looks = str(knobs["loss"]).split("+").count("targeted")
    return int(knobs.get("eot", 1)) * (each * runs(knobs) * int(knobs["steps"]) + looks)


PGD_FACTS: dict[str, Any] = {
    "norms": ALL_NORMS,
    "access": "white-box",
    "family": "gradient",
    "iterated": True,
    "rescales": True,
    "traced": True,
    "choices": {"loss": ALL_LOSSES, "precision": PRECISIONS},
    "calls": lambda knobs, stochastic: pgd_calls(knobs),
    "added_later": {"precision", "scale", "targets"},
    "parsers": {"scale": parse_scale},
}


@attack("pgd", fixed={"eot": 1}, **PGD_FACTS)
@attack("pgd-eot", averages_draws=True, stochastic_only=True, **PGD_FACTS)
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
    eot: int = 20,
    precision: str = "float32",
    scale: str = "1",
    targets: int = TARGETS,
) -> Tensor:
    """Projected gradient ascent from random starts, with a step size that decays to zero.

    `loss` is one of ce, margin, dlr and targeted, or several joined by `+`, each run in turn.
    `targeted` is that of apgd, run once for each of `targets` classes. `step` is the first step's
    length relative to eps. `from_x` starts the first restart of each loss at the image itself.
    A step of `pgd` follows the loss of one draw. A step of `pgd-eot` follows the mean loss over
    `eot` draws, evaluated as one batch.

    `wide` is for l2 and l1, as in APGD for l1 (Croce & Hein 2021). The ball shrinks from `wide`
    times eps to eps over the first 60% of the steps. `precision` is that of the model under the
    attack, for GPUs. An image that falls in half precision only has not fallen.

    `scale` multiplies the logits before the loss, for the loss alone. It is a positive number or
    `gap`, which divides the logits by their largest less their third largest. The cross-entropy of
    large logits has no gradient in float32, and a small scale gives it one. On logits of ordinary
    size a small scale finds less, and `gap` does not.

    Returns the last, the highest-loss and the highest-margin iterate of each loss, or target, and
    restart (3*runs,B,C,H,W).

    Madry et al. 2018, arXiv:1706.06083; draws: Athalye et al. 2018, arXiv:1707.07397; scale:
    Carlini & Wagner 2016, arXiv:1607.04311.
    """
    options = PGDOptions(
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
    )
    return pgd_loop(lower_precision(model, precision), x, y, threat, options, early_stop=True)


@dataclass(frozen=True, kw_only=True)
class PGDOptions:
    """The knobs of `pgd` that its loop needs."""

    loss: str
    steps: int
    restarts: int
    step: float
    wide: float = 1.0
    momentum: float = 0.0
    from_x: bool = False
    eot: int = 1
    scale: str = "1"
    targets: int = TARGETS


def pgd_loop(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    options: PGDOptions,
    *,
    start: Tensor | None = None,
    early_stop: bool = False,
    surrogate_models: SurrogateModels = None,
) -> Tensor:
    """The candidates (3*runs,B,C,H,W) of projected gradient ascent.

    They are the last, the highest-loss and the highest-margin iterate of each loss, or target, and
    restart. The first restart begins at `start` (B,C,H,W), if that is given. `surrogate_models`
    lend their gradient where that of `model` is not finite.

    `early_stop` is right where `model` is the defence itself. An example then leaves the batch for
    good once it has fallen, and its last iterate is the fallen one.
    """
    if options.from_x:
        start = x
    survivors = Survivors(model, y, options.eot, early_stop)
    candidates = []
    for term in loss_terms(model, x, y, options, surrogate_models):
        for restart in range(options.restarts):
            x_adv = start_points(x, threat, options.wide, start if restart == 0 else None)
            candidates += ascend(term, x, x_adv, threat, options, survivors)
    return torch.stack(candidates)


def ascend(
    term: LossTerm,
    x: Tensor,
    x_adv: Tensor,
    threat: ThreatModel,
    options: PGDOptions,
    survivors: Survivors,
) -> list[Tensor]:
    """The last, the highest-loss and the highest-margin iterate of one run from `x_adv`."""
    norm = NORMS[threat.norm]
    eps = float(threat.eps)
    highest_loss = BestImages(to_ball(x_adv, x, threat.norm, eps))
    highest_margin = BestImages(highest_loss.images)
    momentum_buffer = torch.zeros_like(x)  # (B,C,H,W)
    for i in range(options.steps):
        rows = survivors.rows  # (R,)
        if not len(rows):
            break
        radius = eps * shrinking_factor(
            i, options.steps, initial_radius_factor(threat.norm, options.wide)
        )
        size = options.step * eps * (1 + math.cos(math.pi * i / options.steps)) / 2

        images = to_ball(x_adv[rows], x[rows], threat.norm, radius)  # (R,C,H,W)
        direction, losses, margins, wrong = term.query(rows, images)
        if options.momentum:
            direction = options.momentum * momentum_buffer[rows] + unit_gradient(direction)
            momentum_buffer[rows] = direction
        x_adv[rows] = norm.ascend(images, direction, x[rows], radius, size)
        if radius == eps:
            highest_loss.record(rows, images, losses)
            highest_margin.record(rows, images, margins)
            fallen = survivors.remove_fallen(wrong)  # (R,)
            x_adv[rows[fallen]] = images[fallen]
    return [to_ball(x_adv, x, threat.norm, eps), highest_loss.images, highest_margin.images]


@dataclass(frozen=True)
class LossTerm:
    """A loss of PGD, with the labels (B,), or pairs of label and target (B,2), that it takes."""

    model: Target
    y: Tensor
    loss: Loss
    labels: Tensor
    eot: int
    surrogate_models: SurrogateModels

    def query(self, rows: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the model answers to the images (R,C,H,W) of the examples `rows` (R,).

        Gives gradient (R,C,H,W), loss (R,) and margin (R,), each a mean over the draws, and
        whether all draws are misclassified (R,).
        """
        y = self.y[rows]
        grad, value, logits = query_gradient(
            self.model,
            images,
            self.labels[rows],
            self.loss,
            self.eot,
            surrogate_models=self.surrogate_models,
        )
        margins = margin(logits, y.unsqueeze(1).expand(-1, logits.shape[1]))  # (R,eot)
        wrong = confirm_wrong(self.model, images, y, (margins > 0).all(1))
        return grad, value, margins.mean(1), wrong


def loss_terms(
    model: Target, x: Tensor, y: Tensor, options: PGDOptions, surrogate_models: SurrogateModels
) -> list[LossTerm]:
    """The losses that PGD maximises in turn: one for each name, for `targeted` one a target."""
    terms = []
    for name in options.loss.split("+"):
        loss = scale_logits(find_loss(name), options.scale)
        labels = [y]
        if name == "targeted":
            targets = likeliest_wrong(mean_logits(model, x, options.eot), y, options.targets)
            labels = [torch.stack([y, target], 1) for target in targets]
        terms += [LossTerm(model, y, loss, each, options.eot, surrogate_models) for each in labels]
    return terms


class Survivors:
    """The examples that have not fallen: all of them, for good, if there is no early stop.

    On a deterministic defence an example falls with its first misclassified iterate. On a
    stochastic one it falls after ten misclassified draws in a row, of two iterates at least.
    """

    def __init__(self, model: Target, y: Tensor, eot: int, early_stop: bool) -> None:
        self.rows = torch.arange(len(y), device=y.device)  # (R,)
        self.wrong_steps = torch.zeros_like(y)  # (B,), misclassified iterates in a row
        self.falls_after = max(2, math.ceil(WRONG_DRAWS / eot)) if model.stochastic else 1
        self.early_stop = early_stop

    def remove_fallen(self, wrong: Tensor) -> Tensor:
        """Which of the `rows` have fallen (R,), and leave, now that their iterates are `wrong`."""
        wrong_steps = torch.where(wrong, self.wrong_steps[self.rows] + 1, 0)  # (R,)
        self.wrong_steps[self.rows] = wrong_steps
        fallen = (wrong_steps >= self.falls_after) & self.early_stop
        self.rows = self.rows[~fallen]
        return fallen


def start_points(x: Tensor, threat: ThreatModel, wide: float, start: Tensor | None) -> Tensor:
    """A copy of `start`, or random points (B,C,H,W) of the ball with which the run begins."""
    if start is not None:
        return start.clone()
    radius = initial_radius_factor(threat.norm, wide) * float(threat.eps)
    return to_ball(x + NORMS[threat.norm].random_start(x, radius), x, threat.norm, radius)


def initial_radius_factor(norm: str, wide: float) -> float:
    """The radius with which a run begins, relative to eps."""
    return max(wide, 1.0) if norm in ("l2", "l1") else 1.0


def shrinking_factor(i: int, steps: int, first: float) -> float:
    """The radius at the i-th step, counted from 0, relative to eps."""
    return max(1.0, first + (1 - first) * i / (SHRINKING * steps))


def unit_gradient(grad: Tensor) -> Tensor:
    """The gradient (B,C,H,W) scaled to a mean size of one per example.

    So momentum weighs every step alike (Dong et al. 2018, arXiv:1710.06081).
    """
    top = grad.abs().flatten(1).amax(1)
    scaled = grad / per_example(top, grad).clamp_min(torch.finfo(grad.dtype).tiny)
    return scaled / per_example(scaled.abs().flatten(1).mean(1), grad).clamp_min(1e-12)
