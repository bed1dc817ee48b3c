"""Models whose smallest perturbation is known in closed form, and what the attack tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from bench.judging.norms import to_ball
from bench.judging.target import Target, is_correct
from bench.questions import registry
from bench.questions.spec import ThreatModel

# Knobs small enough for a test; what is not named has its default.
TINY: dict[str, dict[str, Any]] = {
    "none": {},
    "noise": {"tries": 12},
    "gaussian-noise": {"tries": 12},
    "fgsm": {},
    "pgd": {"steps": 4, "restarts": 2, "loss": "ce+targeted", "targets": 2},
    "pgd-eot": {"steps": 4, "eot": 3},
    "apgd": {"steps": 4, "loss": "ce+targeted", "restarts": 2, "targets": 2},
    "apgd-eot": {"steps": 4, "eot": 3, "wide": 2.0},
    "deepfool": {"steps": 4, "targets": 2},
    "cw": {"steps": 5, "searches": 2, "eot": 2},
    "fab": {"steps": 3, "targets": 2, "eot": 2},
    "autoattack": {"steps": 4, "queries": 12, "targets": 2, "eot": 2, "rand_steps": 4},
    "square": {"queries": 15, "eot": 2},
    "spsa": {"steps": 3, "samples": 5},
    "nes": {"steps": 3, "samples": 5},
    "onepixel": {"popsize": 8, "steps": 3},
    "pixle": {"steps": 3, "samples": 5, "eot": 2},
    "boundary": {"steps": 12, "eot": 3},
    "hopskipjump": {"queries": 120, "initial": 20, "eot": 3},
    "geoda": {"queries": 120, "eot": 3},
    "transfer": {"steps": 4},
    "adaptive": {"steps": 4, "eot": 2, "loss": "margin+targeted", "targets": 2},
    "eight-bit": {"attack": "pgd[steps=4]"},
}


class Linear(nn.Module):
    """Logits x @ weight.T + bias."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class Wrapped(nn.Module):
    def __init__(self, base: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.base = base
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.base(x), x)


@dataclass(frozen=True)
class Problem:
    """Images in the middle of the box, and their labels under `model`.

    `optimum` is the size of the smallest perturbation of each (B,), by norm.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    optimum: dict[str, Tensor]

    @property
    def classes(self) -> int:
        return int(self.model(self.x[:1]).shape[1])

    def target(self, access: str = "white-box", stochastic: bool = False) -> Target:
        return Target(
            self.model,
            access=access,
            stochastic=stochastic,
            classes=self.classes,
            device=self.x.device,
        )


def two_classes(
    batch: int = 12,
    channels: int = 1,
    size: int = 8,
    gap: float | None = None,
    smooth: bool = False,
) -> Problem:
    """Two classes on either side of one plane.

    The optimum is the distance to the plane in the dual norm, the same for every image.
    """
    generator = torch.Generator().manual_seed(channels * size)
    weight = torch.randn(channels, size, size, generator=generator)
    if smooth:  # patches of equal sign, as images have them
        signs = torch.randn(channels, 2, 2, generator=generator).sign()
        signs = signs.repeat_interleave(size // 2, 1).repeat_interleave(size // 2, 2)
        weight = weight.abs() * signs
    flat = weight.flatten() / weight.norm()
    if gap is None:
        gap = 0.3 * float(flat.abs().max())  # so that no optimum reaches the box
    x = 0.5 + 0.1 * (2 * torch.rand(batch, channels * size * size, generator=generator) - 1)
    side = torch.where(torch.arange(batch) % 2 == 0, 1.0, -1.0)
    x = x + (side * gap - (x - 0.5) @ flat).unsqueeze(1) * flat
    score = flat / 2
    model = Linear(torch.stack([-score, score]), torch.stack([score.sum(), -score.sum()]) / 2)
    optimum = {
        "linf": gap / flat.abs().sum(),
        "l2": torch.tensor(gap),
        "l1": gap / flat.abs().max(),
    }
    return Problem(
        model,
        x.view(batch, channels, size, size),
        (side > 0).long(),
        {norm: value.expand(batch) for norm, value in optimum.items()},
    )


def many_classes(classes: int, batch: int = 8, channels: int = 3, size: int = 8) -> Problem:
    """Several classes, and random images near the middle, labelled by the model.

    The optimum is the least over the wrong classes.
    """
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, channels * size * size, generator=generator) / 10
    x = 0.5 + 0.02 * torch.randn(batch, channels * size * size, generator=generator)
    model = Linear(weight, -0.5 * weight.sum(1))
    logits = model(x)
    y = logits.argmax(1)
    gap = logits.gather(1, y.unsqueeze(1)) - logits
    normal = weight.unsqueeze(0) - weight[y].unsqueeze(1)
    own = nn.functional.one_hot(y, classes).bool()
    dual = {"linf": normal.abs().sum(2), "l2": normal.norm(dim=2), "l1": normal.abs().amax(2)}
    optimum = {
        norm: (gap / length.clamp_min(1e-12)).masked_fill(own, torch.inf).amin(1)
        for norm, length in dual.items()
    }
    return Problem(model, x.view(batch, channels, size, size), y, optimum)


def candidates(
    problem: Problem,
    name: str,
    norm: str,
    eps: float,
    target: Target | None = None,
    seed: int = 0,
    **knobs: Any,
) -> Tensor:
    """What the attack proposes, (m,B,C,H,W), as it gave it."""
    entry = registry.attacks.get(name)
    threat = ThreatModel(norm, Fraction(eps).limit_denominator(10**9), entry.facts.access)
    torch.manual_seed(seed)
    # for `transfer` the harness hands over the surrogate
    access = "white-box" if threat.access == "transfer" else threat.access
    target = target or problem.target(access)
    x_adv = entry.make(target, problem.x.clone(), problem.y.clone(), threat, **knobs)
    if isinstance(x_adv, dict):
        x_adv = torch.stack(list(x_adv.values()))
    x_adv = x_adv.detach()
    return x_adv if x_adv.dim() == 5 else x_adv.unsqueeze(0)


def fooled(problem: Problem, name: str, norm: str, eps: float, **knobs: Any) -> Tensor:
    """For which examples a candidate of the attack, put into the ball, is misclassified."""
    x_adv = candidates(problem, name, norm, eps, **knobs)
    projected = torch.stack([to_ball(images, problem.x, norm, eps) for images in x_adv])
    return misclassified(problem, projected).any(0)


def misclassified(problem: Problem, x_adv: Tensor) -> Tensor:
    """Which of the candidates (m,B,C,H,W) the model misclassifies (m,B)."""
    return torch.stack([~is_correct(problem.model(images), problem.y) for images in x_adv])


def nan_gradients(problem: Problem, rows: Tensor) -> Problem:
    """The problem with gradients that are NaN for the examples `rows` (B,), and logits as ever."""

    def poison(logits: Tensor, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach().flatten(1), problem.x.flatten(1)).argmin(1)
        ill = rows[nearest].nonzero().squeeze(1)
        root_of_zero = ((x[ill] - x[ill].detach()) ** 2).sum((1, 2, 3)).sqrt()
        return logits.index_add(0, ill, 0 * root_of_zero.unsqueeze(1).expand(-1, 2))

    return Problem(Wrapped(problem.model, poison), problem.x, problem.y, {})


def nan_here_and_there(logits: Tensor, x: Tensor) -> Tensor:
    """The logits (B,K), NaN for about a third of the images."""
    ill = x.sum((1, 2, 3)) * 1e3 % 3 < 1
    return torch.where(ill.unsqueeze(1), torch.nan, logits)
