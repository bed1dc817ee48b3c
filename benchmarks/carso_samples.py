"""What a prediction costs: against the passes that it cannot do without, against a loop over the samples, and `draws` against separate calls.

    python -m benchmarks.carso_samples [--samples 8] [--images 32] [--draws 2] [--repeats 5]

Two defences: the digits one of this project, and a ResNet-18 under an untrained purifier that reads its first three stages. Times are of a forward
pass and a backward pass to the image: medians over rounds in which everything runs once, in turn, so that a busy machine slows all alike. Beside the
time on the clock stands the CPU time of the process, which other processes disturb less; the bound is held against it (on a GPU: against the clock).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from carso import CARSO, Layout, Purifier
from carso.representation import shapes, taps

BOUND = (
    1.15  # times the passes of the classifier and the purifier's own: what a prediction may cost
)
Run = Callable[[], object]


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.shortcut = (
            nn.Identity() if stride == 1 and i == o else nn.Conv2d(i, o, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


def resnet18(width: int) -> nn.Sequential:
    blocks = [
        Block(i * width, o * width, s)
        for i, o, s in (
            (1, 1, 1),
            (1, 1, 1),
            (1, 2, 2),
            (2, 2, 1),
            (2, 4, 2),
            (4, 4, 1),
            (4, 8, 2),
            (8, 8, 1),
        )
    ]
    stem, head = (
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)),
    )
    return nn.Sequential(stem, *blocks, *head)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one run in every round."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]

    def text(self) -> str:
        return f"{1000 * statistics.median(self.cpu):7.0f} ms CPU {1000 * statistics.median(self.wall):7.0f} ms wall"


def timed(run: Run) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def rounds(runs: Mapping[str, Run], repeats: int) -> dict[str, Times]:
    """Each run once per round, in turn; the first round warms up and does not count."""
    found = [{name: timed(run) for name, run in runs.items()} for _ in range(repeats + 1)][1:]
    return {
        name: Times(tuple(one[name][0] for one in found), tuple(one[name][1] for one in found))
        for name in runs
    }


def ratios(found: Mapping[str, Times], samples: int, clock: str) -> list[float]:
    """Per round: the prediction over `samples`+1 passes of the bare classifier and the purifier's own."""
    whole, bare, own, other = (
        getattr(found[name], clock) for name in ("prediction", "classifier", "condition", "decoder")
    )
    return [
        w / ((samples + 1) * b + o + p) for w, b, o, p in zip(whole, bare, own, other, strict=True)
    ]


def backward(f: Callable[..., Tensor], *inputs: Tensor) -> Run:
    def run() -> object:
        leaves = [v.clone().requires_grad_() for v in inputs]
        return torch.autograd.grad(f(*leaves).sum(), leaves)

    return run


def acceptance(name: str, defence: CARSO, x: Tensor, repeats: int) -> None:
    """Print what a prediction costs, its parts, and whether the bound holds."""
    samples = defence.samples
    with torch.no_grad():
        read = taps(defence.base, x, defence.purifier.layers)
        c = defence.latent(x)

    def decoder(v: Tensor) -> Tensor:
        return defence.decode(
            torch.randn(len(v) * samples, defence.latent_dim, device=v.device),
            v.repeat_interleave(samples, 0),
        )

    found = rounds(
        {
            "prediction": backward(defence, x),
            "classifier": backward(defence.base, x),
            "condition": backward(lambda *r: defence.purifier.condition(r), *read),
            "decoder": backward(decoder, c),
        },
        repeats,
    )
    print(
        f"{name}: {len(x)} images of {x.shape[2]}x{x.shape[3]}, {samples} samples, forward and backward, medians of {repeats} rounds"
    )
    for what, note in (
        ("prediction", ""),
        ("classifier", f", bare, of which a prediction takes {samples + 1}"),
        ("condition", ", the purifier's own: from the taps to c"),
        ("decoder", f", the purifier's own: {samples} images of each c"),
    ):
        print(f"  {found[what].text()}  {what}{note}")
    for clock in ("cpu", "wall"):
        each = ratios(found, samples, clock)
        spread = f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
        print(f"  prediction / ({samples + 1} classifier + condition + decoder), {clock}: {spread}")
    share = statistics.median(ratios(found, samples, "wall" if x.is_cuda else "cpu"))
    print(f"  {'PASS' if share <= BOUND else 'FAIL'}: {share:.2f}, at most {BOUND}")


def alternatives(defence: CARSO, x: Tensor, draws: int, repeats: int) -> None:
    """Print what other ways to the same predictions cost."""
    samples = defence.samples

    def each(v: Tensor, together: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return defence.aggregate(
            together(
                torch.randn(len(v), defence.latent_dim, samples, device=v.device), defence.latent(v)
            )
        )

    def one(z: Tensor, c: Tensor) -> Tensor:
        return defence.classify(defence.decode(z, c))

    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "prediction": defence,
        "a loop over the samples": lambda v: each(
            v, lambda z, c: torch.stack([one(z[..., e], c) for e in range(samples)], 1)
        ),
        "torch.vmap over the samples": lambda v: each(
            v, lambda z, c: torch.vmap(lambda e: one(e, c), in_dims=2, out_dims=1)(z)
        ),
        "draws": lambda v: defence.draws(v, draws),
        "separate predictions": lambda v: torch.stack([defence(v) for _ in range(draws)], 1),
    }
    found = rounds({name: backward(f, x) for name, f in runs.items()}, repeats)
    cost = {
        name: statistics.median(times.wall if x.is_cuda else times.cpu)
        for name, times in found.items()
    }
    for name in ("a loop over the samples", "torch.vmap over the samples"):
        print(
            f"  {found[name].text()}  {name}: {cost[name] / cost['prediction']:.2f} of the prediction"
        )
    print(f"  {found['draws'].text()}  draws(x, {draws})")
    times = f"{cost['separate predictions'] / cost['draws']:.2f}"
    print(
        f"  {found['separate predictions'].text()}  {draws} separate predictions: {times} of draws(x, {draws})"
    )


def resnet(images: int, samples: int) -> tuple[CARSO, Tensor]:
    base = resnet18(64).eval().requires_grad_(False)
    layers = tuple(f"{i}.conv2" for i in range(1, 7))
    layout = Layout(
        (3, 32, 32),
        shapes(base, (3, 32, 32), layers),
        (0.5,) * 3,
        (0.25,) * 3,
        bottleneck=128,
        latent=64,
        decoder=(128, 128, 64, 64, 32),
    )
    return CARSO(base, Purifier(layout, layers), samples), torch.rand(images, 3, 32, 32)


def digits(images: int, samples: int) -> tuple[CARSO, Tensor]:
    from bench.data.sample import load
    from bench.questions.registry import build_classifier, discover
    from bench.questions.spec import Spec
    from bench.weights import locate
    from carso import checkpoint

    discover()
    purifier, _ = checkpoint.load(locate("own:digits-carso"))
    return CARSO(build_classifier("own:digits-at"), purifier, samples), load(
        Spec("digits", (("n", images),))
    ).x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("samples", 8), ("images", 32), ("draws", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, make in (("digits", digits), ("ResNet-18", resnet)):
        defence, x = make(args.images, args.samples)
        acceptance(name, defence.to(device), x.to(device), args.repeats)
        alternatives(defence, x.to(device), args.draws, max(args.repeats // 2, 1))


if __name__ == "__main__":
    main()
