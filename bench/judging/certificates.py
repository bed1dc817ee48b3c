"""The judging of what a defence certifies."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from bench.results.record import Certificate

LARGEST = 1e30  # stands for an infinite radius, which JSON has not


@torch.no_grad()
def certify(defence: nn.Module, x: Tensor, y: Tensor) -> Certificate | None:
    """What `defence.certify(x) -> (labels (B,), l2 radii (B,))` certifies of images (B,C,H,W) with labels `y`; None where it has no such method.

    A label -1 is an abstention; a radius counts where the label is right. ValueError where the answers have other shapes.
    """
    method = getattr(defence, "certify", None)
    if method is None:
        return None
    start = time.perf_counter()
    labels, radii = method(x)
    if labels.shape != y.shape or radii.shape != y.shape:
        raise ValueError(
            f"certify answered labels {tuple(labels.shape)} and radii {tuple(radii.shape)} for {len(y)} images"
        )
    held = torch.where(
        (labels == y) & (radii > 0), radii.double().clamp(max=LARGEST), -1.0
    ).tolist()
    seconds = round(time.perf_counter() - start, 3)
    rests_on = tuple(
        sorted((name, float(value)) for name, value in getattr(defence, "certificate", {}).items())
    )
    # Rounded down: a certificate must not grow by being written.
    return Certificate(tuple(math.floor(radius * 1e6) / 1e6 for radius in held), rests_on, seconds)
