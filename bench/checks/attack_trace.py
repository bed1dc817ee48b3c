"""The trace of an attack, and what it says of why the attack failed (Pintor et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.attacks.apgd import plan_stages
from bench.attacks.losses import images_per_query, rows_per_query
from bench.checks.failure_indicators import DRAWS, LAST, POINTS, RADIUS, RISES, UNSTABLE
from bench.judging.norms import NORMS
from bench.judging.randomness import judging_stream
from bench.judging.target import Target, is_correct, margin, predict_draws
from bench.questions.registry import attacks
from bench.questions.spec import Spec


class Traced(nn.Module):
    """`defence`, and what an attack by gradients asked it on one image x (1,C,H,W) of label y (1,).

    `margins` and `within` have an entry (B,) for each batch of which a gradient was asked, in
    order. A margin is a mean over draws; `within` says whether the image lies in ball and box.
    `alive` is whether one gradient was finite and not zero. `best` (1,C,H,W) has the largest margin
    of the images within that all draws call wrong.
    """

    def __init__(self, defence: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> None:
        super().__init__()
        self.defence = defence
        self.x = x
        self.y = y
        self.norm = norm
        self.eps = eps
        self.margins: list[Tensor] = []
        self.within: list[Tensor] = []
        self.alive = False
        self.best: Tensor | None = None
        self.best_margin = -torch.inf

    def forward(self, x: Tensor) -> Tensor:
        return self.draws(x, 1)[:, 0]

    def draws(self, x: Tensor, k: int) -> Tensor:
        """`k` draws (B,k,K); a step of the attack is noted, a look without a gradient is not."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return predict_draws(self.defence, x, k)
        watched = x.view_as(x)
        watched.register_hook(self.note_gradient)
        logits = predict_draws(self.defence, watched, k)
        self.note_images(x.detach(), logits.detach())
        return logits

    def note_gradient(self, gradient: Tensor) -> None:
        flat = gradient.detach().flatten(1)
        useful = flat.isfinite().all(1) & (flat != 0).any(1)
        self.alive |= bool(useful.any())

    def note_images(self, images: Tensor, logits: Tensor) -> None:
        labels = self.y.expand(len(images))[:, None].expand(-1, logits.shape[1])
        margins = margin(logits, labels).double().mean(1)  # (B,)
        within = self.is_within(images)
        wrong = within & ~is_correct(logits, labels).any(1)
        wrong_margins = torch.where(wrong, margins, -torch.inf)
        if wrong_margins.max() > self.best_margin:
            self.best_margin = float(wrong_margins.max())
            self.best = images[wrong_margins.argmax()][None]
        self.margins.append(margins)
        self.within.append(within)

    def is_within(self, images: Tensor) -> Tensor:
        """Whether each image lies in ball and box, to rounding."""
        in_ball = NORMS[self.norm].distance(images - self.x) <= self.eps * (1 + 1e-5) + 1e-6
        beyond_box = (images - images.clamp(0, 1)).abs().flatten(1).amax(1)
        return in_ball & (beyond_box <= 1e-6)


def failures(traced: Traced, attack: Spec, target: Target, survives: Tensor) -> dict[str, float]:
    """Which of `INDICATORS` fire on the image that `attack`, with all of its knobs, was run on.

    1 or 0 each, and 1 for `survive`; nothing where the image fell, for that is no failure of the
    attack. The defence is asked through `target`, which counts.
    """
    if not bool(survives):
        return {}
    fires = {
        "survive": True,
        "unavailable": not traced.alive,
        "unstable": margin_change(target, traced.x, traced.y) > UNSTABLE,
        "silent": threw_success_away(target, traced),
        "incomplete": was_still_rising(traced, attack, target.classes),
    }
    return {f"D11:{name}": float(value) for name, value in fires.items()}


@torch.no_grad()
def margin_change(target: Target, x: Tensor, y: Tensor) -> float:
    """The mean of |m(x + d) - m(x)| / |m(x)| over random d, 1 at most.

    Of a stochastic defence under the same draws. The paper's code has this figure without a
    threshold, and takes the loss of the attack for m. The cross-entropy of a sure answer is nearly
    zero, and its relative changes are large where nothing is wrong: so here it is the margin.
    """
    noise = 2 * torch.rand(POINTS, *x.shape[1:], dtype=x.dtype, device=x.device) - 1
    points = (x + RADIUS / 2 * noise).clamp(0, 1)
    if target.stochastic:
        seed = int(torch.randint(2**62, ()))
        here = mean_margin(target, x[0], y, seed)
        moved = torch.cat([mean_margin(target, point, y, seed) for point in points])
    else:
        here = margin(target(x), y).double()
        parts = points.split(rows_per_query(x))
        moved = torch.cat([margin(target(part), y.expand(len(part))).double() for part in parts])
    return min(1.0, float(((moved - here).abs() / here.abs().where(here != 0, 1)).mean()))


def mean_margin(target: Target, image: Tensor, y: Tensor, seed: int) -> Tensor:
    """The mean margin (1,) of the image (C,H,W) over the draws of this seed."""
    with judging_stream(image.device, seed):
        logits = target.draws(image[None], DRAWS)
        return margin(logits, y[:, None].expand(-1, DRAWS)).double().mean(1)


@torch.no_grad()
def threw_success_away(target: Target, traced: Traced) -> bool:
    """Whether the strongest wrong image that the attack met is wrong when it is asked again.

    Of a stochastic defence in most draws.
    """
    if traced.best is None:
        return False
    draws = DRAWS if target.stochastic else 1
    labels = traced.y[:, None].expand(-1, draws)
    correct = int(is_correct(target.draws(traced.best, draws), labels).sum())
    return 2 * correct < draws


def was_still_rising(traced: Traced, attack: Spec, classes: int) -> bool:
    """Whether the margin still rose at the end of the run that came farthest.

    The largest margin so far, rescaled to [0,1] over its run, rose by over 0.05 in the last ten
    steps.
    """
    if not traced.margins:
        return False
    side_by_side = images_per_query(traced.x, int(attack.params.get("eot", 1)))
    runs_within = split_runs(torch.cat(traced.within), attack, traced.norm, side_by_side, classes)
    runs = split_runs(torch.cat(traced.margins), attack, traced.norm, side_by_side, classes)
    farthest = -torch.inf
    rise = 0.0
    for within, margins in zip(runs_within, runs, strict=True):
        kept = margins[within]
        if not len(kept) or float(kept.max()) <= farthest:
            continue
        farthest = float(kept.max())
        spread = float(kept.max() - kept.min())
        best_so_far = kept.cummax(0).values[-LAST:]
        rise = float(best_so_far[-1] - best_so_far[0]) / spread if spread else 0.0
    return rise > RISES


def split_runs(
    rows: Tensor, attack: Spec, norm: str, side_by_side: int, classes: int
) -> list[Tensor]:
    """What an attack met, in order (N,), run by run.

    PGD's runs come one after the other. Of APGD's, `side_by_side` go side by side. These have one
    step more, where they start, for each of their radii. What is left of a run that was cut short
    stays with it.
    """
    knobs = attack.params
    steps = int(knobs["steps"])
    if not attacks.get(attack.name).facts.parallel_runs:
        return list(rows.split(steps))
    looks = steps + len(plan_stages(norm, 1.0, steps, float(knobs.get("wide", 0))))
    runs: list[Tensor] = []
    for loss in str(knobs["loss"]).split("+"):
        targets = min(int(knobs["targets"]), classes - 1) if loss == "targeted" else 1
        left = int(knobs["restarts"]) * targets
        while left > 0 and len(rows):
            width = min(side_by_side, left)
            part = rows[: width * looks]
            rows = rows[width * looks :]
            left -= width
            runs += [part[i::width] for i in range(width)]
    return runs
