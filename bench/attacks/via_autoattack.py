"""AutoAttack and Square through pyautoattack (Croce & Hein 2020, arXiv:2003.01690; Andriushchenko et al. 2020, arXiv:1912.00049).

The library's attacks are used one by one. Its front class is not: it re-seeds from the clock unless told not to, keeps a "dynamic
defence" counter for the life of the process, switches off `sys.settrace`, checks the model anew for every batch, and on a stochastic
model throws away the candidates that one lucky draw calls failures. On a deterministic model the order, the parameters and the
results are those of its `standard` and `plus` versions, bit for bit (a test holds this).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bench.attacks.draws import same_noise
from bench.attacks.losses import finite
from bench.judging.target import Target, is_correct, margin
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
SQUARE = {"p_init": 0.8, "n_restarts": 1, "resc_schedule": False}


class Seen(nn.Module):
    """The target as the library expects it: contiguous images, a graph that reaches them, finite gradients, logits free to be overwritten.

    With `eot` > 1 the logits are the mean over that many draws. They are drawn in a block of `noise`.
    """

    def __init__(
        self,
        model: Target,
        eot: int = 1,
        noise: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.model, self.eot, self.noise = model, eot, noise

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)
            x.register_hook(finite)
        with self.noise():
            logits: Tensor = (
                self.model.draws(x, self.eot).mean(1) if self.eot > 1 else self.model(x)
            )
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits.clone()


class Unbeaten(nn.Module):
    """Logits (B,K) that are never wrong, and whose margins against `y` (B,) have the order of those of `seen`: a search goes on to its end."""

    def __init__(self, seen: Seen, y: Tensor) -> None:
        super().__init__()
        self.seen, self.y = seen, y

    def forward(self, x: Tensor) -> Tensor:
        logits = self.seen(x)
        lead = -margin(logits, self.y)
        root = lead.hypot(torch.ones_like(lead))
        above = torch.where(
            lead > 0, root + lead, 1 / (root - lead)
        )  # root + lead, which rounds to zero where the lead is far below it
        return torch.zeros_like(logits).scatter(1, self.y.unsqueeze(1), above.unsqueeze(1))


@attack(
    "autoattack",
    norms={"linf", "l2", "l1"},
    access="white-box",
    family="gradient",
    returns_clean=True,
    ensemble=True,
    least_classes=3,
    choices={"version": ("auto", "standard", "plus", "rand")},
    calls=lambda knobs, stochastic: passes(knobs, stochastic),
)
def autoattack(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    version: str = "auto",
    steps: int = 100,
    queries: int = 5000,
    targets: int = 9,
    eot: int = 20,
    rand_steps: int = 100,
) -> Tensor:
    """AutoAttack: its `standard` version on a deterministic defence, its `rand` version on a stochastic one.

    `standard` runs APGD-CE, targeted APGD-DLR, targeted FAB and Square in turn on what is left; `steps` are theirs, `queries` Square's,
    `targets` the number of wrong classes that the targeted ones try. With three classes APGD-DLR takes the place of its targeted form, with
    two none does; Square is left out where it has no form for the size of the images (12x12 in l2, say).

    `plus` runs APGD-CE and APGD-DLR, of five restarts each, and untargeted FAB, of five too, then Square and the two targeted ones. FAB asks for a
    gradient of every class: in the number of calls they are taken to be one more than `targets`.

    `rand` runs APGD-CE and APGD-DLR with `rand_steps` steps of `eot` draws on every example. It returns the highest-loss and the last
    misclassified iterate of each (4,B,C,H,W) for the harness to choose from: the library's own choice, made on single draws, would return
    the clean image after a lucky one. Croce & Hein 2020, arXiv:2003.01690.
    """
    quiet()
    x = x.contiguous()
    if version == "rand" or (version == "auto" and model.stochastic):
        return rand(model, x, y, threat, rand_steps, eot)
    return in_turn(model, x, y, threat, steps, queries, targets, plus=version == "plus")


@attack(
    "square",
    norms={"linf", "l2", "l1"},
    access="score",
    family="score",
    random_search=True,
    calls=lambda knobs, stochastic: knobs["queries"] * (knobs["eot"] if stochastic else 1),
    added_later={"common"},
)
def square(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    queries: int = 5000,
    eot: int = 20,
    common: bool = False,
) -> Tensor:
    """Random search over square patches: `queries` queries per example; on a deterministic defence an example leaves when it is fooled.

    On a stochastic one each query asks for the mean logits of `eot` draws, each of them counted, and the search goes on to its last query:
    where their margin turns positive, an image is wrong but half of the time. With `common` an image meets the same `eot` draws at every query,
    so that the search compares images and not luck; no deployed defence grants that. Andriushchenko et al. 2020, arXiv:1912.00049.
    """
    quiet()
    if not tiles(x, threat.norm):
        raise ValueError(
            f"pyautoattack's Square has no {threat.norm} form for images of {x.shape[2]}x{x.shape[3]}: its first tiles do not fit"
        )
    x = x.contiguous()
    noise = same_noise(model) if common and model.stochastic else nullcontext
    seen = Unbeaten(Seen(model, eot, noise), y) if model.stochastic else Seen(model)
    x_adv = x.clone()
    with torch.no_grad():
        todo = is_correct(seen(x), y)
        if todo.any() and queries > 1:
            run = square_search()(
                seen,
                norm=NAMES[threat.norm],
                eps=float(threat.eps),
                n_queries=queries - 2,
                seed=seed(),
                device=model.device,
                **SQUARE,
            )
            run.init_hyperparam(x)
            x_adv[todo] = run.attack_single_run(x[todo], y[todo])[1]
    return x_adv


def in_turn(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    steps: int,
    queries: int,
    targets: int,
    *,
    plus: bool,
) -> Tensor:
    """The standard version, or the plus version: each attack on what is left by those before."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT

    seen, sparse = Seen(model), threat.norm == "l1"
    facts: dict[str, Any] = {
        "norm": NAMES[threat.norm],
        "eps": float(threat.eps),
        "seed": seed(),
        "device": model.device,
    }
    climbing = {
        **facts,
        "n_iter": steps,
        "use_largereps": sparse and not plus,
        "logger": logging.getLogger("auto-attack"),
    }
    others = min(targets, model.classes - 1)
    first = [APGDAttack(seen, loss="ce", n_restarts=5 if sparse or plus else 1, **climbing)]
    last = [FABAttack_PT(seen, n_iter=steps, targeted=True, n_target_classes=others, **facts)]
    if model.classes > 3:
        last.insert(
            0,
            APGDAttack_targeted(
                seen, n_target_classes=min(others, 5) if sparse and not plus else others, **climbing
            ),
        )
    if model.classes > 2 and (plus or model.classes == 3):
        first.append(APGDAttack(seen, loss="dlr", n_restarts=5 if plus else 1, **climbing))
    if plus:
        first.append(FABAttack_PT(seen, n_iter=steps, n_restarts=5, **facts))
    anywhere = (
        [square_search()(seen, n_queries=queries, **facts, **SQUARE)]
        if tiles(x, threat.norm)
        else []
    )
    runs = [*first, *anywhere, *last] if plus else [*first, *last, *anywhere]
    x_adv = x.clone()
    with torch.no_grad():
        alive = is_correct(seen(x), y)
        for run in runs:
            rows = alive.nonzero().squeeze(1)
            if not len(rows):
                break
            made = run.perturb(x[rows], y[rows]).detach()
            fooled = ~is_correct(seen(made), y[rows])
            x_adv[rows[fooled]] = made[fooled]
            alive[rows[fooled]] = False
    return x_adv


def rand(model: Target, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, eot: int) -> Tensor:
    from pyautoattack.autopgd_base import APGDAttack

    candidates = []
    for loss in ("ce", "dlr") if model.classes > 2 else ("ce",):
        run = APGDAttack(
            Seen(model),
            loss=loss,
            norm=NAMES[threat.norm],
            eps=float(threat.eps),
            n_iter=steps,
            eot_iter=eot,
            seed=seed(),
            device=model.device,
            logger=logging.getLogger("auto-attack"),
        )
        run.init_hyperparam(x)
        highest, _, _, misclassified = run.attack_single_run(x, y)
        candidates += [highest.detach(), misclassified.detach()]
    return torch.stack(candidates)


def square_search() -> Any:
    """The library's Square, which crashes in l2 and l1 when the last margin left is exactly 0 or NaN: both are successes."""
    from pyautoattack.square import SquareAttack

    class Square(SquareAttack):  # type: ignore[misc]
        def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            margin, loss = super().margin_and_loss(x, y)
            return torch.where(margin.isnan() | (margin == 0), -1e-30, margin), loss

    return Square


def tiles(x: Tensor, norm: str) -> bool:
    """Whether the library's Square can start: in l2 and l1 it lays a fifth of the image's height side by side, and may run over the edge."""
    size = x.shape[2]
    if norm == "linf":
        return True
    tile = size // 5
    return tile == 1 or (
        tile > 1 and size == x.shape[3] and (size - 5 * tile) // 2 + size // tile * tile <= size
    )


def passes(knobs: Mapping[str, Any], stochastic: bool) -> int:
    """The most forward passes per example, a backward counting as two."""
    if knobs["version"] == "rand" or (knobs["version"] == "auto" and stochastic):
        return 6 * (int(knobs["rand_steps"]) + 1) * int(knobs["eot"])
    steps, targets = int(knobs["steps"]), int(knobs["targets"])
    climb = 3 * (steps + 3)  # APGD, in l1 with two more starts for its larger radii
    more = (
        5 * climb + 5 * ((2 * (targets + 1) + 2) * steps + 3) + 8
        if knobs["version"] == "plus"
        else 0
    )
    return (
        1
        + 5 * climb
        + targets * (climb + 1)
        + targets * (4 * steps + 4)
        + int(knobs["queries"])
        + 12
        + more
    )


def seed() -> int:
    """A seed for the library from the global generator, which the harness has seeded for this batch."""
    return int(torch.randint(2**31, ()))


def quiet() -> None:
    """Its warnings go to whoever configures logging, and otherwise nowhere: the harness's own probes say the same and keep it."""
    logger = logging.getLogger("auto-attack")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
