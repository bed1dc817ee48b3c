"""Plug-ins whose right answers are known, and attacks that misbehave.

The defences are a linear model in the middle of the box, a coin, and a secret key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.data.sample import Dataset, dataset_of
from bench.questions.registry import attack, build_classifier, classifier, dataset, defence

ALL = {"linf", "l2", "l1", "l0"}
SIZE = 40


@dataset(
    "toy",
    norm="linf",
    eps={"linf": "1/10", "l2": "1/5", "l1": "2/5", "l0": "1"},
    n=20,
    budget="quick",
    roles={"standard": "toy:linear", "robust": "toy:linear"},
)
def toy(split: str, data_dir: Path) -> Dataset:
    """Points on both sides of a plane, at linf distances (i + 1/2) / 100 from it.

    There are two points for each i = 0, 1, ..., 19.
    """
    weight = Linear().weight
    distance = (torch.arange(SIZE) // 2 + 0.5) / 100
    side = torch.where(torch.arange(SIZE) % 2 == 0, 1.0, -1.0)
    # the step that changes weight @ x by distance * |weight|_1, where every coordinate moves by
    # `distance`
    x = 0.5 + side[:, None] * distance[:, None] * weight.sign()
    return dataset_of("toy", x.view(SIZE, 1, 2, 3), (side > 0).long(), classes=2)


@dataset(
    "toy-grey",
    norm="linf",
    eps={"linf": "1/10"},
    n=24,
    budget="quick",
    roles={"standard": "toy:net", "robust": "toy:net"},
)
def toy_grey(split: str, data_dir: Path) -> Dataset:
    """Grey images of 8x8 whose first pixel says the class.

    It is 0.1 or 0.9, which eps 1/10 does not change into each other.
    """
    x = torch.full((24, 1, 8, 8), 0.5)
    y = torch.arange(24) % 2
    x[:, 0, 0, 0] = 0.1 + 0.8 * y
    return dataset_of("toy-grey", x, y, classes=2)


class Linear(nn.Module):
    """Two logits -s and s with s = 4 weight @ (x - 1/2).

    The smallest linf change that flips the answer is |s| / (4 |weight|_1).
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, -2.0, 3.0, -0.5, 0.25, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        score = 4 * (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([-score, score], 1)


class Wrapped(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.base = Linear()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.change(self.base(x), x)
        return logits


class Key(nn.Module):
    """Logits -s and s: s is 3 for the class and -3 for the other, plus key @ (other pixels - 1/2).

    There are 63 other pixels. Each call draws fresh signs as the key. At eps 1/10 who knows the key
    moves s by 6.3. Who does not moves it by at most 0.8 (a standard deviation), and is right once
    in 10^4 draws.
    """

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1) - 0.5
        key = 2.0 * torch.randint(0, 2, (len(x), flat.shape[1] - 1), device=x.device) - 1
        score = 3 * flat[:, 0].sign() + (key * flat[:, 1:]).sum(1)
        return torch.stack([-score, score], 1)


def net() -> nn.Module:
    """Random features of 8x8 images under a linear head, always the same.

    They are nearly linear, so that gradients lead straight to what is planted.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.Softplus(), nn.Linear(128, 2)
        ).requires_grad_(False)


@classifier("toy", names=lambda: ["linear", "net"])
def toy_classifier(name: str) -> nn.Module:
    """The linear model, or random features of grey images."""
    return net() if name == "net" else Linear()


@defence("toy-key", stochastic=True)
def toy_key(*, classifier: str = "@standard", size: int = 64) -> nn.Module:
    """Nothing but a random key protects it."""
    return Key()


@defence("toy-masked")
def toy_masked(*, classifier: str = "@standard", leak: float = 0.0) -> nn.Module:
    """The classifier's answers, and a gradient of `leak` times its own.

    All that is planted can be found, and nothing by gradients where the leak is 0.
    """
    return Masked(build_classifier(classifier), leak)


class Masked(nn.Module):
    def __init__(self, base: nn.Module, leak: float) -> None:
        super().__init__()
        self.base = base
        self.leak = leak

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.base(x.detach() + self.leak * (x - x.detach()))
        return answer if answer.requires_grad else answer + 0 * x.sum((1, 2, 3))[:, None]


@defence("toy-linear", bare=True)
def toy_linear(*, classifier: str = "@standard") -> nn.Module:
    """The linear model as a defence."""
    model: nn.Module = build_classifier(classifier)
    return model


@defence("toy-coin", stochastic=True)
def toy_coin(*, classifier: str = "@standard", p: float = 0.5) -> nn.Module:
    """Answers as the linear model with probability `p`, and the opposite otherwise.

    The chance is a new one for each example and call.
    """
    return Wrapped(
        lambda logits, x: torch.where(torch.rand(len(x), 1, device=x.device) < p, logits, -logits)
    )


@defence("toy-hidden-coin", bare=True)
def toy_hidden_coin(*, classifier: str = "@standard") -> nn.Module:
    """Declared deterministic; is not."""
    return Wrapped(lambda logits, x: logits + 0.1 * torch.randn_like(logits))


@defence("toy-nan-logits", bare=True)
def toy_nan_logits(*, classifier: str = "@standard") -> nn.Module:
    """Right on clean images, NaN on any other: must never count as robust."""
    return Wrapped(lambda logits, x: torch.where(on_grid(x)[:, None], logits, torch.nan))


@defence("toy-nan-gradient", bare=True)
def toy_nan_gradient(*, classifier: str = "@standard") -> nn.Module:
    """The linear model, whose forward is its own bit for bit, and whose gradient is NaN."""
    return Wrapped(
        lambda logits, x: logits + 0 * ((x - x.detach()) ** 2).sum((1, 2, 3)).sqrt()[:, None]
    )


@defence("toy-rounded", bare=True)
def toy_rounded(*, classifier: str = "@standard") -> nn.Module:
    """The linear model on rounded logits: its gradient is zero."""
    return Wrapped(lambda logits, x: logits.round() + 0 * x.sum((1, 2, 3))[:, None])


def on_grid(x: Tensor) -> Tensor:
    """Whether all coordinates are equally far from the middle, as those of `toy` are."""
    away = (x - 0.5).abs().flatten(1)
    return (away - away[:, :1]).abs().amax(1) < 1e-6


@attack(
    "toy-exact",
    norms={"linf"},
    access="white-box",
    family="gradient",
    calls=lambda knobs, stochastic: 3,
)
def toy_exact(model: Any, x: Tensor, y: Tensor, threat: Any, *, scale: float = 1.0) -> Tensor:
    """One sign step of `scale` times eps: optimal against the linear model."""
    x.requires_grad_()
    logits = model(x)
    margin = logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])
    (grad,) = torch.autograd.grad(margin.sum(), x)
    return x.detach() + scale * float(threat.eps) * grad.nan_to_num().sign()


@attack("toy-several", norms={"linf"}, access="white-box", family="gradient")
def toy_several(model: Any, x: Tensor, y: Tensor, threat: Any) -> dict[str, Tensor]:
    """Two routes: half of an optimal step, twice over, and a whole step for class 0 alone."""
    half = toy_exact(model, x, y, threat, scale=0.5)
    whole = toy_exact(model, x.detach(), y, threat)
    return {
        "half": torch.stack([half, half]),
        "whole": torch.where(y[:, None, None, None] == 0, whole, x.detach()),
    }


@attack("liar-leaves", norms=ALL, access="score", family="score")
def liar_leaves(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Leaves ball and box."""
    return 1 - x + 3


@attack("liar-crashes", norms=ALL, access="score", family="score")
def liar_crashes(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Crashes."""
    raise RuntimeError("the attack fell over")


@attack("liar-idle", norms=ALL, access="white-box", family="gradient")
def liar_idle(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Does nothing."""
    return x


@attack("liar-edits", norms=ALL, access="white-box", family="gradient")
def liar_edits(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Edits x and y in place: a harness that shares them would judge other images."""
    y.copy_(1 - y)
    return x.copy_(1 - x)


@attack("liar-nan", norms=ALL, access="white-box", family="gradient")
def liar_nan(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Returns NaN."""
    return x * torch.nan


@attack("liar-shape", norms=ALL, access="white-box", family="gradient")
def liar_shape(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Returns fewer images than it was given."""
    return x[:1]


@attack("liar-claims", norms=ALL, access="decision", family="decision")
def liar_claims(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Breaks what it was handed: parameters, mode and the global random state."""
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    model.train()
    torch.manual_seed(0)
    return x


@attack("spy-gradient", norms=ALL, access="score", family="score")
def spy_gradient(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Has score access and asks for a gradient."""
    x.requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    return x + grad


@attack("spy-logits", norms=ALL, access="decision", family="decision")
def spy_logits(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Has decision access and checks that it sees labels and no more."""
    seen = model(x)
    assert set(seen.unique().tolist()) <= {0.0, 1.0}
    assert (seen.sum(1) == 1).all()
    return x


@attack("spy-parts", norms=ALL, access="score", family="score")
def spy_parts(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Has score access and reaches for the inner classifier."""
    return x + 0 * model.base(x).sum()


@attack("toy-transfer", norms={"linf"}, access="transfer", family="transfer")
def toy_transfer(
    model: Any, x: Tensor, y: Tensor, threat: Any, *, source: str = "@standard"
) -> Tensor:
    """The exact step on the surrogate."""
    return toy_exact(model, x, y, threat)


@attack("toy-two", norms={"linf"}, access="white-box", family="gradient")
def toy_two(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Two candidates: a useless one and the exact one."""
    return torch.stack([x, toy_exact(model, x.clone(), y, threat)])
