"""What it costs to predict with several samples: one flat batch against a loop, and `draws`, which shares the representation.

    python -m benchmarks.carso_samples [--samples 8] [--draws 10] [--images 32] [--repeats 3]

Two defences: the digits one of this project, and a ResNet-18 under an untrained purifier that reads its first three stages. Times are of a forward
pass and a backward pass to the image, the fastest of the repeats, on the threads that torch is given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from carso import CARSO, Layout, Purifier
from carso.representation import shapes


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.shortcut = nn.Identity() if stride == 1 and i == o else nn.Conv2d(i, o, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


def resnet18(width: int) -> nn.Sequential:
    blocks = [Block(i * width, o * width, s) for i, o, s in ((1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1))]
    stem, head = nn.Conv2d(3, width, 3, 1, 1, bias=False), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))
    return nn.Sequential(stem, *blocks, *head)


def fastest(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def measure(name: str, defence: CARSO, x: Tensor, draws: int, repeats: int) -> None:
    """Print the times of one defence; forward, and backward to the image."""
    samples, base = defence.samples, defence.base

    def backward(f: Callable[[Tensor], Tensor]) -> float:
        def run() -> object:
            v = x.clone().requires_grad_()
            return torch.autograd.grad(f(v).sum(), v)

        return fastest(run, repeats)

    def loop(v: Tensor) -> Tensor:
        c, z = defence.latent(v), torch.randn(len(v), defence.latent_dim, samples, device=v.device)
        return defence.aggregate(torch.stack([defence.classify(defence.decode(z[..., e], c)) for e in range(samples)], 1))

    def mapped(v: Tensor) -> Tensor:
        c, z = defence.latent(v), torch.randn(len(v), defence.latent_dim, samples, device=v.device)
        return defence.aggregate(torch.vmap(lambda e: defence.classify(defence.decode(e, c)), in_dims=2, out_dims=1)(z))

    def purifier_alone(v: Tensor) -> Tensor:
        c = defence.latent(v)
        return defence.decode(torch.randn(len(v) * samples, defence.latent_dim, device=v.device), c.repeat_interleave(samples, 0))

    def separate(v: Tensor) -> Tensor:
        return torch.stack([defence(v) for _ in range(draws)], 1)

    bare, flat = backward(base), backward(defence)
    own = backward(purifier_alone) - bare
    print(f"{name}: {len(x)} images of {x.shape[2]}x{x.shape[3]}, {samples} samples")
    share = flat / ((samples + 1) * bare + own)
    print(f"  one flat batch {flat:.1f} ms = {share:.2f} of {samples + 1} bare passes ({bare:.1f} ms) and the purifier's own time")
    for what, f in (("a loop over the samples", loop), ("torch.vmap over them", mapped)):
        took = backward(f)
        print(f"  {what} {took:.1f} ms, {took / flat:.2f} times the flat batch")
    shared, apart = backward(lambda v: defence.draws(v, draws)), backward(separate)
    print(f"  {draws} separate predictions {apart:.1f} ms, {apart / shared:.2f} times draws(x, {draws}), which takes {shared:.1f} ms")


def resnet(images: int, samples: int) -> tuple[CARSO, Tensor]:
    base = resnet18(64).eval().requires_grad_(False)
    layers = tuple(f"{i}.conv2" for i in range(1, 7))
    layout = Layout(
        (3, 32, 32), shapes(base, (3, 32, 32), layers), (0.5,) * 3, (0.25,) * 3, bottleneck=128, latent=64, decoder=(128, 128, 64, 64, 32)
    )
    return CARSO(base, Purifier(layout, layers), samples), torch.rand(images, 3, 32, 32)


def digits(images: int, samples: int) -> tuple[CARSO, Tensor]:
    from bench.data.sample import load
    from bench.registry import defences, discover
    from bench.spec import Spec

    discover()
    defence: CARSO = defences.get("carso").make(classifier="own:digits-at", purifier="own:digits-carso", samples=samples)
    return defence, load(Spec("digits", (("n", images),))).x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("samples", 8), ("draws", 10), ("images", 32), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, make in (("digits", digits), ("ResNet-18", resnet)):
        defence, x = make(args.images, args.samples)
        measure(name, defence.to(device), x.to(device), args.draws, args.repeats)


if __name__ == "__main__":
    main()
