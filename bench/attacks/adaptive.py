"""The adaptive attack: every route around a defence that its declared parts open, in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.attacks.draws import same_noise
from bench.attacks.gradient import WRONG_DRAWS, PGDOptions, pgd_calls, pgd_loop
from bench.attacks.losses import ALL_LOSSES, images_per_gradient
from bench.errors import BadInput, did_you_mean
from bench.judging.target import Target, is_correct, margin
from bench.questions.registry import attack
from bench.questions.runs import TARGETS, runs
from bench.questions.spec import ThreatModel

MAX_ROUTES = 16  # routes that are tried at most: `calls` counts on it
DISTANCES = ("latent", "purifier")
SMOOTHING = 0.25  # standard deviation of the noise of `smoothed`, relative to eps in linf

Function = Callable[[Tensor], Tensor]


def adaptive_calls(knobs: Mapping[str, Any], stochastic: bool) -> int:
    routes = len(str(knobs["only"]).split("+")) if knobs["only"] else MAX_ROUTES
    return routes * (pgd_calls(knobs) + 4 + WRONG_DRAWS * 3 * runs(knobs)) + 2 * WRONG_DRAWS


@attack(
    "adaptive",
    norms={"linf", "l2", "l1", "l0"},
    access="white-box",
    family="gradient",
    averages_draws=True,
    choices={"loss": ALL_LOSSES},
    added_later={"only", "targets"},
    calls=adaptive_calls,
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
    """PGD by every route that the defence's declared parts open.

    Each route attacks the examples that no route before it has broken. The routes are:

    - each of `surrogates`, under its own name;
    - `base`: the bare classifier;
    - `presoftmax`: the logits before a softmax;
    - `identity`: the purifier's gradient is taken for 1 (BPDA);
    - `mean-logit`: the mean logits of `per_draw`;
    - `latent`: the condition moves to that of the nearest image of another class;
    - `purifier`: the purified image moves as far from the image as can be;
    - `fixed-noise`: one frozen draw of the randomness;
    - `warm`: the defence's own gradient, from the strongest candidate so far;
    - `full`: the defence's own gradient, from a random start;
    - `smoothed`: the defence's own gradient, averaged over noise on the image.

    The last three are always tried, the others where the defence declares their parts. `only`,
    names joined by `+`, tries these routes alone: what a single route finds by itself. The other
    knobs are those of pgd-eot. `eot` draws are averaged where a route is random.

    Where the gradient of the defence itself is not finite, `warm` and `full` step along that of
    the next surrogate, unless `only` is given.

    An example has fallen once a candidate fooled the defence: in ten draws in a row, if the
    defence is stochastic. Returns the candidates (B,C,H,W) by route. Where a route was not tried,
    its candidate is the image itself.

    Tramer et al. 2020, arXiv:2002.08347; Athalye et al. 2018, arXiv:1802.00420.
    """
    options = PGDOptions(
        loss=loss,
        steps=steps,
        restarts=restarts,
        step=step,
        wide=wide,
        momentum=momentum,
        eot=eot,
        targets=targets,
    )
    names = choose_routes(route_names(model), only)
    lent: list[Function] = []
    if not only:  # `calls` holds: each may be queried by `warm` and by `full`
        lent = list(surrogates(model).values())[: (MAX_ROUTES - len(names)) // 2]
    search = RouteSearch(model, x, y, threat, options, lent)
    return {name: search.run(name) for name in names}


def route_names(model: Target) -> list[str]:
    """The routes that the defence's parts open, the cheap and strong first.

    They are the same for every batch.
    """
    names = dict.fromkeys(surrogates(model))
    if "classifier" not in names and part(model, "base"):
        names["base"] = None
    if part(model, "presoftmax"):
        names["presoftmax"] = None
    if part(model, "purify") and part(model, "classify"):
        names["identity"] = None
    if part(model, "per_draw"):
        names["mean-logit"] = None
    if part(model, "latent"):
        names["latent"] = None
    if part(model, "purify"):
        names["purifier"] = None
    if model.stochastic:
        names["fixed-noise"] = None
    return [*list(names)[: MAX_ROUTES - 3], "warm", "full", "smoothed"]


def choose_routes(names: list[str], only: str) -> list[str]:
    """Of the defence's routes those that `only` names, in their order; all where it is empty."""
    wanted = [name.strip() for name in only.split("+")] if only else names
    for name in wanted:
        if name not in names:
            hint = did_you_mean(name, names)
            raise BadInput(f"adaptive[only={only}]: this defence has no route '{name}'{hint}")
    return [name for name in names if name in wanted]


def surrogates(model: Target) -> Mapping[str, Function]:
    declared: Mapping[str, Function] = part(model, "surrogates") or {}
    return declared


def part(model: Target, name: str) -> Any:
    """What the defence declares under this name, or None."""
    return getattr(model, name, None)


class RouteSearch:
    """What the routes share: the examples, and the strongest candidate of each so far.

    A candidate is stronger if fewer draws on it are right, then if its mean margin is larger.
    `lent` are functions whose gradient takes the place of the defence's own where that is not
    finite.
    """

    def __init__(
        self,
        model: Target,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        options: PGDOptions,
        lent: Sequence[Function],
    ) -> None:
        self.model = model
        self.x = x
        self.y = y
        self.threat = threat
        self.options = options
        self.lent = lent
        self.strongest = x.clone()  # (B,C,H,W)
        right, margins = self.score(x.unsqueeze(0), y)
        self.right_draws = right[0]  # (B,), of the strongest candidates
        self.margins = margins[0]  # (B,)

    def run(self, name: str) -> Tensor:
        """The strongest candidate (B,C,H,W) of this route for each example that survives so far.

        For the others it is the image itself.
        """
        candidates = self.x.clone()  # (B,C,H,W)
        rows = (self.right_draws > 0).nonzero().squeeze(1)  # (R,)
        if not len(rows):
            return candidates
        chunks = [rows]
        if name in DISTANCES:
            # a distance knows its goals by their places: its images are differentiated all at once
            chunks = list(rows.split(images_per_gradient(self.x, self.options.eot)))
        tried = torch.cat([self.propose(name, chunk) for chunk in chunks], 1)  # (m,R,C,H,W)
        right, margins = self.score(tried, self.y[rows])  # (m,R)
        fewest = right == right.amin(0)
        best = torch.where(fewest, margins, -torch.inf).argmax(0)  # (R,)
        columns = torch.arange(len(rows), device=self.x.device)
        candidates[rows] = tried[best, columns]
        self.record(rows, candidates[rows], right[best, columns], margins[best, columns])
        return candidates

    def record(self, rows: Tensor, images: Tensor, right: Tensor, margins: Tensor) -> None:
        """Keep the images (R,C,H,W) that are stronger than the strongest candidates so far."""
        fewer = right < self.right_draws[rows]
        farther = (right == self.right_draws[rows]) & (margins > self.margins[rows])
        stronger = fewer | farther  # (R,)
        self.strongest[rows[stronger]] = images[stronger]
        self.right_draws[rows[stronger]] = right[stronger]
        self.margins[rows[stronger]] = margins[stronger]

    def propose(self, name: str, rows: Tensor) -> Tensor:
        """The candidates (m,R,C,H,W) of the route for the examples `rows` (R,)."""
        target, labels = self.route_target(name, rows)
        options = self.options
        if name in DISTANCES:
            options = replace(options, loss="margin")  # a distance has no cross-entropy
        if not target.stochastic:
            options = replace(options, eot=1)
        is_defence = target is self.model
        return pgd_loop(
            target,
            self.x[rows],
            labels,
            self.threat,
            options,
            start=self.strongest[rows] if name == "warm" else None,
            early_stop=is_defence,
            surrogate_models=self.surrogate_models if is_defence else None,
        )

    @torch.no_grad()
    def score(self, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """How many draws on each image (m,B,C,H,W) are right (m,B), and their mean margin (m,B)."""
        draws = WRONG_DRAWS if self.model.stochastic else 1
        labels = y.unsqueeze(1).expand(-1, draws)
        right = []
        margins = []
        for candidate in images:
            logits = self.model.draws(candidate, draws)
            right.append(is_correct(logits, labels).sum(1))
            margins.append(margin(logits, labels).mean(1))
        return torch.stack(right), torch.stack(margins)

    def route_target(self, name: str, rows: Tensor) -> tuple[Target, Tensor]:
        """The target that the route attacks in place of the defence, and the labels for it."""
        y = self.y[rows]
        if name in surrogates(self.model):
            return self.wrap(surrogates(self.model)[name]), y
        if name in DISTANCES:
            distance = self.distance(name, rows)
            return self.wrap(distance, random=distance.random), torch.zeros_like(y)
        if name == "fixed-noise":
            return self.wrap(FixedNoise(self.model), random=False), y
        if name == "smoothed":
            return self.wrap(self.smoothed, random=True), y
        functions: dict[str, Callable[[], Function]] = {
            "base": lambda: self.model.base,
            "presoftmax": lambda: self.model.presoftmax,
            "identity": lambda: self.straight_through,
            "mean-logit": lambda: self.mean_draw,
        }
        if name in functions:
            return self.wrap(functions[name]()), y
        return self.model, y

    def smoothed(self, images: Tensor) -> Tensor:
        """The defence on images with Gaussian noise of a quarter of the ball's size."""
        scale = 1.0 if self.threat.norm == "linf" else self.x[0].numel() ** -0.5
        deviation = SMOOTHING * float(self.threat.eps) * scale
        logits: Tensor = self.model(images + deviation * torch.randn_like(images))
        return logits

    def straight_through(self, images: Tensor) -> Tensor:
        """The defence, with the purifier's gradient taken for 1."""
        purified = images + (self.model.purify(images) - images).detach()
        logits: Tensor = self.model.classify(purified)
        return logits

    def mean_draw(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model.per_draw(images).mean(1)
        return logits

    def distance(self, name: str, rows: Tensor) -> Distance:
        if name == "latent":
            return self.latent_distance(self.model.latent, rows)
        return purifier_distance(self.model.purify, self.x[rows])

    @functools.cached_property
    def lent_targets(self) -> list[Target]:
        return [self.wrap(function) for function in self.lent]

    def surrogate_models(self) -> list[Target]:
        """The `lent` functions as targets, made at the first call, since that takes draws."""
        return self.lent_targets

    def wrap(self, function: Function, *, random: bool | None = None) -> Target:
        """A function of images as a target of its own.

        Whether it is random is tried out on two images where `random` does not say it.
        """
        if random is None:
            with torch.no_grad():
                random = not torch.equal(function(self.x[:2]), function(self.x[:2]))
        module = FunctionModule(function)
        classes = self.model.classes
        return Target(module, classes=classes, stochastic=random, device=self.model.device)

    @torch.no_grad()
    def latent_distance(self, latent: Function, rows: Tensor) -> Distance:
        """The distance of `latent` from that of the nearest image of the batch of another label.

        Where no image has another label, it is the distance from the image's own.
        """
        codes = latent(self.x).flatten(1)  # (B,D)
        same_label = self.y[rows].unsqueeze(1) == self.y.unsqueeze(0)  # (R,B)
        apart = torch.cdist(codes[rows], codes).masked_fill(same_label, torch.inf)
        least, nearest = apart.min(1)  # (R,)
        goals = torch.where(least.isfinite().unsqueeze(1), codes[nearest], codes[rows])
        random = not torch.equal(latent(self.x[:2]).flatten(1), codes[:2])
        return Distance(latent, goals, nearer=True, random=random)


@torch.no_grad()
def purifier_distance(purify: Function, x: Tensor) -> Distance:
    """The distance of the purified image from the image, where a perfect purifier leaves it."""
    random = not torch.equal(purify(x[:2]), purify(x[:2]))
    return Distance(purify, x.flatten(1), nearer=False, random=random)


class Distance:
    """A distance between `function` and its goals (R,D), as if it were two logits.

    Under the label 0 their margin rises as the function comes nearer to the goals, or goes away
    from them.
    """

    def __init__(self, function: Function, goals: Tensor, *, nearer: bool, random: bool) -> None:
        self.function = function
        self.goals = goals
        self.sign = 1.0 if nearer else -1.0
        self.random = random

    def __call__(self, images: Tensor) -> Tensor:
        goals = self.goals.repeat_interleave(len(images) // len(self.goals), 0)
        squared = (self.function(images).flatten(1) - goals).square().sum(1)
        return torch.stack([self.sign * squared, torch.zeros_like(squared)], 1)


class FixedNoise:
    """The defence under one draw of its randomness, the same at every call."""

    def __init__(self, model: Target) -> None:
        self.model = model
        self.noise = same_noise(model)

    def __call__(self, images: Tensor) -> Tensor:
        with self.noise():
            logits: Tensor = self.model(images)
        return logits


class FunctionModule(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
