"""Auto-PGD: the step size follows from how the ascent fares.

Croce & Hein 2020, arXiv:2003.01690; in l1 Croce & Hein 2021, arXiv:2103.01208.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.attacks.best import BestImages, update_where
from bench.attacks.losses import (
    ALL_LOSSES,
    Loss,
    find_loss,
    images_per_query,
    likeliest_wrong,
    mean_logits,
    mean_margin,
    query_gradient,
)
from bench.attacks.precision import PRECISIONS, confirm_wrong, lower_precision
from bench.attacks.stepsizes import Halving, Sparsity, project_l1_in_box
from bench.judging.norms import NORMS, to_ball
from bench.judging.target import Target, is_correct
from bench.questions.registry import attack
from bench.questions.runs import TARGETS, runs
from bench.questions.spec import ThreatModel

# Wrong draws in a row after which an example has fallen. An example that is right in 3% of its
# draws gets there in 5 cases of 100.
WRONG_DRAWS = 100


def apgd_calls(knobs: Mapping[str, Any], stochastic: bool) -> int:
    """The most that APGD queries per example: a look at the image, then its runs.

    A run queries at each step and where it starts, for each of three radii where the ball shrinks.
    A query is a forward and a backward of each draw; a backward counts as two. Half precision takes
    one more forward each time to confirm.
    """
    each = 3 if knobs.get("precision", "float32") == "float32" else 4
    return int(knobs.get("eot", 1)) * (1 + each * runs(knobs) * (int(knobs["steps"]) + 3))


APGD_FACTS: dict[str, Any] = {
    "norms": {"linf", "l2", "l1"},
    "access": "white-box",
    "family": "gradient",
    "iterated": True,
    "traced": True,
    "parallel_runs": True,
    "choices": {"loss": ALL_LOSSES, "precision": PRECISIONS},
    "calls": apgd_calls,
    "added_later": {"precision", "wide"},
}


@attack("apgd", fixed={"eot": 1}, **APGD_FACTS)
@attack("apgd-eot", averages_draws=True, stochastic_only=True, **APGD_FACTS)
def apgd(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    loss: str = "ce",
    steps: int = 100,
    restarts: int = 1,
    targets: int = TARGETS,
    rho: float = 0.75,
    from_x: bool = False,
    eot: int = 20,
    precision: str = "float32",
    wide: float = 0.0,
) -> Tensor:
    """Auto-PGD from random starts; `loss=ce+targeted` are the two losses of AutoAttack's standard.

    `loss` is one of ce, margin, dlr and targeted, or several joined by `+`, each run in turn.
    `targeted` is the targeted DLR loss, run once for each of the `targets` most likely wrong
    classes. With fewer than four classes it is the margin to that class. `from_x` starts the first
    restart at the image itself. `precision` is that of pgd.

    `rho` is for linf and l2: the share of the steps between two checkpoints that must raise the
    loss, or the step is halved. `wide` makes the ball shrink: from `wide` times eps to halfway to
    eps and to eps, after 30% of the steps each. At 0 it does as the papers do: 3 in l1, no
    shrinking elsewhere. In l2, on networks that were trained for linf, 3 finds far more.

    A step of `apgd` follows the loss of one draw. A step of `apgd-eot` follows the mean loss over
    `eot` draws, evaluated as one batch.

    An example leaves for good, across losses, targets and restarts, once it has fallen. On a
    deterministic defence it falls with its first misclassified iterate. On a stochastic one a run
    must be wrong in every draw of several steps in a row: two steps and 100 draws at least.

    Returns three candidates for each loss, over all of its runs (3*losses,B,C,H,W). They are the
    last iterate of the run with the highest margin, the iterate with the highest loss, and the one
    with the highest margin. Where the example had left before, they are the image itself.

    Croce & Hein 2020, arXiv:2003.01690; in l1 Croce & Hein 2021, arXiv:2103.01208; draws:
    Athalye et al. 2018, arXiv:1707.07397.
    """
    stages = plan_stages(threat.norm, float(threat.eps), steps, wide)
    options = APGDOptions(targets, restarts, rho, from_x, eot, stages)
    return APGD(model, x, y, threat, options).run(loss.split("+"), precision)


class Stage(NamedTuple):
    """A part of a run: its radius and its number of steps."""

    radius: float
    steps: int


def plan_stages(norm: str, eps: float, steps: int, wide: float = 0.0) -> list[Stage]:
    """The stages of a run: `wide` times eps, halfway from there to eps, and eps.

    They take 30%, 30% and 40% of the steps. At 0 `wide` is 3 in l1, as in its paper, and 1
    elsewhere, which is one stage.
    """
    factor = wide or (3 if norm == "l1" else 1)
    part = min(math.ceil(0.3 * steps), (steps - 1) // 2) if factor > 1 else 0
    if not part:
        return [Stage(eps, steps)]
    shrinking = [Stage(factor * eps, part), Stage((factor + 1) / 2 * eps, part)]
    return [*shrinking, Stage(eps, steps - 2 * part)]


@dataclass(frozen=True)
class APGDOptions:
    """The knobs of `apgd` that its runs need."""

    targets: int
    restarts: int
    rho: float
    from_x: bool
    eot: int
    stages: list[Stage]


@dataclass(frozen=True)
class Run:
    """An ascent to come: the classes (B,) that it aims at, and whether it starts at the image."""

    targets: Tensor
    at_image: bool


class APGD:
    """The search of `apgd`. As many runs go side by side as fill a query.

    Each run has a start of its own for every example, whichever examples are left.
    """

    def __init__(
        self, model: Target, x: Tensor, y: Tensor, threat: ThreatModel, options: APGDOptions
    ) -> None:
        self.model = model
        self.x = x  # (B,C,H,W)
        self.y = y  # (B,)
        self.norm = threat.norm
        self.eps = float(threat.eps)
        self.options = options
        self.alive = torch.ones_like(y, dtype=torch.bool)  # (B,), which have not fallen
        self.falls_after = max(2, -(-WRONG_DRAWS // options.eot)) if model.stochastic else 1

    def run(self, losses: list[str], precision: str) -> Tensor:
        """The candidates (3*losses,B,C,H,W) of the losses, in turn."""
        targets = self.y.unsqueeze(0)  # (T,B)
        if "targeted" in losses or not self.model.stochastic:
            logits = mean_logits(self.model, self.x, self.options.eot)
            targets = likeliest_wrong(logits, self.y, self.options.targets)
            if not self.model.stochastic:
                self.alive = is_correct(logits, self.y)
        self.model = lower_precision(self.model, precision)
        candidates = []
        for name in losses:
            aims = targets if name == "targeted" else targets[:1]
            candidates.append(self.maximise(find_loss(name), aims))
        return torch.cat(candidates)

    def maximise(self, loss: Loss, targets: Tensor) -> Tensor:
        """The candidates (3,B,C,H,W) of all runs of one loss, for the `targets` (T,B)."""
        candidates = self.x.repeat(3, 1, 1, 1, 1)
        values = self.x.new_full((3, len(self.x)), -torch.inf)
        waiting = [
            Run(target, self.options.from_x and restart == 0)
            for target, restart in itertools.product(targets, range(self.options.restarts))
        ]
        while waiting and self.alive.any():
            rows = self.alive.nonzero().squeeze(1)  # (A,)
            width = max(1, images_per_query(self.x, self.options.eot) // len(rows))
            images, new = self.run_together(loss, waiting[:width], rows)  # (3,A,C,H,W), (3,A)
            waiting = waiting[width:]
            better = new >= values[:, rows]  # (3,A)
            values[:, rows] = torch.where(better, new, values[:, rows])
            mask = better[:, :, None, None, None]
            candidates[:, rows] = torch.where(mask, images, candidates[:, rows])
        return candidates

    def run_together(self, loss: Loss, runs: list[Run], rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best candidates (3,A,C,H,W) of `runs` for the examples `rows` (A,).

        Gives their values (3,A) too: the margin, the loss and the margin.
        """
        count = len(rows)
        starts = torch.cat([self.start_points(run.at_image)[rows] for run in runs])  # (R,C,H,W)
        targets = torch.cat([run.targets[rows] for run in runs])  # (R,)
        ascent = Ascent(self.x, self.y, starts, targets, rows.repeat(len(runs)))
        self.ascend(loss, ascent)
        images = torch.stack([ascent.x_adv, ascent.best.images, ascent.strongest.images])
        values = torch.stack([ascent.strongest.values, ascent.best.values, ascent.strongest.values])
        values, run = values.unflatten(1, (len(runs), count)).max(1)  # (3,A)
        kind = torch.arange(3, device=rows.device).unsqueeze(1)
        return images[kind, run * count + torch.arange(count, device=rows.device)], values

    def start_points(self, at_image: bool) -> Tensor:
        """Where a run starts (B,C,H,W): the images themselves, or points of the first ball.

        In l1 it is the point nearest to a Gaussian around the image, which is sparse.
        """
        radius = self.options.stages[0].radius
        if at_image:
            return self.x
        if self.norm == "l1":
            return project_l1_in_box(self.x + torch.randn_like(self.x), self.x, radius)
        return self.x + NORMS[self.norm].random_start(self.x, radius)

    def ascend(self, loss: Loss, ascent: Ascent) -> None:
        """Take all steps of the runs. A run stops when its example has fallen."""
        for number, (radius, steps) in enumerate(self.options.stages):
            ascent.start_stage(self.norm, radius)
            step_sizes: Halving | Sparsity
            if self.norm == "l1":
                step_sizes = Sparsity(ascent.x, ascent.x_adv, radius, steps, fresh=number == 0)
            else:
                step_sizes = Halving(ascent.x, self.norm, radius, steps, self.options.rho)
            for i in range(steps + 1):
                if i > 0:
                    ascent.move(i, step_sizes)
                grad, losses, margins, wrong = self.query(loss, ascent)
                ascent.record(i, grad, losses)
                if radius == self.eps:
                    ascent.record_margin(margins)
                    self.remove_fallen(ascent, wrong)
                if not len(ascent.rows):
                    break
                if i < steps:
                    ascent.go_back(i, step_sizes)

    def query(self, loss: Loss, ascent: Ascent) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradient, loss and margin of the current iterates, each the mean over `eot` draws.

        Gives also whether all draws are wrong. The images are queried in parts of fixed size. The
        margin is positive wherever all draws are wrong, so that a tie that counts as wrong is
        kept as such. On a deterministic defence it is positive nowhere else.
        """
        rows = ascent.rows
        x_adv = ascent.x_adv[rows]  # (N,C,H,W)
        y = ascent.y[rows]  # (N,)
        labels = y
        if loss is ALL_LOSSES["targeted"]:
            labels = torch.stack([y, ascent.targets[rows]], 1)  # (N,2)
        size = images_per_query(x_adv, self.options.eot)
        parts = zip(x_adv.split(size), y.split(size), labels.split(size), strict=True)
        answers = [self.query_part(loss, *part) for part in parts]
        grad, losses, margins, wrong = map(torch.cat, zip(*answers, strict=True))
        return grad, losses, margins, wrong

    def query_part(
        self, loss: Loss, x_adv: Tensor, y: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        grad, value, logits = query_gradient(self.model, x_adv, labels, loss, self.options.eot)
        all_wrong = ~is_correct(logits, y.unsqueeze(1).expand(-1, self.options.eot)).any(1)
        wrong = confirm_wrong(self.model, x_adv, y, all_wrong)
        margins = mean_margin(logits, y).to(x_adv)
        otherwise = margins if self.model.stochastic else margins.clamp_max(0)
        positive = margins.clamp_min(torch.finfo(margins.dtype).tiny)
        return grad, value.to(x_adv), torch.where(wrong, positive, otherwise), wrong

    def remove_fallen(self, ascent: Ascent, wrong: Tensor) -> None:
        """Strike out the examples that were `wrong` (N,) often enough; all of their runs stop."""
        rows = ascent.rows
        wrong_steps = torch.where(wrong, ascent.wrong_steps[rows] + 1, 0)  # (N,)
        ascent.wrong_steps[rows] = wrong_steps
        self.alive[ascent.owner[rows[wrong_steps >= self.falls_after]]] = False
        ascent.rows = rows[self.alive[ascent.owner[rows]]]


class Ascent:
    """R runs side by side, each for the example `owner` (R,) of `x`.

    A run aims at the class `targets` (R,), if its loss has a target. `best` are the iterates of
    the highest loss in a stage, `strongest` those of the highest margin within eps.
    """

    def __init__(
        self, x: Tensor, y: Tensor, starts: Tensor, targets: Tensor, owner: Tensor
    ) -> None:
        self.x = x[owner]  # (R,C,H,W)
        self.y = y[owner]  # (R,)
        self.targets = targets
        self.owner = owner
        self.rows = torch.arange(len(owner), device=x.device)  # (N,), the runs that go on
        self.wrong_steps = torch.zeros_like(owner)  # (R,), misclassified iterates in a row
        self.best = BestImages(starts)
        self.strongest = BestImages(starts)

    def start_stage(self, norm: str, radius: float) -> None:
        """Begin again at the best iterates, put into the ball."""
        self.x_adv = to_ball(self.best.images, self.x, norm, radius)  # (R,C,H,W)
        self.previous = self.x_adv.clone()  # (R,C,H,W)
        self.grad = torch.zeros_like(self.x)  # (R,C,H,W)
        self.loss = self.x.new_full((len(self.x),), -torch.inf)  # (R,)
        self.best = BestImages(self.x_adv)
        self.best_grad = torch.zeros_like(self.x)  # (R,C,H,W)
        self.rises = torch.zeros_like(self.owner)  # (R,), steps that raised the loss

    def move(self, i: int, step_sizes: Halving | Sparsity) -> None:
        """The i-th step."""
        rows = self.rows
        x_adv = self.x_adv[rows]
        moved = step_sizes.move(i, rows, x_adv, self.previous[rows], self.grad[rows])
        self.previous[rows] = x_adv
        self.x_adv[rows] = moved

    def record(self, i: int, grad: Tensor, losses: Tensor) -> None:
        """Keep gradient and loss of the iterates after the i-th step, and those of the best."""
        rows = self.rows
        self.rises[rows] += (losses > self.loss[rows]) & (i > 0)
        self.grad[rows] = grad
        self.loss[rows] = losses
        higher = self.best.record(rows, self.x_adv[rows], losses)
        update_where(higher, self.best_grad, rows, grad)

    def record_margin(self, margins: Tensor) -> None:
        self.strongest.record(self.rows, self.x_adv[self.rows], margins)

    def go_back(self, i: int, step_sizes: Halving | Sparsity) -> None:
        """Go back to the best iterates where the step sizes say so."""
        back = step_sizes.check(i, self.rows, self.rises, self.best.values, self.best.images)
        self.previous[back] = self.x_adv[back]
        self.x_adv[back] = self.best.images[back]
        self.grad[back] = self.best_grad[back]
        self.loss[back] = self.best.values[back]
