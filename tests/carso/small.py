"""A small classifier with known layers, and purifiers around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carso import Layout, Purifier
from carso.representation import tap_shapes

IMAGE = (1, 8, 8)
LAYERS = ("conv1", "block.conv2", "fc")


class Small(nn.Module):
    """1x8x8 -> 4 classes.

    The activations work in place: taps that are no copies would be overwritten.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 5, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.block = nn.Sequential()
        self.block.add_module("conv2", nn.Conv2d(5, 6, 3, stride=2, padding=1))
        self.block.add_module("act", nn.ReLU(inplace=True))
        self.fc = nn.Linear(96, 7)
        self.logits = nn.Linear(7, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.act(self.conv1(x)))
        out: Tensor = self.logits(self.fc(h.flatten(1)).relu())
        return out


def classifier(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small().eval().requires_grad_(False)


def layout(taps: tuple[tuple[int, ...], ...] | None = None) -> Layout:
    shapes = tap_shapes(classifier(), IMAGE, LAYERS) if taps is None else taps
    return Layout(
        IMAGE,
        shapes,
        (0.3,),
        (0.4,),
        blocks=1,
        padding=1,
        bottleneck=6,
        latent=3,
        encoder=(2, 4),
        decoder=(8, 6, 4),
        last_kernel=3,
    )


def purifier(seed: int = 1, *, unconditional: bool = False) -> Purifier:
    """Untrained, but with batch statistics as training leaves them: not the identity."""
    torch.manual_seed(seed)
    model = Purifier(layout(() if unconditional else None), () if unconditional else LAYERS)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = torch.randn_like(module.running_mean) * 0.1
            module.running_var = torch.rand_like(module.running_var) + 0.5
    return model.eval()


def images(n: int = 5, seed: int = 2) -> Tensor:
    return torch.rand(n, *IMAGE, generator=torch.Generator().manual_seed(seed))
