"""AutoAttack and Square through pyautoattack.

Croce & Hein 2020, arXiv:2003.01690; Andriushchenko et al. 2020, arXiv:1912.00049.

The library's attacks are used one by one. Its front class is not used. That class re-seeds from the
clock unless told not to, and keeps a "dynamic defence" counter for the life of the process. It
switches off `sys.settrace`, and checks the model anew for every batch. On a stochastic model it
throws away the candidates that one lucky draw calls failures. On a deterministic model our order,
parameters and results are those of its `standard` and `plus` versions, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.attacks.draws import same_noise
from bench.attacks.losses import zero_nonfinite
from bench.judging.target import Target, is_correct, margin
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
SQUARE = {"p_init": 0.8, "n_restarts": 1, "resc_schedule": False}


class LibraryModel(nn.Module):
    """The target as the library expects it.

    Images are contiguous, a graph reaches them, gradients are finite, and the library is free to
    overwrite the logits. With `eot` > 1 the logits are the mean over that many draws. They are
    drawn in a block of `noise`.
    """

    def __init__(
        self,
        model: Target,
        eot: int = 1,
        noise: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.model = model
        self.eot = eot
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        wants_gradient = x.requires_grad and torch.is_grad_enabled()
        if wants_gradient:
            x = x.view_as(x)
            x.register_hook(zero_nonfinite)
        with self.noise():
            logits: Tensor = (
                self.model.draws(x, self.eot).mean(1) if self.eot > 1 else self.model(x)
            )
        if wants_gradient and not logits.requires_grad:
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits.clone()


class NeverWrong(nn.Module):
    """Logits (B,K) that are never wrong, so that a search goes on to its end.

    Their margins against `y` (B,) have the order of those of `model`.
    """

    def __init__(self, model: LibraryModel, y: Tensor) -> None:
        super().__init__()
        self.model = model
        self.y = y

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        lead = -margin(logits, self.y)
        root = lead.hypot(torch.ones_like(lead))
        # root + lead, which rounds to zero where the lead is far below it
        above = torch.where(lead > 0, root + lead, 1 / (root - lead))
        return torch.zeros_like(logits).scatter(1, self.y.unsqueeze(1), above.unsqueeze(1))


def autoattack_calls(knobs: Mapping[str, Any], stochastic: bool) -> int:
    """The most forward passes per example, a backward counting as two."""
    if knobs["version"] == "rand" or (knobs["version"] == "auto" and stochastic):
        return 6 * (int(knobs["rand_steps"]) + 1) * int(knobs["eot"])
    steps = int(knobs["steps"])
    targets = int(knobs["targets"])
    apgd = 3 * (steps + 3)  # in l1 with two more starts for its larger radii
    targeted_apgd = targets * (apgd + 1)
    targeted_fab = targets * (4 * steps + 4)
    standard = 1 + 5 * apgd + targeted_apgd + targeted_fab + int(knobs["queries"]) + 12
    if knobs["version"] != "plus":
        return standard
    fab = (2 * (targets + 1) + 2) * steps + 3
    return standard + 5 * apgd + 5 * fab + 8


@attack(
    "autoattack",
    norms={"linf", "l2", "l1"},
    access="white-box",
    family="gradient",
    returns_clean=True,
    ensemble=True,
    least_classes=3,
    choices={"version": ("auto", "standard", "plus", "rand")},
    calls=autoattack_calls,
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
    """AutoAttack: `standard` on a deterministic defence, `rand` on a stochastic one.

    `standard` runs APGD-CE, targeted APGD-DLR, targeted FAB and Square in turn on what is left.
    `steps` are theirs, `queries` Square's, `targets` the number of wrong classes that the targeted
    ones try. With three classes APGD-DLR takes the place of its targeted form, with two none does.
    Square is left out where it has no form for the size of the images (12x12 in l2, say).

    `plus` runs APGD-CE and APGD-DLR, of five restarts each, and untargeted FAB, of five too. Then
    it runs Square and the two targeted ones. FAB asks for a gradient of every class: the number of
    calls takes the classes to be one more than `targets`.

    `rand` runs APGD-CE and APGD-DLR with `rand_steps` steps of `eot` draws on every example. It
    returns the highest-loss and the last misclassified iterate of each (4,B,C,H,W), and the
    harness chooses. The library's own choice, made on single draws, would return the clean image
    after a lucky one.

    Croce & Hein 2020, arXiv:2003.01690.
    """
    silence_library()
    x = x.contiguous()
    if version == "rand" or (version == "auto" and model.stochastic):
        return run_rand(model, x, y, threat, rand_steps, eot)
    options = AutoAttackOptions(steps, queries, targets, plus=version == "plus")
    return run_in_turn(model, x, y, threat, options)


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
    """Random search over square patches, with `queries` queries per example.

    On a deterministic defence an example leaves when it is fooled. On a stochastic one each query
    is the mean logits of `eot` draws, each of them counted. There the search goes on to its last
    query, since where the mean margin turns positive an image is wrong but half of the time. With
    `common` an image meets the same `eot` draws at every query, so that the search compares images
    and not luck. No deployed defence grants that.

    Andriushchenko et al. 2020, arXiv:1912.00049.
    """
    silence_library()
    if not square_fits(x, threat.norm):
        size = f"{x.shape[2]}x{x.shape[3]}"
        raise ValueError(
            f"pyautoattack's Square has no {threat.norm} form for images of {size}: "
            "its first tiles do not fit"
        )
    x = x.contiguous()
    library_model: nn.Module = LibraryModel(model)
    if model.stochastic:
        noise = same_noise(model) if common else nullcontext
        library_model = NeverWrong(LibraryModel(model, eot, noise), y)
    x_adv = x.clone()
    with torch.no_grad():
        rows = is_correct(library_model(x), y)  # (B,)
        if rows.any() and queries > 1:
            options = library_options(model, threat) | {"n_queries": queries - 2}
            search = square_class()(library_model, **options, **SQUARE)
            search.init_hyperparam(x)
            x_adv[rows] = search.attack_single_run(x[rows], y[rows])[1]
    return x_adv


@dataclass(frozen=True)
class AutoAttackOptions:
    """The knobs of `autoattack` that its versions for deterministic defences need."""

    steps: int
    queries: int
    targets: int
    plus: bool


def run_in_turn(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, options: AutoAttackOptions
) -> Tensor:
    """The standard version, or the plus version: each attack on what is left by those before."""
    library_model = LibraryModel(model)
    attacks = library_attacks(model, library_model, x, threat, options)
    x_adv = x.clone()
    with torch.no_grad():
        alive = is_correct(library_model(x), y)  # (B,)
        for library_attack in attacks:
            rows = alive.nonzero().squeeze(1)  # (R,)
            if not len(rows):
                break
            images = library_attack.perturb(x[rows], y[rows]).detach()
            fooled = ~is_correct(library_model(images), y[rows])
            x_adv[rows[fooled]] = images[fooled]
            alive[rows[fooled]] = False
    return x_adv


def library_attacks(
    model: Target,
    library_model: LibraryModel,
    x: Tensor,
    threat: ThreatModel,
    options: AutoAttackOptions,
) -> list[Any]:
    """The library's attacks, in the order of the version."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT

    plus = options.plus
    is_l1 = threat.norm == "l1"
    common = library_options(model, threat)
    fab = common | {"n_iter": options.steps}
    apgd = apgd_options(common, options.steps) | {"use_largereps": is_l1 and not plus}
    targets = min(options.targets, model.classes - 1)
    apgd_targets = min(targets, 5) if is_l1 and not plus else targets

    ce_restarts = 5 if is_l1 or plus else 1
    untargeted = [APGDAttack(library_model, loss="ce", n_restarts=ce_restarts, **apgd)]
    if model.classes > 2 and (plus or model.classes == 3):
        dlr_restarts = 5 if plus else 1
        untargeted.append(APGDAttack(library_model, loss="dlr", n_restarts=dlr_restarts, **apgd))
    if plus:
        untargeted.append(FABAttack_PT(library_model, n_restarts=5, **fab))
    targeted = []
    if model.classes > 3:
        targeted.append(APGDAttack_targeted(library_model, n_target_classes=apgd_targets, **apgd))
    targeted.append(FABAttack_PT(library_model, targeted=True, n_target_classes=targets, **fab))
    squares = []
    if square_fits(x, threat.norm):
        squares.append(square_class()(library_model, n_queries=options.queries, **common, **SQUARE))
    if plus:
        return [*untargeted, *squares, *targeted]
    return [*untargeted, *targeted, *squares]


def run_rand(
    model: Target, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, eot: int
) -> Tensor:
    """The highest-loss and the last misclassified iterate of each loss (4,B,C,H,W)."""
    from pyautoattack.autopgd_base import APGDAttack

    candidates = []
    for loss in ("ce", "dlr") if model.classes > 2 else ("ce",):
        options = apgd_options(library_options(model, threat), steps) | {"eot_iter": eot}
        apgd = APGDAttack(LibraryModel(model), loss=loss, **options)
        apgd.init_hyperparam(x)
        highest_loss, _, _, misclassified = apgd.attack_single_run(x, y)
        candidates += [highest_loss.detach(), misclassified.detach()]
    return torch.stack(candidates)


def library_options(model: Target, threat: ThreatModel) -> dict[str, Any]:
    """The options that all attacks of the library take."""
    return {
        "norm": NAMES[threat.norm],
        "eps": float(threat.eps),
        "seed": draw_seed(),
        "device": model.device,
    }


def apgd_options(common: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return {**common, "n_iter": steps, "logger": logging.getLogger("auto-attack")}


def square_class() -> Any:
    """The library's Square, which crashes in l2 and l1 when the last margin is exactly 0 or NaN.

    Both are successes.
    """
    from pyautoattack.square import SquareAttack

    class Square(SquareAttack):  # type: ignore[misc]
        def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            margin, loss = super().margin_and_loss(x, y)
            return torch.where(margin.isnan() | (margin == 0), -1e-30, margin), loss

    return Square


def square_fits(x: Tensor, norm: str) -> bool:
    """Whether the library's Square can start.

    In l2 and l1 it lays a fifth of the image's height side by side, and may run over the edge.
    """
    if norm == "linf":
        return True
    height, width = x.shape[2:]
    tile = height // 5
    if tile <= 1:
        return tile == 1
    end = (height - 5 * tile) // 2 + height // tile * tile
    return height == width and end <= height


def draw_seed() -> int:
    """A seed for the library from the global generator, which the harness has seeded."""
    return int(torch.randint(2**31, ()))


def silence_library() -> None:
    """Send its warnings to whoever configures logging, and otherwise nowhere.

    The harness's own probes say the same and keep it.
    """
    logger = logging.getLogger("auto-attack")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
