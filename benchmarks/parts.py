"""What a classifier takes for many images at once, and for the same in the parts that `carso.model.in_parts` makes: what smoothing gains on a CPU.

    python -m benchmarks.parts [--images 500] [--repeats 5]

CPU time of a forward pass, and of a forward and a backward pass to the images, on one thread: medians over rounds in which each runs once, in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor

from bench.questions.registry import build_classifier, discover
from benchmarks.carso_samples import Run, backward, rounds
from carso.model import in_parts

SHAPES = {"own:mnist-standard": (1, 28, 28), "own:cifar10-jpeg-at": (3, 32, 32)}


def forward(f: Callable[[Tensor], Tensor], x: Tensor) -> Run:
    def run() -> object:
        with torch.no_grad():
            return f(x)

    return run


def begin(doc: str, images: int) -> argparse.Namespace:
    """The flags `--images` and `--repeats`; one thread, seed 0, and every plug-in at hand.

    A block of 31 MiB is freed first, as a sweep frees larger ones while it reads its data: only from then on does glibc keep what is freed, and the
    time measured is not that of page faults.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--repeats", type=int, default=5)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.empty(31 * 2**18)
    discover()
    return parser.parse_args()


def two_ways(
    a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor], x: Tensor, repeats: int
) -> Iterator[tuple[str, float, float]]:
    """Of a forward pass, and of a forward and a backward one: its name, and the median milliseconds of CPU time that each of the two takes."""
    for way, make in (("forward", forward), ("forward and backward", backward)):
        found = rounds({"a": make(a, x), "b": make(b, x)}, repeats)
        yield way, 1000 * median(found["a"].cpu), 1000 * median(found["b"].cpu)


def main() -> None:
    args = begin(__doc__, 500)
    for name, shape in SHAPES.items():
        model = build_classifier(name).requires_grad_(False).eval()
        x = torch.rand(args.images, *shape)

        def parted(images: Tensor, model: Callable[[Tensor], Tensor] = model) -> Tensor:
            return torch.cat([model(part) for part in in_parts(images)])

        print(
            f"{name}: {args.images} images, in {len(in_parts(x))} parts, medians of {args.repeats} rounds, one CPU thread"
        )
        for way, whole, parts in two_ways(model, parted, x, args.repeats):
            print(
                f"  {way}: {whole:.0f} ms at once, {parts:.0f} ms in parts: {whole / parts:.2f} times as long"
            )


if __name__ == "__main__":
    main()
