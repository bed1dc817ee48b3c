"""Bare modules from images (B,C,H,W) in [0,1] to logits (B,K), with nothing of the bench.

Normalisation is inside, and layers have names. Each is made with `(shape, classes, *, knobs)` and
holds buffers `mean` and `std` (C,1,1) of its training images.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from baselines.nets.cnn import Cnn
from baselines.nets.mlp import Mlp
from baselines.nets.resnet import ResNet

NETS: dict[str, Callable[..., nn.Module]] = {"cnn": Cnn, "mlp": Mlp, "resnet": ResNet}
