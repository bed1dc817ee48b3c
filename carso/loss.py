"""The training loss of the conditional VAE, and the schedule of its KL term."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import binary_cross_entropy


def elbo(
    x_rec: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(total, reconstruction, kl), where total is reconstruction + beta * kl.

    Each is a sum over the batch and all pixels or latent dimensions. `x_rec` in (0,1) and the
    clean `x` in [0,1] are (B,C,H,W); `mu` and `logvar` are (B,D). The reconstruction term is the
    binary cross-entropy, with logarithms clamped at -100.
    """
    reconstruction = binary_cross_entropy(x_rec, x, reduction="sum")
    kl = kl_divergence(mu, logvar)
    return reconstruction + beta * kl, reconstruction, kl


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of N(mu, exp(logvar)) from N(0,1), summed over everything."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum()


def beta_at(epoch: int, epochs: int, lag: float) -> float:
    """The weight of the KL term in `epoch` (from 0), in [0,1].

    It is 0 for the first `lag` share of the epochs, then rises linearly to 1 in a third as many.
    """
    start = math.ceil(lag * epochs)
    ramp = math.ceil(lag * epochs / 3)
    return min(max(epoch - start, 0) / ramp, 1.0) if ramp else 1.0
