"""Checks on one live defence before any attack: what in it would make a gradient, or a score, unbelievable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.stats import ttest_ind_from_stats
from torch import Tensor, nn

from bench.judging.randomness import seeded
from bench.judging.target import is_correct, margin, predict_draws
from bench.results.record import Flag
from bench.soundness.probes.numerics import optimises, precise, saturated
from bench.soundness.probes.outputs import outputs

ALONE, OTHERS, DRAWS = (
    8,
    24,
    16,
)  # P3: the images whose company changes, the noise images beside them, and draws of a stochastic defence
CHANCE = 1e-4  # P3: how often an honest stochastic defence may be called dependent


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether two calls on the same images differ, the flags raised, and by their codes the figures of the checks that have one."""

    stochastic: bool
    flags: tuple[Flag, ...]
    checks: tuple[tuple[str, float], ...]


def probe(defence: nn.Module, x: Tensor, y: Tensor, eps: float, *, declared: bool) -> Probe:
    """Run the checks that need no attack on images x (n,C,H,W) in [0,1]; `declared` is what the plug-in says of its randomness."""
    with torch.no_grad():
        stochastic = not same(defence, x)
    flags = [
        *determinism(stochastic, declared),
        *(() if stochastic else same_gradient(defence, x, y)),
        *mode(defence),
        *state(defence, x),
        *finite_logits(defence, x),
        *gradients(defence, x, y, eps),
    ]
    error, doubts = differences(defence, x, y, eps)
    flags += [
        *doubts,
        *company(defence, x, y, stochastic),
        *outputs(defence, x, eps, has_surrogate(defence)),
    ]
    if all(flag.id != "D1" for flag in flags):  # which says the same, and more
        flags += saturated(defence, x, eps)
    if not stochastic and all(flag.id != "P2" for flag in flags):
        flags += precise(defence, x, y)
    dynamic, more = optimises(defence, x)
    checks = (
        *(() if error is None else (("D12", round(error, 4)),)),
        *((("P14", 1.0),) if dynamic else ()),
    )
    return Probe(stochastic or declared, (*flags, *more), checks)


def same(defence: nn.Module, x: Tensor, calls: int = 5) -> bool:
    """Whether `calls` predictions of the same images agree to 1e-4 of each normalised logit vector.

    Infinities are compared as they are, and the finite logits beside them among themselves: an infinity would drown their differences.
    """
    first = defence(x)
    unit = F.normalize(first.where(first.isfinite(), 0), dim=1)
    for _ in range(calls - 1):
        again = defence(x)
        if not torch.equal(again.isfinite(), first.isfinite()) or not torch.equal(
            again == torch.inf, first == torch.inf
        ):
            return False
        if (F.normalize(again.where(again.isfinite(), 0), dim=1) - unit).norm(dim=1).max() > 1e-4:
            return False
    return True


def determinism(stochastic: bool, declared: bool) -> list[Flag]:
    if stochastic and not declared:
        return [
            Flag("P1", "hard", "declared deterministic, but two calls on the same images differ")
        ]
    if declared and not stochastic:
        return [Flag("P1", "soft", "declared stochastic, but five calls on the same images agree")]
    return []


def same_gradient(defence: nn.Module, x: Tensor, y: Tensor) -> list[Flag]:
    """P2: two gradients of the margin at the same images, of a defence whose answers are the same, must be the same."""
    one, other = slope(defence, x, y), slope(defence, x, y)
    if one is None or other is None:  # P11 says so
        return []
    agree = F.cosine_similarity(one.flatten(1).nan_to_num(), other.flatten(1).nan_to_num()) >= 0.999
    moved = (one.nan_to_num() != other.nan_to_num()).flatten(1).any(1)
    differ = float((moved & ~agree).float().mean())
    return (
        [
            Flag(
                "P2",
                "hard",
                f"two gradients at the same image differ on {differ:.1%} of images, though two answers agree",
            )
        ]
        if differ
        else []
    )


def slope(defence: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
    """The gradient (B,C,H,W) of the margin at the images, None where none reaches them."""
    seen = x.clone().requires_grad_()
    with torch.enable_grad():
        value = margin(defence(seen), y).sum()
        return (
            torch.autograd.grad(value, seen, allow_unused=True)[0] if value.requires_grad else None
        )


@torch.no_grad()
def company(defence: nn.Module, x: Tensor, y: Tensor, stochastic: bool) -> list[Flag]:
    """P3: whether the answer to an image depends on the other images of its batch.

    A deterministic defence must answer alike, to 1e-3 of a logit (relative above 1): alone, in another order, and among noise and white images.
    Of a stochastic one the mean margins alone and among these are compared, image by image (Welch's test at `CHANCE`, Holm's correction).
    """
    few, labels = x[:ALONE], y[:ALONE]
    strange = torch.rand(OTHERS, *x.shape[1:], dtype=x.dtype, device=x.device)
    strange[::2] = 1
    crowd = torch.cat([few, strange])
    if not stochastic:
        told = defence(x)[: len(few)]
        others = torch.stack(
            [
                torch.cat([defence(one[None]) for one in few]),
                defence(x.flip(0)).flip(0)[: len(few)],
                defence(crowd)[: len(few)],
            ]
        )
        apart = (
            (~torch.isclose(others, told, rtol=1e-3, atol=1e-3, equal_nan=True))
            .any(2)
            .any(0)
            .float()
            .mean()
        )
        return (
            [
                Flag(
                    "P3",
                    "hard",
                    f"the answer to {apart:.0%} of images depends on the other images of the batch",
                )
            ]
            if apart
            else []
        )
    alone = margin(predict_draws(defence, few, DRAWS), labels[:, None].expand(-1, DRAWS))
    among = torch.stack([margin(defence(crowd)[: len(few)], labels) for _ in range(DRAWS)], 1)
    both = torch.stack([alone, among]).double().cpu()
    spread, mean = torch.std_mean(both[:, both.isfinite().all(2).all(0)], 2)
    moved = ~torch.isclose(
        mean[0], mean[1], rtol=1e-3, atol=1e-3
    )  # less is rounding, which differs with the size of a batch
    chances = [1.0] * int((~moved).sum())
    for i in moved.nonzero().flatten().tolist():
        one, other = ((float(mean[j, i]), float(spread[j, i]), DRAWS) for j in range(2))
        chances.append(float(ttest_ind_from_stats(*one, *other, equal_var=False).pvalue))
    chances.sort()
    worst = min((chance * (len(chances) - i) for i, chance in enumerate(chances)), default=1.0)
    if worst >= CHANCE:
        return []
    return [
        Flag(
            "P3",
            "hard",
            f"the margins of an image depend on the other images of the batch (p {worst:.1g})",
        )
    ]


def mode(defence: nn.Module) -> list[Flag]:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    live = [
        name
        for name, module in defence.named_modules()
        if module.training and isinstance(module, kinds)
    ]
    return [Flag("P4", "hard", f"layers in training mode: {', '.join(live[:3])}")] if live else []


def state(defence: nn.Module, x: Tensor) -> list[Flag]:
    """Whether a prediction changes the defence's own parameters and buffers, or the images that it was given."""
    before = {name: value.clone() for name, value in defence.state_dict().items()}
    given = x.clone()
    with torch.no_grad():
        defence(given)
    changed = [
        name
        for name, value in defence.state_dict().items()
        if not torch.equal(value.nan_to_num(), before[name].nan_to_num())
    ]
    found = (
        [Flag("P5", "hard", f"a prediction changes the defence: {', '.join(changed[:3])}")]
        if changed
        else []
    )
    if not torch.equal(given, x) or given.requires_grad:
        found.append(Flag("P5", "hard", "a prediction edits the images that it is given"))
    return found


@torch.no_grad()
def finite_logits(defence: nn.Module, x: Tensor) -> list[Flag]:
    flat = [torch.full_like(x[:1], value) for value in (0.0, 0.5, 1.0)]
    logits = defence(torch.cat([x, torch.rand_like(x), *flat]))
    nan, inf = (float(bad.any(1).float().mean()) for bad in (logits.isnan(), logits.isinf()))
    found = [Flag("P6", "hard", f"logits hold NaN on {nan:.1%} of legal images")] if nan else []
    if inf:
        found.append(
            Flag(
                "P6",
                "soft" if has_surrogate(defence) else "hard",
                f"logits are infinite on {inf:.1%} of legal images",
            )
        )
    return found


def gradients(defence: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[Flag]:
    """P11, D1 and D2: is there a gradient, is it zero, is it finite, for cross-entropy and margin, at the images and at random points beside them."""
    points = torch.cat([x, (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)])
    labels = torch.cat([y, y])
    zero: dict[str, float] = {}
    nonfinite = 0.0
    losses: dict[
        str, Callable[[Tensor, Tensor], Tensor]
    ] = {  # summed: a mean would make small gradients smaller
        "cross-entropy": lambda z, names: F.cross_entropy(z, names, reduction="sum"),
        "margin": lambda z, names: margin(z, names).sum(),
    }
    for name, loss in losses.items():
        seen = points.clone().requires_grad_()
        with torch.enable_grad():
            logits = defence(seen)
            try:
                (grad,) = torch.autograd.grad(loss(logits, labels), seen)
            except RuntimeError:
                severity = "soft" if has_surrogate(defence) else "hard"
                return [
                    Flag("P11", severity, "no gradient reaches the image: attacks need a surrogate")
                ]
        held = is_correct(logits.detach(), labels)
        flat = grad.flatten(1)
        good = flat.isfinite().all(1)
        nonfinite = max(nonfinite, float((~good).float().mean()))
        zero[name] = float((good & (flat == 0).all(1))[held].float().mean()) if held.any() else 0.0
    found = []
    least, ce = min(zero.values()), zero["cross-entropy"]
    if least >= 0.1:
        found.append(
            Flag(
                "D1",
                "hard",
                f"the gradient is exactly zero on {least:.1%} of correctly classified images, for every loss",
            )
        )
    elif ce >= 0.1:
        found.append(
            Flag(
                "D1",
                "soft",
                f"the cross-entropy gradient (not the margin's) is exactly zero on {ce:.1%} of correctly classified images",
            )
        )
    if nonfinite:
        found.append(
            Flag(
                "D2",
                "hard" if nonfinite >= 0.01 else "soft",
                f"the gradient is NaN or infinite on {nonfinite:.1%} of images",
            )
        )
    return found


def differences(
    defence: nn.Module, x: Tensor, y: Tensor, eps: float, directions: int = 4
) -> tuple[float | None, list[Flag]]:
    """D12: the margin's gradient against its central differences over eps/100, along random signs, at random points beside the images.

    Gives the median of |D - g u| / (|D| + |g u|): 0 where they agree, 1 where one is nothing beside the other. A stochastic defence draws the same
    noise at both ends and for the gradient. None without an eps, where nothing is differentiable (P11 says so), or where all is flat.
    """
    if not eps:
        return None, []
    step, seed = eps / 100, int(torch.randint(2**62, ()))
    points = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(step, 1 - step)

    def gap(images: Tensor) -> Tensor:
        with seeded(images.device, seed):
            return margin(defence(images), y)

    seen = points.clone().requires_grad_()
    with torch.enable_grad():
        value = gap(seen).sum()
        slope = (
            torch.autograd.grad(value, seen, allow_unused=True)[0] if value.requires_grad else None
        )
    if slope is None:
        return None, []
    errors, flat = [], 0.0
    with torch.no_grad():
        for _ in range(directions):
            way = torch.randint_like(x, 2) * 2 - 1
            risen = (gap(points + step * way) - gap(points - step * way)) / (2 * step)
            told = (slope.nan_to_num() * way).flatten(1).sum(1)
            errors.append((risen - told).abs() / (risen.abs() + told.abs()).clamp_min(1e-12))
            flat = max(flat, float((risen == 0).float().mean()))
    error = float(torch.stack(errors).median())
    if error < 0.5 and flat <= 0.1:
        return error, []
    severity = "soft" if has_surrogate(defence) else "hard"
    says = f"the gradient is off by {error:.2f} (0 agrees, 1 does not) from differences over eps/100; {flat:.1%} of these are exactly zero"
    return error, [Flag("D12", severity, says)]


def has_surrogate(defence: nn.Module) -> bool:
    return bool(getattr(defence, "surrogates", None)) or callable(
        getattr(defence, "presoftmax", None)
    )
