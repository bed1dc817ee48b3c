"""What a training step of CARSO spends on its adversaries, and what other ways would take.

    python -m benchmarks.training [--batch 64] [--width 32] [--repeats 5]

Two cases: the digits recipe, and a ResNet-18 of that width in the CIFAR-10 JPEG recipe. Times are
CPU time of this process, and on a GPU of the clock: medians of interleaved repeats. A step is the
adversaries, the representation, and forward, backward and update of the purifier.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.cli.main import run_main
from benchmarks.carso_samples import resnet18
from benchmarks.common import device_line, flag_parser
from carso.adversary import Adversaries, fgsm, pgd
from carso.fit import new_purifier
from carso.loss import elbo
from carso.optimiser import Lookahead
from carso.recipe import Recipe, read_recipe
from carso.representation import taps


def median_times(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of each way. The ways take turns, so that other work slows all of them."""
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
    return {name: statistics.median(values) for name, values in times.items()}


def attack_one_by_one(settings: Adversaries, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Each of the four adversaries by itself."""
    size = int(len(x) * settings.share / 4)
    x_adv = [x[: -4 * size]]
    for index, eps in enumerate((settings.weak, settings.strong) * 2):
        rows = slice(len(x) - (4 - index) * size, len(x) - (3 - index) * size)
        radius = x.new_full((size, 1, 1, 1), eps)
        if index < 2:
            images = pgd(model, x[rows], y[rows], radius, steps=settings.steps, step=settings.step)
            x_adv.append(images)
        else:
            x_adv.append(fgsm(model, x[rows], y[rows], radius))
    return torch.cat(x_adv)


def attack_by_backward(settings: Adversaries, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """The same number of passes, with `backward()` through a classifier that is not frozen.

    It computes gradients of the parameters, which nobody needs.
    """
    size = int(len(x) * settings.share / 4)
    rows = slice(-4 * size, -2 * size)
    for _ in range(settings.steps):
        x_adv = x[rows].clone().requires_grad_()
        torch.autograd.backward(cross_entropy(model(x_adv), y[rows], reduction="sum"))
        assert x_adv.grad is not None
        x_adv.grad.sign()
    fgsm(model, x[-2 * size :], y[-2 * size :], x.new_zeros(2 * size, 1, 1, 1))


def measure(
    name: str, model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor, repeats: int
) -> None:
    """Print the times of a training step on the images `x` (B,C,H,W) of a frozen classifier."""
    model = model.eval().requires_grad_(False)
    settings = Adversaries.from_recipe(recipe)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    purifier = new_purifier(model, shape, recipe).to(x.device).train()
    optimiser = Lookahead(purifier.parameters(), recipe.lr_start)
    trainable = copy.deepcopy(model).requires_grad_(True)
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    mixed = settings.attack_batch(model, x, y)

    def attack_in_bfloat16() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return settings.attack_batch(model, x, y)

    def represent() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return taps(model, mixed, purifier.layers)

    representation = represent()

    def update() -> None:
        reconstruction, mu, logvar = purifier(mixed, representation)
        optimiser.zero_grad()
        torch.autograd.backward(elbo(reconstruction, x, mu, logvar, 1.0)[0])
        optimiser.step()

    attacks: dict[str, Callable[[], object]] = {
        "as trained": lambda: settings.attack_batch(model, x, y),
        "four adversaries one by one": lambda: attack_one_by_one(settings, model, x, y),
        "with gradients of the parameters": lambda: attack_by_backward(settings, trainable, x, y),
        "classifier in channels_last": lambda: settings.attack_batch(channels_last, x, y),
        "in bfloat16": attack_in_bfloat16,
    }
    times = median_times({**attacks, "representation": represent, "purifier": update}, repeats)
    print_times(f"{name}: batches of {len(x)}, {settings.steps} steps of PGD", times)


def print_times(head: str, times: dict[str, float]) -> None:
    attack = times.pop("as trained")
    represent = times.pop("representation")
    update = times.pop("purifier")
    step = attack + represent + update
    print(f"{head}, step {step:.0f} ms")
    print(
        f"  adversaries {attack:.0f} ms, {attack / step:.0%}; "
        f"representation {represent / step:.0%}; purifier {update / step:.0%}"
    )
    for name, milliseconds in times.items():
        print(f"  adversaries {name}: {milliseconds / attack:.2f} times as long")


def main(words: Sequence[str] | None = None) -> int:
    parser = flag_parser(__doc__, {"batch": 64, "width": 32, "repeats": 5})
    return run_main(lambda: compare(parser.read(words)), "benchmarks.training")


def compare(args: argparse.Namespace) -> None:
    from bench.data.sample import load
    from bench.questions.discover import discover
    from bench.questions.registry import build_classifier
    from bench.questions.spec import Spec

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(device_line())
    discover()
    recipe = read_recipe("digits")
    data = load(Spec("digits", (("n", recipe.batch),)), split="train")
    model = build_classifier("own:digits-at").to(device)
    measure("digits", model, recipe, data.x.to(device), data.y.to(device), 4 * args.repeats)
    jpeg = replace(read_recipe("cifar10-jpeg"), layers=tuple(f"{i}.conv2" for i in range(1, 7)))
    x = torch.rand(args.batch, 3, 32, 32, device=device)
    y = torch.randint(10, (args.batch,), device=device)
    name = f"ResNet-18 of width {args.width}"
    measure(name, resnet18(args.width).to(device), jpeg, x, y, args.repeats)


if __name__ == "__main__":
    sys.exit(main())
