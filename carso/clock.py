"""How long a repeated piece of work takes on a device, without waiting for it each time."""

from __future__ import annotations

import time

import torch


class Clock:
    """`with clock:` around each piece of work; `seconds` at the end is their sum."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.total = 0.0
        self.marks: list[torch.cuda.Event] = []  # start and end of each piece, on a GPU

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
        """On a GPU this waits until the work is done."""
        if not self.marks:
            return self.total
        self.marks[-1].synchronize()
        pieces = zip(self.marks[::2], self.marks[1::2], strict=True)
        return sum(float(start.elapsed_time(end)) for start, end in pieces) / 1000
