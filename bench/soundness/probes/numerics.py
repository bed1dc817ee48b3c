"""Probes of how a defence computes: saturation, precision, and optimisation at test time."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.judging.randomness import judging_stream
from bench.judging.target import margin
from bench.results.record import Flag
from bench.soundness.codes import P8_RANGE, P8_SHARE, P15_COSINE, P15_DIFFER
from bench.soundness.probes.gradients import random_neighbours
from bench.soundness.probes.outputs import informative_logits

FEW = 16  # P15: images, since all is computed once more in double


@torch.no_grad()
def probe_saturation(defence: nn.Module, x: Tensor, eps: float) -> list[Flag]:
    """P8: answers so sure that the cross-entropy has no gradient left in float32.

    Asked at images x (n,C,H,W) in [0,1] and at random points near them.
    """
    logits = informative_logits(defence(torch.cat([x, random_neighbours(x, eps)])))
    if not len(logits):  # P6 says so
        return []
    certain = logits.softmax(1).amax(1) == 1  # a gap of 24 ln 2 = 16.6 rounds to 1 in float32
    wide = logits.amax(1) - logits.amin(1) > P8_RANGE
    share = float((certain | wide).float().mean())
    if share <= P8_SHARE:
        return []
    message = (
        f"{share:.1%} of the answers are surer than float32 can tell from certain: "
        "the cross-entropy has no gradient there"
    )
    return [Flag("P8", "soft", message)]


def probe_precision(defence: nn.Module, x: Tensor, y: Tensor) -> list[Flag]:
    """P15, of a deterministic defence: are answers and gradients those of float64.

    Nothing is said of a defence that cannot be computed in float64, or not without a gradient.
    """
    x, y = x[:FEW], y[:FEW]
    try:
        in_double = copy.deepcopy(defence).double()
        logits, gradient = logits_and_gradient(defence, x, y)
        exact_logits, exact_gradient = logits_and_gradient(in_double, x.double(), y)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return []
    gradient, exact_gradient = gradient.flatten(1), exact_gradient.flatten(1)  # (n,D)
    differ = float((logits.argmax(1) != exact_logits.argmax(1)).float().mean())
    cosines = F.cosine_similarity(gradient.double().nan_to_num(), exact_gradient.nan_to_num())
    cosine = float(cosines.median())
    nonzero_share = exact_gradient.any(1).float().mean()
    alive = bool(exact_gradient.isfinite().all() and nonzero_share > 0.5)
    if differ <= P15_DIFFER and (cosine >= P15_COSINE or not alive):
        return []
    message = (
        f"in float64 {differ:.1%} of the answers are others, and the gradients have a cosine of "
        f"{cosine:.2f} with these"
    )
    return [Flag("P15", "soft", message)]


def logits_and_gradient(defence: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (n,K), and the gradient (n,C,H,W) of the margin."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        logits: Tensor = defence(leaf)
        (gradient,) = torch.autograd.grad(margin(logits, y).sum(), leaf)
    return logits.detach(), gradient


def probe_optimisation(defence: nn.Module, x: Tensor) -> tuple[bool, list[Flag]]:
    """P14: does a prediction under `no_grad` differentiate, as test-time optimisation does.

    Seen from the tensors that a backward pass takes out. A flag says that the answer is another
    one where gradients are on. Both answers are under the same noise.
    """
    taken_out = 0

    def count(saved: Tensor) -> Tensor:
        nonlocal taken_out
        taken_out += 1
        return saved

    seed = int(torch.randint(2**62, ()))

    def answer(gradients_on: bool) -> Tensor:
        with judging_stream(x.device, seed), torch.set_grad_enabled(gradients_on):
            logits: Tensor = defence(x)
        return logits.detach()

    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, count):
        without = answer(False)
    optimises = taken_out > 0
    if torch.allclose(answer(True), without, rtol=1e-3, atol=1e-3, equal_nan=True):
        return optimises, []
    message = "a prediction is another one where gradients are on, as they are under attack"
    return optimises, [Flag("P14", "hard", message)]
