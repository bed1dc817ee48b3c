"""CARSO's purifier without the representation: an unconditional VAE."""

from __future__ import annotations

from torch import nn

from bench.questions.registry import defence
from carso.aggregate import AGGREGATIONS
from carso.defence import around, build
from carso.model import VAE


@defence(
    "vae",
    stochastic=lambda knobs: int(knobs["samples"]) > 0,
    dependent_defaults=lambda knobs: (
        {"weights": f"@vae{around(knobs)}"} if knobs["weights"] == "@vae" else {}
    ),
    choices={"aggregation": AGGREGATIONS},
)
def vae(
    *,
    classifier: str = "@robust",
    weights: str = "@vae",
    samples: int = 8,
    aggregation: str = "peel",
) -> nn.Module:
    """Encode the image by a VAE, and classify `samples` reconstructions from its posterior.

    What CARSO is without the classifier's representation. Its samples come from the posterior: those of the prior, which CARSO uses, would
    not depend on the image at all here. 0 samples: the posterior's mean, deterministic. Trained on the same perturbed images.
    """
    return build(VAE, "vae", classifier, weights, samples, aggregation)
