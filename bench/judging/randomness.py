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
    return (
        int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
    )


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators of the CPU and of `device` for the block, and put them back after it.

    `torch.manual_seed` seeds all devices, and where there are none notes down, with its caller's stack, to do so later: that is twenty times slower.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for one in devices:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def random_stream(device: torch.device, *parts: object) -> Iterator[None]:
    """Seed torch (CPU and `device`), numpy and `random` for the block, and put all of them back after it."""
    seed = seed_of(*parts)
    python, numpy = random.getstate(), np.random.get_state()
    with seeded(device, seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
