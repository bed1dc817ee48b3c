"""Separate random streams: the draws of one part say nothing about the draws of another."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the names of a stream, such as (cell key, batch index, 'attack')."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators of the CPU and of `device` for the block, then put them back.

    `torch.manual_seed` is twenty times slower: it seeds all devices. Where there are none it notes
    down, with its caller's stack, to do so later.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def random_stream(device: torch.device, *parts: object) -> Iterator[None]:
    """Seed torch (CPU and `device`), numpy and `random` for the block, then put them back."""
    seed = seed_of(*parts)
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    with seeded(device, seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
