"""Probes of a defence's gradients: are they there, finite, not zero, repeatable, and true."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.judging.randomness import judging_stream
from bench.judging.target import is_correct, margin
from bench.results.record import Flag
from bench.soundness.codes import D1_SHARE, D2_SHARE, D12_ERROR, D12_FLAT, P2_SAME_COSINE


def has_surrogate(defence: nn.Module) -> bool:
    """Whether the defence declares a way around a stage without gradients."""
    declared = getattr(defence, "surrogates", None)
    return bool(declared) or callable(getattr(defence, "presoftmax", None))


def resolution_of(defence: nn.Module) -> float:
    """The relative step of the type in which a defence answers: a smaller change may be lost."""
    return torch.finfo(getattr(defence, "answer_dtype", torch.float32)).eps


def random_neighbours(x: Tensor, eps: float) -> Tensor:
    """A uniform point (n,C,H,W) of the linf ball of radius `eps` around each image, in the box."""
    return (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)


def margin_gradient(defence: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor | None:
    """The gradient (n,C,H,W) of the margin at the images; None where none reaches them."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        value = margin(defence(leaf), y).sum()
        if not value.requires_grad:
            return None
        return torch.autograd.grad(value, leaf, allow_unused=True)[0]


def probe_repeated_gradient(defence: nn.Module, x: Tensor, y: Tensor) -> list[Flag]:
    """P2: two gradients of a defence whose answers are the same must be the same."""
    first = margin_gradient(defence, x, y)
    second = margin_gradient(defence, x, y)
    if first is None or second is None:  # P11 says so
        return []
    first = first.nan_to_num().flatten(1)  # (n,D)
    second = second.nan_to_num().flatten(1)
    alike = F.cosine_similarity(first, second) >= P2_SAME_COSINE
    moved = (first != second).any(1)
    share = float((moved & ~alike).float().mean())
    if not share:
        return []
    message = (
        f"two gradients at the same image differ on {share:.1%} of images, though two answers agree"
    )
    return [Flag("P2", "hard", message)]


def probe_gradients(defence: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[Flag]:
    """P11, D1 and D2: is there a gradient, is it zero, is it finite.

    Asked of the cross-entropy and of the margin, at the images and at random points near them.
    """
    points = torch.cat([x, random_neighbours(x, eps)])
    labels = torch.cat([y, y])
    zero_shares = {}
    nonfinite = 0.0
    for loss in ("cross-entropy", "margin"):
        leaf = points.clone().requires_grad_()
        with torch.enable_grad():
            logits = defence(leaf)
            try:
                (gradient,) = torch.autograd.grad(summed_loss(loss, logits, labels), leaf)
            except RuntimeError:
                severity = "soft" if has_surrogate(defence) else "hard"
                message = "no gradient reaches the image: attacks need a surrogate"
                return [Flag("P11", severity, message)]
        correct = is_correct(logits.detach(), labels)  # (2n,)
        flat = gradient.flatten(1)
        finite = flat.isfinite().all(1)
        zero = finite & (flat == 0).all(1)
        nonfinite = max(nonfinite, float((~finite).float().mean()))
        zero_shares[loss] = float(zero[correct].float().mean()) if correct.any() else 0.0
    flags = zero_gradient_flags(zero_shares)
    if nonfinite:
        severity = "hard" if nonfinite >= D2_SHARE else "soft"
        message = f"the gradient is NaN or infinite on {nonfinite:.1%} of images"
        flags.append(Flag("D2", severity, message))
    return flags


def summed_loss(loss: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss, summed over the images: a mean would make small gradients smaller."""
    if loss == "margin":
        return margin(logits, labels).sum()
    return F.cross_entropy(logits, labels, reduction="sum")


def zero_gradient_flags(zero_shares: dict[str, float]) -> list[Flag]:
    """D1 from the share of zero gradients under each loss."""
    least = min(zero_shares.values())
    cross_entropy = zero_shares["cross-entropy"]
    if least >= D1_SHARE:
        message = (
            f"the gradient is exactly zero on {least:.1%} of correctly classified images, "
            "for every loss"
        )
        return [Flag("D1", "hard", message)]
    if cross_entropy >= D1_SHARE:
        message = (
            f"the cross-entropy gradient (not the margin's) is exactly zero on {cross_entropy:.1%} "
            "of correctly classified images"
        )
        return [Flag("D1", "soft", message)]
    return []


def probe_differences(
    defence: nn.Module, x: Tensor, y: Tensor, eps: float, directions: int = 4
) -> tuple[float | None, list[Flag]]:
    """D12: the margin's gradient against its central differences over eps/100.

    The differences are wider where the defence answers in half precision, which rounds more away.
    The differences go along random signs, at random points near the images. A stochastic defence
    draws the same noise at both ends and for the gradient. Gives the median of
    |D - g u| / (|D| + |g u|): 0 where they agree, 1 where one is nothing beside the other. None
    without an eps, where nothing is differentiable (P11 says so), or where all is flat.
    """
    if not eps:
        return None, []
    divisor = min(100, 1 / (16 * resolution_of(defence)))
    step = eps / divisor
    seed = int(torch.randint(2**62, ()))
    points = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(step, 1 - step)

    def seeded_defence(images: Tensor) -> Tensor:
        with judging_stream(images.device, seed):
            logits: Tensor = defence(images)
        return logits

    gradient = margin_gradient(seeded_defence, points, y)
    if gradient is None:
        return None, []
    errors = []
    flat = 0.0
    with torch.no_grad():
        for _ in range(directions):
            direction = torch.randint_like(x, 2) * 2 - 1
            ahead = margin(seeded_defence(points + step * direction), y)
            behind = margin(seeded_defence(points - step * direction), y)
            measured = (ahead - behind) / (2 * step)  # (n,)
            predicted = (gradient.nan_to_num() * direction).flatten(1).sum(1)  # (n,)
            size = (measured.abs() + predicted.abs()).clamp_min(1e-12)
            errors.append((measured - predicted).abs() / size)
            flat = max(flat, float((measured == 0).float().mean()))
    error = float(torch.stack(errors).median())
    if error < D12_ERROR and flat <= D12_FLAT:
        return error, []
    severity = "soft" if has_surrogate(defence) else "hard"
    message = (
        f"the gradient is off by {error:.2f} (0 agrees, 1 does not) from differences over "
        f"eps/{divisor:g}; "
        f"{flat:.1%} of these are exactly zero"
    )
    return error, [Flag("D12", severity, message)]
