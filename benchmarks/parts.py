"""What a classifier takes for many images at once, and for the same in the parts that `carso.model.in_parts` makes: what smoothing gains on a CPU.

    python -m benchmarks.parts [--images 500] [--repeats 5]

CPU time of a forward pass, and of a forward and a backward pass to the images, on one thread: medians over rounds in which each runs once, in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from bench.registry import build_classifier, discover
from benchmarks.carso_samples import Run, backward, rounds
from carso.model import in_parts

SHAPES = {"own:mnist-standard": (1, 28, 28), "own:cifar10-jpeg-at": (3, 32, 32)}


def forward(f: Callable[[Tensor], Tensor], x: Tensor) -> Run:
    def run() -> object:
        with torch.no_grad():
            return f(x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    discover()
    for name, shape in SHAPES.items():
        model = build_classifier(name).requires_grad_(False).eval()
        x = torch.rand(args.images, *shape)

        def parted(images: Tensor, model: Callable[[Tensor], Tensor] = model) -> Tensor:
            return torch.cat([model(part) for part in in_parts(images)])

        print(f"{name}: {args.images} images, in {len(in_parts(x))} parts, medians of {args.repeats} rounds, one CPU thread")
        for way, make in (("forward", forward), ("forward and backward", backward)):
            found = rounds({"whole": make(model, x), "parts": make(parted, x)}, args.repeats)
            whole, parts = (sorted(found[key].cpu)[args.repeats // 2] for key in ("whole", "parts"))
            print(f"  {way}: {1000 * whole:.0f} ms at once, {1000 * parts:.0f} ms in parts: {whole / parts:.2f} times as long")


if __name__ == "__main__":
    main()
