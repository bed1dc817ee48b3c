"""What a training step of CARSO spends on its adversaries, and what other ways to make them would take.

    python -m benchmarks.training [--batch 64] [--width 32] [--repeats 5]

Two cases: the digits recipe, and a ResNet-18 (of that width) in the CIFAR-10 JPEG recipe. Times are CPU time of this process, or of the clock where
there is a GPU: medians of interleaved repeats. A step is adversaries, representation, and forward, backward and update of the purifier.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.carso_samples import resnet18
from carso.adversary import Adversaries, fgsm, pgd
from carso.fit import new_purifier
from carso.loss import elbo
from carso.optimiser import Lookahead
from carso.recipe import Recipe, read
from carso.representation import taps


def medians(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of each, the ways taking turns, so that what else the machine does falls on all of them."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                times[name].append(1000 * (clock() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def one_by_one(a: Adversaries, f: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Each of the four adversaries by itself."""
    m = int(len(x) * a.share / 4)
    parts = list(
        zip(
            torch.split(x[-4 * m :], m),
            torch.split(y[-4 * m :], m),
            (a.weak, a.strong) * 2,
            strict=True,
        )
    )
    made = [
        pgd(f, u, v, u.new_full((m, 1, 1, 1), e), steps=a.steps, step=a.step)
        for u, v, e in parts[:2]
    ]
    return torch.cat(
        [x[: -4 * m], *made, *(fgsm(f, u, v, u.new_full((m, 1, 1, 1), e)) for u, v, e in parts[2:])]
    )


def by_backward(a: Adversaries, f: nn.Module, x: Tensor, y: Tensor) -> None:
    """The same number of passes with `backward()` through a classifier that is not frozen: gradients of the parameters, which nobody needs."""
    m = int(len(x) * a.share / 4)
    for _ in range(a.steps):
        adv = x[-4 * m : -2 * m].clone().requires_grad_()
        torch.autograd.backward(cross_entropy(f(adv), y[-4 * m : -2 * m], reduction="sum"))
        assert adv.grad is not None
        adv.grad.sign()
    fgsm(f, x[-2 * m :], y[-2 * m :], x.new_zeros(2 * m, 1, 1, 1))


def measure(name: str, f: nn.Module, recipe: Recipe, x: Tensor, y: Tensor, repeats: int) -> None:
    f = f.eval().requires_grad_(False)
    a = Adversaries.of(recipe)
    purifier = new_purifier(f, (x.shape[1], x.shape[2], x.shape[3]), recipe).to(x.device).train()
    optimiser = Lookahead(purifier.parameters(), recipe.lr_start)
    trainable, last = (
        copy.deepcopy(f).requires_grad_(True),
        copy.deepcopy(f).to(memory_format=torch.channels_last),
    )
    mixed = a.deal(f, x, y)

    def attack(classifier: nn.Module, context: AbstractContextManager[object]) -> Tensor:
        with context:
            return a.deal(classifier, x, y)

    def represent() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return taps(f, mixed, purifier.layers)

    representation = represent()

    def update() -> None:
        rec, mu, logvar = purifier(mixed, representation)
        optimiser.zero_grad()
        torch.autograd.backward(elbo(rec, x, mu, logvar, 1.0)[0])
        optimiser.step()

    def half() -> Tensor:
        return attack(f, torch.autocast(x.device.type, torch.bfloat16))

    took = medians(
        {
            "as trained": lambda: attack(f, nullcontext()),
            "four adversaries one by one": lambda: one_by_one(a, f, x, y),
            "with gradients of the parameters": lambda: by_backward(a, trainable, x, y),
            "classifier in channels_last": lambda: attack(last, nullcontext()),
            "in bfloat16": half,
            "representation": represent,
            "purifier": update,
        },
        repeats,
    )
    made, rest = took.pop("as trained"), took["representation"] + took["purifier"]
    print(f"{name}: batches of {len(x)}, {a.steps} steps of PGD, step {made + rest:.0f} ms")
    print(
        f"  adversaries {made:.0f} ms, {made / (made + rest):.0%}; representation {took.pop('representation') / (made + rest):.0%}",
        end="; ",
    )
    print(f"purifier {took.pop('purifier') / (made + rest):.0%}")
    for other, taken in took.items():
        print(f"  adversaries {other}: {taken / made:.2f} times as long")


def main() -> None:
    from bench.data.sample import load
    from bench.questions.registry import build_classifier, discover
    from bench.questions.spec import Spec

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("batch", 64), ("width", 32), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    discover()
    recipe = read("digits")
    data = load(Spec("digits", (("n", recipe.batch),)), split="train")
    measure(
        "digits",
        build_classifier("own:digits-at").to(device),
        recipe,
        data.x.to(device),
        data.y.to(device),
        4 * args.repeats,
    )
    jpeg = replace(read("cifar10-jpeg"), layers=tuple(f"{i}.conv2" for i in range(1, 7)))
    x, y = (
        torch.rand(args.batch, 3, 32, 32, device=device),
        torch.randint(10, (args.batch,), device=device),
    )
    measure(
        f"ResNet-18 of width {args.width}",
        resnet18(args.width).to(device),
        jpeg,
        x,
        y,
        args.repeats,
    )


if __name__ == "__main__":
    main()
