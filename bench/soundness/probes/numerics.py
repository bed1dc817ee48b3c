"""Probes of how a defence computes: outputs too far apart for float32, answers that depend on the precision, or on whether gradients are on."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.judging.randomness import seeded
from bench.judging.target import abstained, margin
from bench.results.record import Flag

RANGE, SATURATED = 1e4, 0.1  # P8: the range of logits; the share of the images
FEW = 16  # P15: images, since all is computed once more in double
DIFFER, AGREE = 0.01, 0.9  # P15: answers that differ at most, and the least cosine of the gradients


@torch.no_grad()
def saturated(defence: nn.Module, x: Tensor, eps: float) -> list[Flag]:
    """P8: answers so sure that the cross-entropy has no gradient left in float32, at images x (n,C,H,W) in [0,1] and at random points beside them."""
    logits = defence(torch.cat([x, (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)]))
    logits = logits[logits.isfinite().all(1) & ~abstained(logits)]
    if not len(logits):  # P6 says so
        return []
    sure = (logits.softmax(1).amax(1) == 1) | (
        logits.amax(1) - logits.amin(1) > RANGE
    )  # a gap of 24 ln 2 = 16.6 rounds to 1 in float32
    share = float(sure.float().mean())
    if share <= SATURATED:
        return []
    says = f"{share:.1%} of the answers are surer than float32 can tell from certain: the cross-entropy has no gradient there"
    return [Flag("P8", "soft", says)]


def precise(defence: nn.Module, x: Tensor, y: Tensor) -> list[Flag]:
    """P15, of a deterministic defence: whether its answers and the gradients of its margin at images x (n,C,H,W) are those that it has in float64.

    Nothing is said of a defence that cannot be computed in float64, or not without a gradient.
    """
    x, y = x[:FEW], y[:FEW]
    try:
        double = copy.deepcopy(defence).double()
        (here, slope), (there, exact) = gradients(defence, x, y), gradients(double, x.double(), y)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return []
    differ = float((here.argmax(1) != there.argmax(1)).float().mean())
    cosine = float(
        F.cosine_similarity(
            slope.double().flatten(1).nan_to_num(), exact.flatten(1).nan_to_num()
        ).median()
    )
    alive = bool(exact.isfinite().all() and exact.flatten(1).any(1).float().mean() > 0.5)
    if differ <= DIFFER and (cosine >= AGREE or not alive):
        return []
    return [
        Flag(
            "P15",
            "soft",
            f"in float64 {differ:.1%} of the answers are others, and the gradients have a cosine of {cosine:.2f} with these",
        )
    ]


def gradients(defence: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (n,K), and the gradient (n,C,H,W) of the margin."""
    seen = x.clone().requires_grad_()
    with torch.enable_grad():
        logits: Tensor = defence(seen)
        (slope,) = torch.autograd.grad(margin(logits, y).sum(), seen)
    return logits.detach(), slope


def optimises(defence: nn.Module, x: Tensor) -> tuple[bool, list[Flag]]:
    """P14: whether a prediction under `no_grad` differentiates something, as test-time optimisation does; and a flag where it is another one then.

    Seen from the tensors that are kept for, and taken out by, a way back. Under the same noise.
    """
    taken = 0

    def out(held: Tensor) -> Tensor:
        nonlocal taken
        taken += 1
        return held

    seed = int(torch.randint(2**62, ()))

    def answer(watched: bool) -> Tensor:
        with seeded(x.device, seed), torch.set_grad_enabled(watched):
            logits: Tensor = defence(x)
        return logits.detach()

    with torch.autograd.graph.saved_tensors_hooks(lambda held: held, out):
        without = answer(False)
    if torch.allclose(answer(True), without, rtol=1e-3, atol=1e-3, equal_nan=True):
        return taken > 0, []
    return taken > 0, [
        Flag(
            "P14",
            "hard",
            "a prediction is another one where gradients are on, as they are under attack",
        )
    ]
