"""CARSO's purifier without the representation: an unconditional VAE."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from bench.questions.registry import defence
from bench.questions.spec import Value
from carso.aggregate import AGGREGATIONS
from carso.defence import Sampling, build_defence, classifier_suffix
from carso.model import VAE


def default_purifier(knobs: Mapping[str, Value]) -> dict[str, str]:
    """The purifier for the classifier that the other knobs name, where no purifier is named."""
    return {"weights": f"@vae{classifier_suffix(knobs)}"} if knobs["weights"] == "@vae" else {}


@defence(
    "vae",
    stochastic=lambda knobs: int(knobs["samples"]) > 0,
    dependent_defaults=default_purifier,
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

    It is what CARSO is without the classifier's representation, trained on the same perturbed
    images. Its samples come from the posterior: those of the prior, which CARSO uses, would not
    depend on the image at all here. 0 samples: the posterior's mean, deterministic.
    """
    return build_defence(VAE, "vae", classifier, weights, Sampling(samples, aggregation))
