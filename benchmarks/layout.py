"""What the order of the weights that `bench.judging.target.placed` gives a model on a CPU is worth: channels last against channels first.

    python -m benchmarks.layout [--images 100] [--repeats 5]

CPU time of a forward pass, and of a forward and a backward pass to the images, on one thread: medians over rounds in which each runs once, in turn.
"""

from __future__ import annotations

import torch

from bench.judging.target import to_device_channels_last
from bench.questions import registry
from bench.questions.plan import Request, plan
from benchmarks.parts import begin, two_ways

CASES = (
    ("digits", "carso", (1, 8, 8)),
    ("mnist", "at", (1, 28, 28)),
    ("mnist", "carso", (1, 28, 28)),
    ("cifar10-jpeg", "at", (3, 32, 32)),
    ("cifar10-jpeg", "carso", (3, 32, 32)),
    ("cifar10-jpeg", "undefended", (3, 32, 32)),
)


def main() -> None:
    args = begin(__doc__, 100)
    print(
        f"{args.images} images, medians of {args.repeats} rounds, one CPU thread, torch {torch.__version__}"
    )
    for dataset, name, shape in CASES:
        spec = (
            plan([Request(dataset=dataset, defences=(name,), attacks=("none",))]).cells[0].defence
        )
        first, last = (
            registry.build_defence(spec),
            to_device_channels_last(registry.build_defence(spec), torch.device("cpu")),
        )
        x = torch.rand(args.images, *shape)
        for way, a, b in two_ways(first, last, x, args.repeats):
            print(
                f"{dataset} {name}, {way}: {a:.0f} ms channels first, {b:.0f} ms last: {a / b:.2f} times as long",
                flush=True,
            )


if __name__ == "__main__":
    main()
