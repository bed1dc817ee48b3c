"""How long a prediction takes."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn


@torch.no_grad()
def time_prediction(model: nn.Module, x: Tensor, repeats: int = 5) -> float:
    """Milliseconds per image of one prediction: the fastest of `repeats`, after one to warm up."""
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        best = min(best, time.perf_counter() - start)
    return round(best / len(x) * 1e3, 4)
