"""What it costs to predict with several samples: one flat batch against a loop, and `draws`, which shares the representation.

`python benchmarks/carso_samples.py [--samples 8] [--draws 10] [--images 32] [--size 32] [--width 64] [--repeats 5]`

A ResNet-18-like classifier and an untrained purifier of the paper's shape around its first three stages; forward and backward to the image.
Times are the fastest of the repeats, in milliseconds, on the threads that torch is given.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("samples", 8), ("draws", 10), ("images", 32), ("size", 32), ("width", 64), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    image = (3, args.size, args.size)
    base = resnet18(args.width).eval().requires_grad_(False)
    layers = tuple(f"{i}.conv2" for i in range(1, 7))
    layout = Layout(image, shapes(base, image, layers), (0.5,) * 3, (0.25,) * 3, bottleneck=128, latent=64, decoder=(128, 128, 64, 64, 32))
    defence = CARSO(base, Purifier(layout, layers), args.samples).to(device)
    x = torch.rand(args.images, *image, device=device)

    def backward(f: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> object:
            v = x.clone().requires_grad_()
            return torch.autograd.grad(f(v).sum(), v)

        return run

    def loop(v: Tensor) -> Tensor:
        c = defence.latent(v)
        z = torch.randn(len(v), args.samples, defence.latent_dim, device=v.device)
        return defence.aggregate(torch.stack([defence.classify(defence.decode(z[:, e], c)) for e in range(args.samples)], 1))

    def vmapped(v: Tensor) -> Tensor:
        c = defence.latent(v)
        z = torch.randn(args.samples, len(v), defence.latent_dim, device=v.device)
        return defence.aggregate(torch.vmap(lambda e: defence.classify(defence.decode(e, c)), out_dims=1)(z))

    def purifier_alone(v: Tensor) -> Tensor:
        c = defence.latent(v)
        return defence.decode(torch.randn(len(v) * args.samples, defence.latent_dim, device=v.device), c.repeat_interleave(args.samples, 0))

    def separate(v: Tensor) -> Tensor:
        return torch.stack([defence(v) for _ in range(args.draws)], 1)

    where = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{args.images} images of {args.size}x{args.size}, {args.samples} samples, {where}")
    bare = fastest(backward(base), args.repeats)
    own = fastest(backward(purifier_alone), args.repeats) - bare
    flat = fastest(backward(defence), args.repeats)
    bound = (args.samples + 1) * bare + own
    print(f"bare classifier {bare:.0f} ms, purifier alone {own:.0f} ms; CARSO in one flat batch {flat:.0f} ms")
    print(f"  = {flat / bound:.2f} of {args.samples + 1} bare passes and the purifier's own time")
    for name, f in (("a loop over the samples", loop), ("torch.vmap over the samples", vmapped)):
        took = fastest(backward(f), args.repeats)
        print(f"  {name}: {took:.0f} ms, {took / flat:.2f} times the flat batch")
    shared, apart = (fastest(backward(f), args.repeats) for f in (lambda v: defence.draws(v, args.draws), separate))
    print(f"draws(x, {args.draws}): {shared:.0f} ms; {args.draws} separate predictions: {apart:.0f} ms, {apart / shared:.2f} times as long")


if __name__ == "__main__":
    main()
