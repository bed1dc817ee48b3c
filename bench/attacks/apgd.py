"""Auto-PGD (Croce & Hein 2020, arXiv:2003.01690; in l1: Croce & Hein 2021, arXiv:2103.01208): the step size follows from how the ascent fares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.attacks.losses import TARGETED, Loss, answers, at_once, likely, loss_named, mean_logits
from bench.attacks.precision import PRECISIONS, confirmed, lowered
from bench.attacks.stepsizes import Halving, Sparsity, meet
from bench.judging.norms import NORMS, per_example, to_ball
from bench.judging.target import Target, is_correct, margin
from bench.questions.registry import attack
from bench.questions.runs import TARGETS, runs
from bench.questions.spec import ThreatModel

Ask = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
CONFIRMED = 100  # wrong draws in a row after which an example is done with: one that is right in 3% of draws gets there in 5 cases of 100


def passes(knobs: Mapping[str, Any], stochastic: bool) -> int:
    """The most that `search` asks per example: a look at the image, and for each run and draw a forward and a backward, which counts as two.

    A run asks at each step and where it starts, for each of three radii where the ball shrinks, and in half precision once more each time to confirm.
    """
    each = 3 if knobs.get("precision", "float32") == "float32" else 4
    return int(knobs.get("eot", 1)) * (1 + each * runs(knobs) * (int(knobs["steps"]) + 3))


@attack(
    "apgd",
    norms={"linf", "l2", "l1"},
    access="white-box",
    family="gradient",
    iterated=True,
    traced=True,
    parallel_runs=True,
    choices={"loss": TARGETED, "precision": PRECISIONS},
    calls=passes,
    added_later={"precision", "wide"},
)
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
    precision: str = "float32",
    wide: float = 0.0,
) -> Tensor:
    """Auto-PGD from random starts, one draw per step; `loss=ce+targeted` are the two that AutoAttack's standard version runs.

    `loss` is one of ce, margin, dlr and targeted, or several, each run in turn. `targeted` is the targeted DLR loss, run once for each of the
    `targets` most likely wrong classes; with fewer than four classes, the margin to that class. `rho` is the share of the steps between two
    checkpoints that must raise the loss, or the step is halved (linf and l2). `from_x` starts the first restart at the image itself.
    `precision` is that of pgd. `wide` makes the ball shrink, from that many times eps to halfway to eps and to eps, after 30% of the steps each, as
    the paper does in l1 with 3; at 0 as the papers do, only there. In l2, on networks that were trained for linf, 3 finds far more.

    On a deterministic defence an example leaves for good, across losses, targets and restarts, as soon as an iterate is misclassified. Returns
    three candidates for each loss, over all of its runs: the last iterate of the run with the highest margin, the iterate with the highest loss
    and the one with the highest margin (3*losses,B,C,H,W). They are the image itself where the example had left before.
    Croce & Hein 2020, arXiv:2003.01690; in l1 Croce & Hein 2021, arXiv:2103.01208.
    """
    run = radii(threat.norm, float(threat.eps), steps, wide)
    return search(
        model,
        x,
        y,
        threat,
        run,
        loss=loss,
        restarts=restarts,
        targets=targets,
        rho=rho,
        from_x=from_x,
        precision=precision,
    )


@attack(
    "apgd-eot",
    norms={"linf", "l2", "l1"},
    access="white-box",
    family="gradient",
    iterated=True,
    averages_draws=True,
    traced=True,
    parallel_runs=True,
    stochastic_only=True,
    choices={"loss": TARGETED, "precision": PRECISIONS},
    calls=passes,
    added_later={"precision", "wide"},
)
def apgd_eot(
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
    """Auto-PGD on the mean loss over `eot` draws per step, evaluated as one batch.

    An example leaves for good when one of its runs has been wrong in every draw of several steps in a row: two steps and 100 draws at least. This
    holds for apgd on a stochastic defence too. The other knobs and the candidates are those of apgd. Athalye et al. 2018, arXiv:1707.07397.
    """
    run = radii(threat.norm, float(threat.eps), steps, wide)
    return search(
        model,
        x,
        y,
        threat,
        run,
        loss=loss,
        restarts=restarts,
        targets=targets,
        rho=rho,
        from_x=from_x,
        precision=precision,
        eot=eot,
    )


def search(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    stages: list[tuple[float, int]],
    *,
    loss: str,
    restarts: int,
    targets: int,
    rho: float,
    from_x: bool,
    precision: str,
    eot: int = 1,
) -> Tensor:
    """The candidates of apgd. As many runs go side by side as fill a batch; each has a start of its own for every example, whoever is left.

    `stages` are the radii of a run, each with its number of steps.
    """
    names, alive, aims = loss.split("+"), torch.ones_like(y, dtype=torch.bool), y.unsqueeze(0)
    if "targeted" in names or not model.stochastic:
        logits = mean_logits(model, x, eot)
        aims = likely(logits, y, targets)
        alive = alive if model.stochastic else is_correct(logits, y)
    enough = max(2, -(-CONFIRMED // eot)) if model.stochastic else 1
    model, candidates = lowered(model, precision), []
    for name in names:
        ask = partial(answer, model, loss_named(name), eot)
        kept, scores = x.repeat(3, 1, 1, 1, 1), x.new_full((3, len(x)), -torch.inf)
        waiting = [
            (aim, from_x and restart == 0)
            for aim in (aims if name == "targeted" else aims[:1])
            for restart in range(restarts)
        ]
        while waiting and alive.any():
            who = alive.nonzero().squeeze(1)
            width = max(1, at_once(x, eot) // len(who))
            group, waiting = waiting[:width], waiting[width:]
            starts = torch.cat(
                [begin(x, threat.norm, stages[0][0], still)[who] for _, still in group]
            )
            goals = torch.cat([aim[who] for aim, _ in group])
            images, gains = climb(
                ask, x, y, threat, starts, goals, who.repeat(len(group)), alive, stages, rho, enough
            )
            best, run = gains.unflatten(1, (len(group), len(who))).max(1)  # (3,left)
            found = images[
                torch.arange(3, device=x.device).unsqueeze(1),
                run * len(who) + torch.arange(len(who), device=x.device),
            ]
            better = best >= scores[:, who]
            scores[:, who] = torch.where(better, best, scores[:, who])
            kept[:, who] = torch.where(better[..., None, None, None], found, kept[:, who])
        candidates.append(kept)
    return torch.cat(candidates)


def climb(
    ask: Ask,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    x_adv: Tensor,
    aim: Tensor,
    owner: Tensor,
    alive: Tensor,
    stages: list[tuple[float, int]],
    rho: float,
    enough: int,
) -> tuple[Tensor, Tensor]:
    """Ascend from `x_adv` (R,C,H,W), each row for the example `owner` (R,) of `x` and, where the loss has one, towards the class `aim` (R,).

    Gives the last, the highest-loss and the highest-margin iterate (3,R,C,H,W), and by what they are to be compared (3,R): margin, loss, margin.
    An example whose row is wrong for the `enough`-th step in a row is struck out of `alive` (B,), and all of its rows stop there.
    """
    x, y, norm = x[owner], y[owner], threat.norm
    left = torch.arange(len(x), device=x.device)
    lowest = x.new_full((len(x),), -torch.inf)
    strongest, best_gap, wrongs = x_adv.clone(), lowest.clone(), torch.zeros_like(y)
    for stage, (radius, count) in enumerate(stages):
        here = to_ball(x_adv, x, norm, radius)
        before, x_adv, grad, best_grad = (
            here.clone(),
            here.clone(),
            torch.zeros_like(x),
            torch.zeros_like(x),
        )
        value, best_loss, rises = lowest.clone(), lowest.clone(), torch.zeros_like(y)
        plan = (
            Sparsity(x, here, radius, count, fresh=stage == 0)
            if norm == "l1"
            else Halving(x, norm, radius, count, rho)
        )
        for i in range(count + 1):
            now = here[left]
            if i:
                before[left], now = now, plan.move(i, left, now, before[left], grad[left])
                here[left] = now
            grad[left], loss, gap, wrong = ask(now, y[left], aim[left])
            rises[left] += (loss > value[left]) & (i > 0)
            higher = loss > best_loss[left]
            value[left], best_loss[left] = loss, torch.where(higher, loss, best_loss[left])
            for best, new in ((x_adv, now), (best_grad, grad[left])):
                best[left] = torch.where(per_example(higher, x), new, best[left])
            if radius == float(threat.eps):
                farther = gap > best_gap[left]
                best_gap[left] = torch.where(farther, gap, best_gap[left])
                strongest[left] = torch.where(per_example(farther, x), now, strongest[left])
                wrongs[left] = torch.where(wrong, wrongs[left] + 1, 0)
                alive[owner[left[wrongs[left] >= enough]]] = False
                left = left[alive[owner[left]]]
            if not len(left):
                break
            if i < count:
                back = plan.check(i, left, rises, best_loss, x_adv)
                before[back] = here[back]
                here[back], grad[back], value[back] = x_adv[back], best_grad[back], best_loss[back]
    return torch.stack([here, x_adv, strongest]), torch.stack([best_gap, best_loss, best_gap])


def answer(
    model: Target, loss: Loss, eot: int, x_adv: Tensor, y: Tensor, aim: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient, loss and margin, each the mean over `eot` draws, and whether all draws are wrong.

    Asked in parts of fixed size. The margin is positive wherever all draws are wrong, so that a tie that counts as wrong is kept as such, and on a
    deterministic defence nowhere else.
    """
    size, parts = at_once(x_adv, eot), []
    given = torch.stack([y, aim], 1) if loss is TARGETED["targeted"] else y
    for images, names, said in zip(
        x_adv.split(size), y.split(size), given.split(size), strict=True
    ):
        grad, value, logits = answers(model, images, said, loss, eot)
        labels = names.unsqueeze(1).expand(-1, eot)
        wrong, gap = (
            confirmed(model, images, names, ~is_correct(logits, labels).any(1)),
            margin(logits, labels).mean(1).to(x_adv),
        )
        gap = torch.where(
            wrong,
            gap.clamp_min(torch.finfo(gap.dtype).tiny),
            gap if model.stochastic else gap.clamp_max(0),
        )
        parts.append((grad, value.to(x_adv), gap, wrong))
    grads, values, gaps, wrongs = (torch.cat(found) for found in zip(*parts, strict=True))
    return grads, values, gaps, wrongs


def begin(x: Tensor, norm: str, radius: float, still: bool) -> Tensor:
    """Where a run starts: the image itself, or a point of the ball, in l1 the nearest one to a Gaussian around the image, which is sparse."""
    if still:
        return x
    return (
        meet(x + torch.randn_like(x), x, radius)
        if norm == "l1"
        else x + NORMS[norm].random_start(x, radius)
    )


def radii(norm: str, eps: float, steps: int, wide: float = 0.0) -> list[tuple[float, int]]:
    """The radii of a run, each with its number of steps: `wide` times eps, halfway from there to eps, and eps, 30%, 30% and 40% of the steps.

    At 0 `wide` is 3 in l1, as in its paper, and 1 elsewhere, which is eps alone.
    """
    wide = wide or (3 if norm == "l1" else 1)
    part = min(math.ceil(0.3 * steps), (steps - 1) // 2) if wide > 1 else 0
    return (
        [(wide * eps, part), ((wide + 1) / 2 * eps, part), (eps, steps - 2 * part)]
        if part
        else [(eps, steps)]
    )
