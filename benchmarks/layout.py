"""What the order of the weights that `bench.target.placed` gives a model on a CPU is worth: channels last against channels first.

    python -m benchmarks.layout [--images 100] [--repeats 5]

CPU time of a forward pass, and of a forward and a backward pass to the images, on one thread: medians over rounds in which each runs once, in turn.
"""

from __future__ import annotations

import argparse

import torch

from bench import registry
from bench.plan import Request, plan
from bench.target import placed
from benchmarks.carso_samples import backward, rounds
from benchmarks.parts import forward

CASES = (
    ("digits", "carso", (1, 8, 8)),
    ("mnist", "at", (1, 28, 28)),
    ("mnist", "carso", (1, 28, 28)),
    ("cifar10-jpeg", "at", (3, 32, 32)),
    ("cifar10-jpeg", "carso", (3, 32, 32)),
    ("cifar10-jpeg", "undefended", (3, 32, 32)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    registry.discover()
    print(f"{args.images} images, medians of {args.repeats} rounds, one CPU thread, torch {torch.__version__}")
    for dataset, name, shape in CASES:
        spec = plan([Request(dataset=dataset, defences=(name,), attacks=("none",))]).cells[0].defence
        first, last = registry.build_defence(spec), placed(registry.build_defence(spec), torch.device("cpu"))
        x = torch.rand(args.images, *shape)
        for way, make in (("forward", forward), ("forward and backward", backward)):
            found = rounds({"first": make(first, x), "last": make(last, x)}, args.repeats)
            a, b = (sorted(found[key].cpu)[args.repeats // 2] for key in ("first", "last"))
            print(f"{dataset} {name}, {way}: {1000 * a:.0f} ms channels first, {1000 * b:.0f} ms last: {a / b:.2f} times as long", flush=True)


if __name__ == "__main__":
    main()
