"""The judging of what a defence certifies."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from bench.results.record import Certificate

LARGEST = 1e30  # stands for an infinite radius, which JSON does not have


@torch.no_grad()
def certify(defence: nn.Module, x: Tensor, y: Tensor) -> Certificate | None:
    """What the defence certifies of images x (B,C,H,W) with labels y (B,); None if it cannot.

    A defence that can has the method `certify(x) -> (labels (B,), l2 radii (B,))`. A label -1 is an
    abstention. A radius counts where the label is right. ValueError where the answers have other
    shapes.
    """
    method = getattr(defence, "certify", None)
    if method is None:
        return None
    start = time.perf_counter()
    labels, radii = method(x)
    if labels.shape != y.shape or radii.shape != y.shape:
        raise ValueError(
            f"certify answered labels {tuple(labels.shape)} and radii {tuple(radii.shape)} "
            f"for {len(y)} images"
        )
    counts = (labels == y) & (radii > 0)
    certified = torch.where(counts, radii.double().clamp(max=LARGEST), -1.0).tolist()
    seconds = round(time.perf_counter() - start, 3)
    rests_on = getattr(defence, "certificate", {})
    return Certificate(
        # Rounded down: a certificate must not grow by being written.
        radii=tuple(math.floor(radius * 1e6) / 1e6 for radius in certified),
        rests_on=tuple(sorted((name, float(value)) for name, value in rests_on.items())),
        seconds=seconds,
    )
