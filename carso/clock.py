"""How long a repeated piece of work takes on a device, without waiting for it each time."""

from __future__ import annotations

import time

import torch


class Clock:
    """`with clock:` around each piece of work; `seconds` at the end is their sum."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.total = 0.0
        self.marks: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        self._mark(-1)

    def __exit__(self, *_: object) -> None:
        self._mark(1)

    def _mark(self, sign: int) -> None:
        if self.on_gpu:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.total += sign * time.perf_counter()

    def seconds(self) -> float:
        """On a GPU this waits until it is done."""
        if self.marks:
            self.marks[-1].synchronize()
        return (
            self.total
            + sum(
                float(a.elapsed_time(b))
                for a, b in zip(self.marks[::2], self.marks[1::2], strict=True)
            )
            / 1000
        )
