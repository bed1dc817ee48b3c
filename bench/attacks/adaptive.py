"""The adaptive attack: every way around a defence that its declared parts open, one after the other, on what still stands."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.attacks.draws import same_noise
from bench.attacks.gradient import SURE, climb, passes
from bench.attacks.losses import TARGETED, gradients_at_once
from bench.errors import BadInput, did_you_mean
from bench.judging.target import Target, is_correct, margin
from bench.questions.registry import attack
from bench.questions.runs import TARGETS, runs
from bench.questions.spec import ThreatModel

MOST = 16  # routes that are tried; `calls` is their number's bound
DISTANCES = ("latent", "purifier")
SMOOTHING = 0.25  # standard deviation of the noise of `smoothed`, relative to eps in linf


@attack(
    "adaptive",
    norms={"linf", "l2", "l1", "l0"},
    access="white-box",
    family="gradient",
    averages_draws=True,
    choices={"loss": TARGETED},
    added_later={"only", "targets"},
    calls=lambda knobs, stochastic: (
        (len(str(knobs["only"]).split("+")) if knobs["only"] else MOST)
        * (passes(knobs) + 4 + SURE * 3 * runs(knobs))
        + 2 * SURE
    ),
)
def adaptive(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    loss: str = "ce+margin",
    steps: int = 100,
    restarts: int = 1,
    step: float = 2.0,
    wide: float = 3.0,
    momentum: float = 0.0,
    eot: int = 20,
    only: str = "",
    targets: int = TARGETS,
) -> dict[str, Tensor]:
    """PGD by every route that the defence's declared parts open, each on the examples that still stand; the candidates (B,C,H,W) by route.

    The routes, where their parts are declared: each of `surrogates` under its own name; `base` (the bare classifier, scored on the defence);
    `presoftmax`; `identity` (the purifier's gradient taken for 1: BPDA); `mean-logit` of `per_draw`; `fixed-noise` (one frozen draw of the
    randomness); `latent` (the condition moved to that of the nearest image of another class); `purifier` (the purified image moved as far as can be);
    and always `warm` (the defence's own gradient, from the strongest candidate so far), `full` (the same from a random start) and `smoothed`
    (averaged over noise). The knobs are those of pgd-eot; `eot` draws are averaged where a route is random. `only`, names joined by +, tries these
    alone: what a single way around finds by itself.

    Where the gradient of the defence itself is not finite, `warm` and `full` step along that of the next surrogate, unless `only` is given.

    An example is left alone once a candidate fooled the defence, in ten draws in a row where that is stochastic; where a route was not tried its
    candidate is the image itself. Tramer et al. 2020, arXiv:2002.08347; Athalye et al. 2018, arXiv:1802.00420.
    """
    knobs = {
        "loss": loss,
        "steps": steps,
        "restarts": restarts,
        "step": step,
        "wide": wide,
        "momentum": momentum,
        "targets": targets,
    }
    names = chosen(routes(model), only)
    lent = (
        list(surrogates(model).values())[: (MOST - len(names)) // 2] if not only else []
    )  # so that `calls` holds, with each for both of the two
    run = Run(model, x, y, threat, knobs, eot, lent)
    return {name: run.by(name) for name in names}


def routes(model: Target) -> list[str]:
    """The names of what the defence's parts allow, the cheap and strong first: the same for every batch."""
    named = dict.fromkeys(surrogates(model))
    if "classifier" not in named and part(model, "base"):
        named["base"] = None
    if part(model, "presoftmax"):
        named["presoftmax"] = None
    if "identity" not in named and part(model, "purify") and part(model, "classify"):
        named["identity"] = None
    if "mean-logit" not in named and part(model, "per_draw"):
        named["mean-logit"] = None
    if part(model, "latent"):
        named["latent"] = None
    if part(model, "purify"):
        named["purifier"] = None
    if model.stochastic:
        named["fixed-noise"] = None
    return [*list(named)[: MOST - 3], "warm", "full", "smoothed"]


def chosen(names: list[str], only: str) -> list[str]:
    """Of the defence's routes those that are named, in their order; all where none is."""
    wanted = [name.strip() for name in only.split("+")] if only else names
    for name in wanted:
        if name not in names:
            raise BadInput(
                f"adaptive[only={only}]: this defence has no route '{name}'{did_you_mean(name, names)}"
            )
    return [name for name in names if name in wanted]


def surrogates(model: Target) -> Mapping[str, Callable[[Tensor], Tensor]]:
    found: Mapping[str, Callable[[Tensor], Tensor]] = part(model, "surrogates") or {}
    return found


def part(model: Target, name: str) -> Any:
    """What the defence declares under this name, or None."""
    return getattr(model, name, None)


class Run:
    """What the routes share: the examples, the strongest candidate of each so far, and which of them still stand."""

    def __init__(
        self,
        model: Target,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        knobs: dict[str, Any],
        eot: int,
        lent: Sequence[Callable[[Tensor], Tensor]],
    ) -> None:
        self.model, self.x, self.y, self.threat, self.knobs, self.eot, self.lent = (
            model,
            x,
            y,
            threat,
            knobs,
            eot,
            lent,
        )
        self.best = x.clone()
        hits, gap = self.score(x.unsqueeze(0), y)
        self.fewest, self.widest = hits[0], gap[0]

    @property
    def standing(self) -> Tensor:
        return (self.fewest > 0).nonzero().squeeze(1)

    def by(self, name: str) -> Tensor:
        """The strongest candidate (B,C,H,W) that this route finds for what still stands; the image itself for the others."""
        made, rows = self.x.clone(), self.standing
        if not len(rows):
            return made
        # a distance knows its goals by their places, so that its images must be differentiated all at once
        parts = rows.split(gradients_at_once(self.x, self.eot)) if name in DISTANCES else [rows]
        tried = torch.cat([self.climb(name, part) for part in parts], 1)
        hits, gap = self.score(tried, self.y[rows])
        tied = hits == hits.amin(0)
        best = torch.where(tied, gap, -torch.inf).argmax(0)
        here = torch.arange(len(rows), device=self.x.device)
        made[rows], hits, gap = tried[best, here], hits[best, here], gap[best, here]
        better = (hits < self.fewest[rows]) | (
            (hits == self.fewest[rows]) & (gap > self.widest[rows])
        )
        won = rows[better]
        self.best[won], self.fewest[won], self.widest[won] = made[won], hits[better], gap[better]
        return made

    def climb(self, name: str, rows: Tensor) -> Tensor:
        """The candidates (m,R,C,H,W) of the route for the examples `rows` (R,)."""
        stand_in, labels = self.stand_in(name, rows)
        start = self.best[rows] if name == "warm" else None
        knobs = self.knobs | (
            {"loss": "margin"} if name in DISTANCES else {}
        )  # a distance has no cross-entropy
        eot = self.eot if stand_in.stochastic else 1
        own: dict[str, Any] = (
            {"spare": True, "stand_ins": self.stand_ins} if stand_in is self.model else {}
        )
        return climb(
            stand_in, self.x[rows], labels, self.threat, start=start, eot=eot, **own, **knobs
        )

    @torch.no_grad()
    def score(self, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Of each image (m,B,C,H,W), how many of the draws were right (m,B), and their mean margin (m,B)."""
        draws = SURE if self.model.stochastic else 1
        hits, gaps = [], []
        for some in images:
            logits = self.model.draws(some, draws)
            labels = y.unsqueeze(1).expand(-1, draws)
            hits.append(is_correct(logits, labels).sum(1))
            gaps.append(margin(logits, labels).mean(1))
        return torch.stack(hits), torch.stack(gaps)

    def stand_in(self, name: str, rows: Tensor) -> tuple[Target, Tensor]:
        """What the route climbs in place of the defence, and the labels under which it does."""
        model, y = self.model, self.y[rows]
        if name in surrogates(model):
            return self.wrap(surrogates(model)[name]), y
        if name == "base":
            return self.wrap(model.base), y
        if name == "presoftmax":
            return self.wrap(model.presoftmax), y
        if name == "identity":
            return self.wrap(
                lambda images: model.classify(images + (model.purify(images) - images).detach())
            ), y
        if name == "mean-logit":
            return self.wrap(lambda images: model.per_draw(images).mean(1)), y
        if name == "fixed-noise":
            return self.wrap(Frozen(model), random=False), y
        if name == "smoothed":
            size = (
                SMOOTHING
                * float(self.threat.eps)
                * (1.0 if self.threat.norm == "linf" else self.x[0].numel() ** -0.5)
            )
            return self.wrap(
                lambda images: model(images + size * torch.randn_like(images)), random=True
            ), y
        if name in DISTANCES:
            towards = (
                self.neighbours(model.latent, rows)
                if name == "latent"
                else away(model.purify, self.x[rows])
            )
            return self.wrap(towards), torch.zeros_like(y)
        return model, y

    @functools.cached_property
    def lenders(self) -> list[Target]:
        return [self.wrap(call) for call in self.lent]

    def stand_ins(self) -> list[Target]:
        """What lends its gradient where the defence's own is not finite; made when first asked for, as that takes draws."""
        return self.lenders

    def wrap(self, call: Callable[[Tensor], Tensor], *, random: bool | None = None) -> Target:
        """A function of images as a target of its own; whether it is random is seen where it is not said."""
        if random is None:
            two = self.x[:2]
            with torch.no_grad():
                random = (
                    not torch.equal(call(two), call(two))
                    if not isinstance(call, Distance)
                    else call.random
                )
        return Target(
            Through(call), classes=self.model.classes, stochastic=random, device=self.model.device
        )

    @torch.no_grad()
    def neighbours(self, latent: Callable[[Tensor], Tensor], rows: Tensor) -> Distance:
        """The distance of `latent` from that of the nearest image of the batch with another label; from the image's own where there is none."""
        codes = latent(self.x).flatten(1)
        apart = torch.cdist(codes[rows], codes).masked_fill(
            self.y[rows].unsqueeze(1) == self.y.unsqueeze(0), torch.inf
        )
        least, nearest = apart.min(1)
        goals = torch.where(least.isfinite().unsqueeze(1), codes[nearest], codes[rows])
        return Distance(
            latent,
            goals,
            nearer=True,
            random=not torch.equal(latent(self.x[:2]).flatten(1), codes[:2]),
        )


def away(purify: Callable[[Tensor], Tensor], x: Tensor) -> Distance:
    """The distance of the purified image from the image, which is where a perfect purifier would leave it."""
    with torch.no_grad():
        random = not torch.equal(purify(x[:2]), purify(x[:2]))
    return Distance(purify, x.flatten(1), nearer=False, random=random)


class Distance:
    """A distance as if it were two logits (B,2): under the label 0, their margin rises as `call` comes nearer to the goals, or goes away."""

    def __init__(
        self, call: Callable[[Tensor], Tensor], goals: Tensor, *, nearer: bool, random: bool
    ) -> None:
        self.call, self.goals, self.sign, self.random = call, goals, 1.0 if nearer else -1.0, random

    def __call__(self, images: Tensor) -> Tensor:
        goals = self.goals.repeat_interleave(len(images) // len(self.goals), 0)
        far = (self.call(images).flatten(1) - goals).square().sum(1)
        return torch.stack([self.sign * far, torch.zeros_like(far)], 1)


class Frozen:
    """The defence under one draw of its randomness, the same at every call."""

    def __init__(self, model: Target) -> None:
        self.model, self.noise = model, same_noise(model)

    def __call__(self, images: Tensor) -> Tensor:
        with self.noise():
            logits: Tensor = self.model(images)
        return logits


class Through(nn.Module):
    """A function as a module."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)
