"""Separate random streams: the draws of one part say nothing about the draws of another."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from numpy.random import mtrand


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


class DefenceStream:
    """The random numbers that a defence draws: of torch (CPU and `device`), numpy and `random`.

    They start from `seed`, and go on from call to call, whatever the harness draws in between.
    """

    __slots__ = ("cpu", "cuda", "device", "numpy", "python")

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.cpu = torch.Generator().manual_seed(seed).get_state()
        self.cuda: torch.Tensor | None = None
        if device.type == "cuda":
            self.cuda = torch.Generator(device).manual_seed(seed).get_state()
        self.python = random.Random(seed).getstate()
        self.numpy = np.random.RandomState(seed % 2**32)._bit_generator

    def exchange(self) -> None:
        """Put this stream's state where the global generators are, and theirs here."""
        self.exchange_torch()
        python = random.getstate()
        random.setstate(self.python)
        self.python = python
        bits = mtrand.get_bit_generator()
        mtrand.set_bit_generator(self.numpy)
        self.numpy = bits

    def exchange_torch(self) -> None:
        """The same of torch's generators alone: a tenth of the time."""
        generator = torch.default_generator
        cpu = generator.get_state()
        generator.set_state(self.cpu)
        self.cpu = cpu
        if self.cuda is not None:
            cuda = torch.cuda.get_rng_state(self.device)
            torch.cuda.set_rng_state(self.cuda, self.device)
            self.cuda = cuda


class Current:
    """Who draws at the moment. A process answers one batch of one cell at a time.

    `stream` is the defence's; `inside` says that a defence is being called; `backwards` counts the
    gradients that have entered a defence and not come out.
    """

    def __init__(self) -> None:
        self.stream: DefenceStream | None = None
        self.inside = False
        self.backwards = 0

    def enter_backward(self) -> None:
        """A gradient enters a defence, which now draws from its own stream."""
        if self.stream is None or self.inside:
            return
        if self.backwards == 0:
            self.stream.exchange_torch()
        self.backwards += 1

    def leave_backward(self) -> None:
        """A gradient has come out of a defence."""
        if self.backwards == 1:
            self.leave_all_backwards()
        elif self.backwards:
            self.backwards -= 1

    def leave_all_backwards(self) -> None:
        """No gradient that is still inside a defence will come out: none reaches the image."""
        if self.backwards and self.stream is not None:
            self.stream.exchange_torch()
        self.backwards = 0


current = Current()


@contextlib.contextmanager
def defence_stream(device: torch.device, seed: int) -> Iterator[None]:
    """For the block, defences behind the border draw from a stream of their own."""
    outer = current.stream
    current.leave_all_backwards()
    current.stream = DefenceStream(device, seed)
    try:
        yield
    finally:
        current.leave_all_backwards()
        current.stream = outer


@contextlib.contextmanager
def random_stream(device: torch.device, *parts: object) -> Iterator[None]:
    """Seed the random numbers of the harness and, apart from them, those of the defence.

    The harness draws from torch (CPU and `device`), numpy and `random`; their states come back
    after the block.
    """
    with seed_harness(device, seed_of(*parts)), defence_stream(device, seed_of(*parts, "defence")):
        yield


@contextlib.contextmanager
def judging_stream(device: torch.device, *parts: object) -> Iterator[None]:
    """Seed what a defence draws in a block in which the harness itself draws nothing."""
    seed = seed_of(*parts)
    with seed_harness(device, seed), defence_stream(device, seed):
        yield


@contextlib.contextmanager
def seed_harness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch (CPU and `device`), numpy and `random` for the block, then put them back."""
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
