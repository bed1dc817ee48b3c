"""What a call through the border costs, beside the same call of the bare model.

    python -m benchmarks.border [--repeats 15]

A call is a forward and a backward pass to the images. Two models: the digits' classifier with
batches of 100, and a ResNet-18 on 32x32 images with batches of 8. Ratios of medians of
interleaved repeats, in CPU time of this process.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.cli.main import run_main
from bench.judging.border import Border
from bench.judging.containment import Containment
from bench.judging.randomness import random_stream
from bench.questions.discover import discover
from bench.questions.registry import build_classifier
from benchmarks.carso_samples import resnet18
from benchmarks.common import device_line, flag_parser

CALLS = {"digits' classifier": 20, "ResNet-18": 2}  # in one measurement


def differentiate(model: nn.Module, x: Tensor) -> None:
    """One forward and one backward pass to the images x (B,C,H,W)."""
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(model(leaf).sum(), leaf)


def time_calls(model: nn.Module, x: Tensor, calls: int) -> float:
    """Milliseconds of one call."""
    start = time.process_time()
    for _ in range(calls):
        differentiate(model, x)
    return 1000 * (time.process_time() - start) / calls


def compare(model: nn.Module, x: Tensor, calls: int, repeats: int) -> tuple[float, float]:
    """Milliseconds of a call of the bare model, and of one through the border."""
    border = Border(model)
    bare_times = []
    border_times = []
    with random_stream(torch.device("cpu"), "benchmark"):
        for _ in range(repeats):
            bare_times.append(time_calls(model, x, calls))
            border_times.append(time_calls(border, x, calls))
    return statistics.median(bare_times[1:]), statistics.median(border_times[1:])


def time_containment(repeats: int) -> float:
    """Milliseconds of what is compared once for each batch of a cell."""
    start = time.process_time()
    for _ in range(repeats):
        with Containment():
            pass
    return 1000 * (time.process_time() - start) / repeats


def main(words: Sequence[str] | None = None) -> int:
    def command() -> None:
        args = flag_parser(__doc__, {"repeats": 15}).read(words)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        discover()
        print(f"{device_line()}; medians of {args.repeats} interleaved repeats")
        cases = {
            "digits' classifier": (build_classifier("own:digits-at"), torch.rand(100, 1, 8, 8)),
            "ResNet-18": (resnet18(64).eval().requires_grad_(False), torch.rand(8, 3, 32, 32)),
        }
        print("model                 bare ms  border ms  ratio")
        for name, (model, x) in cases.items():
            bare, border = compare(model, x, CALLS[name], args.repeats)
            print(f"{name:20}  {bare:7.2f}  {border:9.2f}  {border / bare:5.3f}")
        print(f"once a batch: {time_containment(args.repeats):.1f} ms")

    return run_main(command, "benchmarks.border")


if __name__ == "__main__":
    sys.exit(main())
