"""The paper's networks again, from its description alone, and random weights for them.

They are plain functions of state dicts in the authors' key names. Nothing of `carso` or of
RobustBench is used here: what agrees with this agrees with the files' meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

WIDTHS = (160, 320, 640)
LAYERS = [
    f"layer.{g}.block.{b}.{name}"
    for g in range(3)
    for b in range(4)
    for name in (("conv_0", "conv_1", "shortcut") if b == 0 and g > 0 else ("conv_0", "conv_1"))
]


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def normal(state: Mapping[str, Tensor], key: str, x: Tensor) -> Tensor:
    """Batch normalisation by running statistics."""
    mean, var, weight, bias = (
        state[f"{key}.{name}"].view(1, -1, *[1] * (x.ndim - 2))
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def condition(compressors: State, bottleneck: State, taps: list[Tensor]) -> Tensor:
    flat = []
    for i, h in enumerate(taps):
        b = 0
        while f"{i}.{b}.0.weight" in compressors:
            h = leaky(
                normal(compressors, f"{i}.{b}.1", F.conv2d(h, compressors[f"{i}.{b}.0.weight"]))
            )
            b += 1
        flat.append(h.reshape(len(h), -1))
    return leaky(normal(bottleneck, "1.1", torch.cat(flat, 1) @ bottleneck["1.0.weight"].T))


def decode(decoder: State, z: Tensor, c: Tensor) -> Tensor:
    h = leaky(torch.cat([z, c], 1) @ decoder["0.1.weight"].T + decoder["0.1.bias"])
    stages = sum(key.endswith(".0.weight") for key in decoder)
    last = decoder[f"{stages + 1}.weight"]
    channels = decoder["1.0.weight"].shape[0] if stages else last.shape[0]
    side = round((h.shape[1] // channels) ** 0.5)
    h = h.reshape(len(h), channels, side, side)
    for i in range(1, stages + 1):
        h = F.conv_transpose2d(
            h,
            decoder[f"{i}.0.weight"],
            stride=2,
            padding=1,
            output_padding=0 if last.shape[2] == 2 else 1,
        )
        h = leaky(normal(decoder, f"{i}.1", h))
    return 1 / (1 + (-F.conv_transpose2d(h, last, decoder[f"{stages + 1}.bias"], padding=1)).exp())


def encode(parts: Mapping[str, State], x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """mu and log-variance; x as the pre-encoder gets it."""
    for b in range(sum(key.endswith(".0.weight") for key in parts["input_compressor"])):
        x = leaky(
            normal(
                parts["input_compressor"],
                f"{b}.1",
                F.conv2d(x, parts["input_compressor"][f"{b}.0.weight"], stride=2, padding=1),
            )
        )
    h = torch.cat([x.reshape(len(x), -1), c], 1) @ parts["joint_fcn_compressor"]["1.0.weight"].T
    h = leaky(normal(parts["joint_fcn_compressor"], "1.1", h))
    mu, logvar = (
        h @ parts["neck"][f"{name}.weight"].T + parts["neck"][f"{name}.bias"]
        for name in ("x_to_mu", "x_to_log_var")
    )
    return mu, logvar


def wide_resnet(
    state: State, x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, list[Tensor]]:
    """Logits of a WRN-28-10 on [0,1] images, and the 26 tapped convolution outputs."""
    h = F.conv2d(
        (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1),
        state["init_conv.weight"],
        padding=1,
    )
    taps = []
    for g in range(3):
        for b in range(4):
            key, stride = f"layer.{g}.block.{b}", 2 if g and not b else 1
            a = F.silu(normal(state, f"{key}.batchnorm_0", h))
            padded = F.pad(a, (0, 1, 0, 1)) if stride == 2 else F.pad(a, (1, 1, 1, 1))
            first = F.conv2d(padded, state[f"{key}.conv_0.weight"], stride=stride)
            second = F.conv2d(
                F.silu(normal(state, f"{key}.batchnorm_1", first)),
                state[f"{key}.conv_1.weight"],
                padding=1,
            )
            taps += [first, second]
            if b == 0:
                h = F.conv2d(a, state[f"{key}.shortcut.weight"], stride=stride)
                taps += [h] if g else []
            h = h + second
    h = F.silu(normal(state, "batchnorm", h)).mean((2, 3))
    return h @ state["logits.weight"].T + state["logits.bias"], taps


def peel(logits: Tensor) -> Tensor:
    """(B,E,K) -> (B,K), in double precision: s_k - lse of the others."""
    s = logits.double().exp().sum(1)
    rest = torch.eye(s.shape[1], dtype=torch.bool)
    return s - s[:, None].masked_fill(rest, -torch.inf).logsumexp(2)


def bn(key: str, n: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from (
        (f"{key}.{name}", (n,)) for name in ("weight", "bias", "running_mean", "running_var")
    )
    yield f"{key}.num_batches_tracked", ()


def purifier_shapes(
    channels: list[int],
    blocks: int,
    flat: int,
    *,
    c: int,
    d: int,
    maps: list[int],
    seed: int,
    kernel: int,
) -> dict[str, Shapes]:
    """Of the three files, from the tables of the description."""
    compressors: Shapes = {}
    for i, n in enumerate(channels):
        for b in range(blocks):
            widths = -(-n // 2**b), -(-n // 2 ** (b + 1))
            compressors |= {
                f"{i}.{b}.0.weight": (widths[1], widths[0], 3, 3),
                **dict(bn(f"{i}.{b}.1", widths[1])),
            }
    decoder: Shapes = {"0.1.weight": (maps[0] * seed**2, d + c), "0.1.bias": (maps[0] * seed**2,)}
    for i in range(1, len(maps)):
        decoder |= {f"{i}.0.weight": (maps[i - 1], maps[i], 3, 3), **dict(bn(f"{i}.1", maps[i]))}
    decoder |= {f"{len(maps)}.weight": (maps[-1], 3, kernel, kernel), f"{len(maps)}.bias": (3,)}
    bottleneck: Shapes = {"1.0.weight": (c, flat), **dict(bn("1.1", c))}
    return {"repr_compressors": compressors, "repr_fcn_compressor": bottleneck, "decoder": decoder}


def training_shapes(widths: list[int], side: int, c: int, d: int) -> dict[str, Shapes]:
    """Of the parts that were not released."""
    pre: Shapes = {}
    for b, (i, o) in enumerate(zip([3, *widths], widths, strict=False)):
        pre |= {f"{b}.0.weight": (o, i, 3, 3), **dict(bn(f"{b}.1", o))}
        side = -(-side // 2)
    neck = {
        f"{name}.{kind}": (d, d) if kind == "weight" else (d,)
        for name in ("x_to_mu", "x_to_log_var")
        for kind in ("weight", "bias")
    }
    joint: Shapes = {"1.0.weight": (d, widths[-1] * side**2 + c), **dict(bn("1.1", d))}
    return {"input_compressor": pre, "joint_fcn_compressor": joint, "neck": neck}


def released_shapes(scenario: str) -> dict[str, Shapes]:
    channels = [WIDTHS[int(layer.split(".")[1])] for layer in LAYERS]
    maps = [256, 256, 128, 64, 32]
    if scenario == "tinyimagenet200":
        return purifier_shapes(channels, 4, 377_600, c=768, d=192, maps=maps, seed=4, kernel=3)
    return purifier_shapes(channels, 3, 147_040, c=512, d=128, maps=maps, seed=3, kernel=2)


def classifier_shapes(classes: int) -> Shapes:
    shapes: Shapes = {"init_conv.weight": (16, 3, 3, 3)}
    for g in range(3):
        for b in range(4):
            key, o = f"layer.{g}.block.{b}", WIDTHS[g]
            i = o if b else (16, *WIDTHS)[g]
            shapes |= {**dict(bn(f"{key}.batchnorm_0", i)), f"{key}.conv_0.weight": (o, i, 3, 3)}
            shapes |= {**dict(bn(f"{key}.batchnorm_1", o)), f"{key}.conv_1.weight": (o, o, 3, 3)}
            if b == 0:
                shapes[f"{key}.shortcut.weight"] = (o, i, 1, 1)
    return (
        shapes
        | dict(bn("batchnorm", 640))
        | {"logits.weight": (classes, 640), "logits.bias": (classes,)}
    )


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Weights of the usual size, running variances positive, counters whole numbers."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        fan = max(torch.Size(shape[1:]).numel(), 1)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, generator=g) + 0.5
        elif len(shape) == 1:
            state[key] = torch.rand(shape, generator=g) - (
                0.5 if key.endswith(("bias", "mean")) else -0.5
            )
        else:
            state[key] = (torch.rand(shape, generator=g) - 0.5) * (12 / fan) ** 0.5
    return state


def write(path: Path, state: State) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path
