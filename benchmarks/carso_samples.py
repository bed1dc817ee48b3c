"""What a prediction of CARSO costs, against the passes that it cannot do without.

    python -m benchmarks.carso_samples [--samples 8] [--images 32] [--draws 2] [--repeats 5]

Other rows: a loop over the samples, `torch.vmap` over them, and `draws` against separate calls. Two
defences: the digits one of this project, and a ResNet-18 under an untrained purifier that reads its
first three stages.

Times are of a forward pass and a backward pass to the image. They are medians over rounds in which
everything runs once, in turn, so that a busy machine slows all alike. Beside the time of the clock
stands the CPU time of the process, which other processes disturb less. The bound is held against
the CPU time, and on a GPU against the clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.cli.main import run_main
from benchmarks.common import device_line, flag_parser
from carso import CARSO, Layout, Purifier
from carso.representation import tap_shapes, taps

# What a prediction may cost, as a multiple of the classifier's passes and the purifier's own.
BOUND = 1.15
Run = Callable[[], object]


class Block(nn.Module):
    """The basic block of a ResNet, before whose first addition a network may be tapped."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


def resnet18(width: int) -> nn.Sequential:
    """A ResNet-18 for images of 3x32x32; its blocks are the children 1 to 8."""
    multiples = ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8))
    blocks = [Block(i * width, o * width, stride=1 if i == o else 2) for i, o in multiples]
    stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    head = nn.Linear(8 * width, 10)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one run in every round."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]

    def __str__(self) -> str:
        cpu = 1000 * statistics.median(self.cpu)
        wall = 1000 * statistics.median(self.wall)
        return f"{cpu:7.0f} ms CPU {wall:7.0f} ms wall"


def time_run(run: Run) -> tuple[float, float]:
    """Seconds of CPU time and of the clock."""
    cpu = time.process_time()
    wall = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def time_rounds(runs: Mapping[str, Run], repeats: int) -> dict[str, Times]:
    """Each run once per round, in turn; the first round warms up and does not count."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            pair = time_run(run)
            if turn:
                seconds[name].append(pair)
    return {
        name: Times(cpu=tuple(cpu for cpu, _ in pairs), wall=tuple(wall for _, wall in pairs))
        for name, pairs in seconds.items()
    }


def cost_ratios(times: Mapping[str, Times], samples: int, clock: str) -> list[float]:
    """Per round: the prediction over samples+1 passes of the classifier and the purifier's own."""
    names = ("prediction", "classifier", "condition", "decoder")
    rounds = zip(*(getattr(times[name], clock) for name in names), strict=True)
    return [
        prediction / ((samples + 1) * classifier + condition + decoder)
        for prediction, classifier, condition, decoder in rounds
    ]


def forward_backward(f: Callable[..., Tensor], *inputs: Tensor) -> Run:
    """A run of `f` and of its gradient in all inputs."""

    def run() -> object:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(f(*leaves).sum(), leaves)

    return run


def check_cost(name: str, defence: CARSO, x: Tensor, repeats: int) -> None:
    """Print what a prediction costs, its parts, and whether the bound holds."""
    samples = defence.samples
    with torch.no_grad():
        representation = taps(defence.base, x, defence.purifier.layers)
        c = defence.latent(x)

    def condition(*taken: Tensor) -> Tensor:
        return defence.purifier.condition(taken)

    def decoder(c: Tensor) -> Tensor:
        z = torch.randn(len(c) * samples, defence.latent_dim, device=c.device)
        return defence.decode(z, c.repeat_interleave(samples, 0))

    runs = {
        "prediction": forward_backward(defence, x),
        "classifier": forward_backward(defence.base, x),
        "condition": forward_backward(condition, *representation),
        "decoder": forward_backward(decoder, c),
    }
    times = time_rounds(runs, repeats)
    print(
        f"{name}: {len(x)} images of {x.shape[2]}x{x.shape[3]}, {samples} samples, "
        f"forward and backward, medians of {repeats} rounds"
    )
    notes = {
        "prediction": "",
        "classifier": f", bare, of which a prediction takes {samples + 1}",
        "condition": ", the purifier's own: from the taps to c",
        "decoder": f", the purifier's own: {samples} images of each c",
    }
    for part, note in notes.items():
        print(f"  {times[part]}  {part}{note}")
    for clock in ("cpu", "wall"):
        ratios = cost_ratios(times, samples, clock)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  prediction / ({samples + 1} classifier + condition + decoder), {clock}: {spread}")
    ratio = statistics.median(cost_ratios(times, samples, "wall" if x.is_cuda else "cpu"))
    print(f"  {'PASS' if ratio <= BOUND else 'FAIL'}: {ratio:.2f}, at most {BOUND}")


def compare_ways(defence: CARSO, x: Tensor, draws: int, repeats: int) -> None:
    """Print what other ways to the same predictions cost."""
    samples = defence.samples

    def noise(x: Tensor) -> Tensor:
        return torch.randn(len(x), defence.latent_dim, samples, device=x.device)

    def answer(z: Tensor, c: Tensor) -> Tensor:
        return defence.classify(defence.decode(z, c))

    def loop(x: Tensor) -> Tensor:
        z = noise(x)
        c = defence.latent(x)
        return defence.aggregate(torch.stack([answer(z[..., i], c) for i in range(samples)], 1))

    def vmap(x: Tensor) -> Tensor:
        z = noise(x)
        c = defence.latent(x)
        return defence.aggregate(
            torch.vmap(lambda sample: answer(sample, c), in_dims=2, out_dims=1)(z)
        )

    def separate(x: Tensor) -> Tensor:
        return torch.stack([defence(x) for _ in range(draws)], 1)

    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "prediction": defence,
        "a loop over the samples": loop,
        "torch.vmap over the samples": vmap,
        "draws": lambda x: defence.draws(x, draws),
        "separate predictions": separate,
    }
    times = time_rounds({name: forward_backward(way, x) for name, way in ways.items()}, repeats)
    cost = {
        name: statistics.median(seconds.wall if x.is_cuda else seconds.cpu)
        for name, seconds in times.items()
    }
    for name in ("a loop over the samples", "torch.vmap over the samples"):
        print(f"  {times[name]}  {name}: {cost[name] / cost['prediction']:.2f} of the prediction")
    print(f"  {times['draws']}  draws(x, {draws})")
    ratio = cost["separate predictions"] / cost["draws"]
    print(
        f"  {times['separate predictions']}  {draws} separate predictions: "
        f"{ratio:.2f} of draws(x, {draws})"
    )


def resnet_defence(images: int, samples: int) -> tuple[CARSO, Tensor]:
    base = resnet18(64).eval().requires_grad_(False)
    layers = tuple(f"{i}.conv2" for i in range(1, 7))
    layout = Layout(
        (3, 32, 32),
        tap_shapes(base, (3, 32, 32), layers),
        (0.5,) * 3,
        (0.25,) * 3,
        bottleneck=128,
        latent=64,
        decoder=(128, 128, 64, 64, 32),
    )
    return CARSO(base, Purifier(layout, layers), samples), torch.rand(images, 3, 32, 32)


def digits_defence(images: int, samples: int) -> tuple[CARSO, Tensor]:
    from bench.data.sample import load
    from bench.questions.discover import discover
    from bench.questions.registry import build_classifier
    from bench.questions.spec import Spec
    from bench.weights import locate
    from carso import checkpoint

    discover()
    purifier, _ = checkpoint.load_purifier(locate("own:digits-carso"))
    x = load(Spec("digits", (("n", images),))).x
    return CARSO(build_classifier("own:digits-at"), purifier, samples), x


def main(words: Sequence[str] | None = None) -> int:
    parser = flag_parser(__doc__, {"samples": 8, "images": 32, "draws": 2, "repeats": 5})
    return run_main(lambda: measure(parser.read(words)), "benchmarks.carso_samples")


def measure(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(device_line())
    for name, make in (("digits", digits_defence), ("ResNet-18", resnet_defence)):
        defence, x = make(args.images, args.samples)
        check_cost(name, defence.to(device), x.to(device), args.repeats)
        compare_ways(defence, x.to(device), args.draws, max(args.repeats // 2, 1))


if __name__ == "__main__":
    sys.exit(main())
