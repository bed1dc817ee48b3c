"""Separate random streams: what one part of an evaluation draws tells nothing about what another will draw."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the names of a stream, such as (cell key, batch index, 'attack')."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def stream(device: torch.device, *parts: object) -> Iterator[None]:
    """Seed torch (CPU and `device`), numpy and `random` for the block, and put all of them back after it."""
    seed = seed_of(*parts)
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
