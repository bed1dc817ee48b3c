"""D11: what the trace of an attack says of why it failed (Pintor et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.attacks.apgd import radii
from bench.attacks.losses import at_once, rows_at_once
from bench.judging.norms import NORMS
from bench.judging.randomness import random_stream
from bench.judging.target import Target, is_correct, margin, predict_draws
from bench.questions.registry import attacks
from bench.questions.spec import Spec

RADIUS, POINTS = (
    8 / 255,
    100,
)  # the points of `unstable` lie within half of the radius in every pixel, as in the paper's code
UNSTABLE = 0.1
LAST, RISES = (
    10,
    0.05,
)  # steps, and what the best loss so far may gain in them, of all that it gained
DRAWS = 16  # of a stochastic defence: draws whose mean is compared, or whose majority judges
NAMES = ("unavailable", "unstable", "silent", "incomplete")


class Traced(nn.Module):
    """`defence`, and what it was asked by an attack by gradients on one image x (1,C,H,W) of label y (1,).

    Of every image that a gradient is asked of, in order: the margin, a mean over draws, in `margins`, and in `within` whether it lies in ball and
    box. `alive` says whether one gradient was finite and not zero, `best` is of the images within that all draws call wrong the one of the largest
    margin.
    """

    def __init__(self, defence: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> None:
        super().__init__()
        self.defence, self.x, self.y, self.norm, self.eps = defence, x, y, norm, eps
        self.margins: list[Tensor] = []
        self.within: list[Tensor] = []
        self.alive = False
        self.best: Tensor | None = None
        self.top = -torch.inf

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(x, 1)[:, 0]

    def draws(self, x: Tensor, k: int) -> Tensor:
        return self.ask(x, k)

    def ask(self, x: Tensor, k: int) -> Tensor:
        if not (
            x.requires_grad and torch.is_grad_enabled()
        ):  # the harness that judges, or a look that is no step
            return predict_draws(self.defence, x, k)
        seen = x.view_as(x)
        seen.register_hook(self.keep)
        logits = predict_draws(self.defence, seen, k)
        self.note(x.detach(), logits.detach())
        return logits

    def keep(self, grad: Tensor) -> None:
        flat = grad.detach().flatten(1)
        self.alive |= bool((flat.isfinite().all(1) & (flat != 0).any(1)).any())

    def note(self, images: Tensor, logits: Tensor) -> None:
        labels = self.y.expand(len(images))[:, None].expand(-1, logits.shape[1])
        gaps, inside = margin(logits, labels).double().mean(1), self.inside(images)
        fooled = torch.where(inside & ~is_correct(logits, labels).any(1), gaps, -torch.inf)
        if fooled.max() > self.top:
            self.top, self.best = float(fooled.max()), images[fooled.argmax()][None]
        self.margins.append(gaps)
        self.within.append(inside)

    def inside(self, images: Tensor) -> Tensor:
        """Whether each image lies in ball and box, to rounding."""
        near = NORMS[self.norm].distance(images - self.x) <= self.eps * (1 + 1e-5) + 1e-6
        return near & ((images - images.clamp(0, 1)).abs().flatten(1).amax(1) <= 1e-6)


def failures(traced: Traced, attack: Spec, target: Target, survives: Tensor) -> dict[str, float]:
    """Which indicators (`NAMES`) fire on the image that `attack`, with all of its knobs, was run on: 1 or 0, and 1 for `survive`; nothing where it
    fell, for that is no failure of the attack. The defence is asked through `target`, which counts.

    `unavailable`: the gradient was zero or not finite at every step. `unstable`: see there. `silent`: an image that the attack met is wrong, and
    what was made of its proposals is not. `incomplete`: the run that came farthest was still rising.
    """
    if not bool(survives):
        return {}
    found = (
        not traced.alive,
        unstable(target, traced.x, traced.y) > UNSTABLE,
        silent(target, traced),
        unfinished(traced, attack, target.classes),
    )
    return {
        "D11:survive": 1.0,
        **{f"D11:{name}": float(fires) for name, fires in zip(NAMES, found, strict=True)},
    }


@torch.no_grad()
def unstable(target: Target, x: Tensor, y: Tensor) -> float:
    """The mean of |m(x + d) - m(x)| / |m(x)| over random d, 1 at most; under the same draws where the defence is stochastic.

    The paper's code has this figure as it is, and no threshold, and takes for m the loss of the attack; the cross-entropy of a sure answer is
    nearly zero, and its relative changes are large where nothing is wrong, so here it is the margin.
    """
    points = (
        x + RADIUS / 2 * (2 * torch.rand(POINTS, *x.shape[1:], dtype=x.dtype, device=x.device) - 1)
    ).clamp(0, 1)
    if target.stochastic:
        seed = int(torch.randint(2**62, ()))

        def mean(image: Tensor) -> Tensor:
            with random_stream(image.device, seed):
                return (
                    margin(target.draws(image[None], DRAWS), y[:, None].expand(-1, DRAWS))
                    .double()
                    .mean(1)
                )

        here, there = mean(x[0]), torch.cat([mean(image) for image in points])
    else:
        here, *rest = (
            margin(target(some), y.expand(len(some))).double()
            for some in (x, *points.split(rows_at_once(x)))
        )
        there = torch.cat(rest)
    return min(1.0, float(((there - here).abs() / here.abs().where(here != 0, 1)).mean()))


@torch.no_grad()
def silent(target: Target, traced: Traced) -> bool:
    """Whether the strongest wrong image that the attack met is wrong when it is asked again, where the defence is stochastic mostly."""
    if traced.best is None:
        return False
    count = DRAWS if target.stochastic else 1
    return (
        2
        * int(
            is_correct(target.draws(traced.best, count), traced.y[:, None].expand(-1, count)).sum()
        )
        < count
    )


def unfinished(traced: Traced, attack: Spec, classes: int) -> bool:
    """Whether the largest margin so far, rescaled to [0,1] over its run, rose by over 0.05 in the last ten steps of the run that came farthest."""
    if not traced.margins:
        return False
    farthest, rise = -torch.inf, 0.0
    side = at_once(traced.x, int(attack.params.get("eot", 1)))
    inside, gaps = (
        split(torch.cat(found), attack, traced.norm, side, classes)
        for found in (traced.within, traced.margins)
    )
    for near, run in zip(inside, gaps, strict=True):
        kept = run[near]
        if not len(kept) or float(kept.max()) <= farthest:
            continue
        farthest, spread = float(kept.max()), float(kept.max() - kept.min())
        so_far = kept.cummax(0).values[-LAST:]
        rise = float(so_far[-1] - so_far[0]) / spread if spread else 0.0
    return rise > RISES


def split(rows: Tensor, attack: Spec, norm: str, side: int, classes: int) -> list[Tensor]:
    """What an attack met, in order (N,), run by run.

    PGD's runs come one after the other; of APGD's `side` go side by side, with one step more, where they start, for each of its radii. What is left
    of a run that was cut short stays with it.
    """
    knobs = attack.params
    steps = int(knobs["steps"])
    if not attacks.get(attack.name).facts.parallel_runs:
        return list(rows.split(steps))
    looks = steps + len(radii(norm, 1.0, steps, float(knobs.get("wide", 0))))
    found: list[Tensor] = []
    for loss in str(knobs["loss"]).split("+"):
        left = int(knobs["restarts"]) * (
            min(int(knobs["targets"]), classes - 1) if loss == "targeted" else 1
        )
        while left > 0 and len(rows):
            wide = min(side, left)
            part, rows, left = rows[: wide * looks], rows[wide * looks :], left - wide
            found += [part[i::wide] for i in range(wide)]
    return found
