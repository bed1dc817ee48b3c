"""The conditional VAE: from a classifier's representation and a latent z to a clean image.

It is trained to undo perturbations. Layer for layer it has the paper's networks for 3x32x32 and
3x64x64 images (arXiv 2306.06081); other sizes follow the same rules. The modules `compressors`,
`bottleneck` and `decoder` have the key names and shapes of the authors' released files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BadInput

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """All sizes of a purifier. Without taps it is an unconditional VAE. BadInput if they clash.

    - `image`: (C,H,W).
    - `taps`: the shapes of the representation, per layer, without the batch. Where weights do not
      tell heights and widths, these are None.
    - `mean`, `std`: per channel, the scaling of the image before the encoder.
    - `blocks`: 3x3 convolutions per (channels, height, width) tap, each halving the channels.
      Taps of other ranks enter flat.
    - `padding`: 0, where each convolution takes 2 from height and width, or 1.
    - `bottleneck`: the size C of the condition.
    - `latent`: the size D of z.
    - `encoder`: channels of the strided convolutions on the image; none: a purifier that can only
      decode.
    - `decoder`: channels of the seed map, then of every stage that doubles it.
    - `last_kernel`: 3, or 2 where the last stage overshoots by one pixel.
    - `flat`: where heights and widths are None, the number of values of all compressed taps
      together; 0: counted.
    """

    image: tuple[int, int, int]
    taps: tuple[Shape, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    blocks: int = 3
    padding: int = 0
    bottleneck: int = 512
    latent: int = 128
    encoder: tuple[int, ...] = (6, 12)
    decoder: tuple[int, ...] = (256, 256, 128, 64, 32)
    last_kernel: int = 2
    flat: int = 0

    def __post_init__(self) -> None:
        self._check_sizes()
        for tap in self.taps:
            if tap[:1] == (None,) or (len(tap) != 3 and None in tap):
                raise BadInput(
                    f"taps {self.taps}: only the height and the width of a tap can be unknown"
                )
        if self.shapes_known != (self.flat == 0):
            raise BadInput(
                f"flat={self.flat} is counted where the taps' shapes are known, "
                "and must be given where they are not"
            )
        for i, tap in enumerate(self.taps):
            self._check_large_enough(i, tap)

    def _check_sizes(self) -> None:
        channels = self.image[0]
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise BadInput(
                f"mean {self.mean} and std {self.std} must have one value for each of "
                f"the {channels} channels, std above 0"
            )
        if self.last_kernel not in (2, 3) or self.padding not in (0, 1):
            raise BadInput(
                f"last_kernel={self.last_kernel} must be 2 or 3, and padding={self.padding} 0 or 1"
            )
        smallest = min(self.latent, self.bottleneck, *self.encoder, *self.decoder)
        if self.blocks < 0 or smallest < 1 or not self.decoder:
            raise BadInput(
                "blocks must be 0 or more; latent, bottleneck, "
                "and the channels of encoder and decoder at least 1"
            )

    def _check_large_enough(self, i: int, tap: Shape) -> None:
        side = 1 + 2 * self.blocks * (1 - self.padding)
        too_small = any(n is not None and n < side for n in tap[1:])
        if len(tap) == 3 and too_small:
            raise BadInput(
                f"tap {i} ({'x'.join(map(str, tap))}) is too small for {self.blocks} blocks of 3x3 "
                f"convolutions without padding, which need {side}x{side}: "
                "take fewer blocks, padding=1, or another layer"
            )

    def check_taps(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """BadInput where taps of these shapes, without the batch, are not those of the layout."""
        expected = self.taps
        same = len(shapes) == len(expected) and all(map(fits, expected, shapes))
        if not same or not shapes:
            raise BadInput(
                f"the purifier was made for taps of the shapes {expected}, "
                f"the classifier gives {tuple(shapes)}"
            )
        if self.shapes_known:
            return
        for i, shape in enumerate(shapes):
            self._check_large_enough(i, shape)
        values = self.count_values(shapes)
        if values != self.flat:
            raise BadInput(
                f"the purifier was made for taps of {self.flat} values after compression, "
                f"the classifier's have {values}: {tuple(shapes)}"
            )

    @property
    def shapes_known(self) -> bool:
        """Whether the shapes of all taps are known."""
        return not any(None in tap for tap in self.taps)

    def count_values(self, taps: Sequence[tuple[int, ...]]) -> int:
        """The number of values of these taps after their compressors, all together."""
        return sum(prod(self.compressed_shape(tap)) for tap in taps)

    def compressed_shape(self, tap: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tap after its compressor."""
        if len(tap) != 3:
            return tap
        shrink = 2 * self.blocks * (1 - self.padding)
        return -(-tap[0] // 2**self.blocks), tap[1] - shrink, tap[2] - shrink

    @property
    def condition_size(self) -> int:
        """C, or 0 where there are no taps."""
        return self.bottleneck if self.taps else 0

    @property
    def compressed_size(self) -> int:
        """The number of values of the compressed taps: what the bottleneck reads."""
        if self.flat:
            return self.flat
        return self.count_values([tuple(n for n in tap if n is not None) for tap in self.taps])

    @property
    def map_sizes(self) -> list[tuple[int, int]]:
        """Height and width of the decoder's maps, from its seed to its last stage.

        They are counted backwards: each is half of the next, rounded up.
        """
        overshoot = 1 if self.last_kernel == 2 else 0
        height = self.image[1] + overshoot
        width = self.image[2] + overshoot
        sizes = [(height, width)]
        for _ in self.decoder[1:]:
            height = -(-height // 2)
            width = -(-width // 2)
            sizes.append((height, width))
        return sizes[::-1]

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "flat" or value}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Layout:
        """BadInput where a field is missing or unknown."""
        names = {field.name for field in fields(Layout)}
        odd = (names ^ set(data)) - {"flat"}
        if odd:
            raise BadInput(
                f"the purifier's layout lacks or has unknown fields: {', '.join(sorted(odd))}"
            )
        return Layout(**{key: as_tuples(value) for key, value in data.items()})


def fits(expected: Shape, shape: tuple[int, ...]) -> bool:
    """Whether a tap of this shape is one of the `expected` shape, where None is any size."""
    if len(expected) != len(shape):
        return False
    return all(n in (size, None) for n, size in zip(expected, shape, strict=True))


def as_tuples(value: Any) -> Any:
    """Lists, also within lists, as tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


class Cat(nn.Module):
    """Flatten every tensor from its dimension 1 on, and join them along it."""

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.flatten(1) for t in tensors], 1)


def convolution(i: int, o: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, 3, stride, padding, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)
    )


def full_layer(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.LeakyReLU(0.2))


def doubling(i: int, o: int, before: tuple[int, int], after: tuple[int, int]) -> nn.Sequential:
    """Transposed convolution from a map of size `before` to one of size `after`.

    A side of n becomes 2n-1 or, with an output padding of 1, 2n.
    """
    extra = (after[0] - 2 * before[0] + 1, after[1] - 2 * before[1] + 1)
    return nn.Sequential(
        nn.ConvTranspose2d(i, o, 3, 2, 1, extra, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)
    )


class Purifier(nn.Module):
    """`layers`: the classifier's layers whose outputs are the taps, in execution order.

    No layers: the unconditional VAE. Images (B,C,H,W) in [0,1]; taps: a tuple of (B,...); c (B,C);
    z, mu, logvar (B,D). Inference needs `condition` and `decode` only.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layout: Layout, layers: Sequence[str] = ()) -> None:
        super().__init__()
        self.layout = layout
        self.layers = tuple(layers)
        channels, h, w = layout.image
        d = layout.latent
        c = layout.condition_size
        for name in ("mean", "std"):
            values = torch.tensor(getattr(layout, name)).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)

        self.compressors = nn.ModuleList(self._compressor(tap) for tap in layout.taps)
        self.bottleneck = self._bottleneck() if layout.taps else None

        if layout.encoder:
            widths = (channels, *layout.encoder)
            self.encoder = nn.Sequential(*(convolution(i, o, 2, 1) for i, o in pairwise(widths)))
            for _ in layout.encoder:
                h = -(-h // 2)
                w = -(-w // 2)
            self.joint = nn.Sequential(Cat(), full_layer(layout.encoder[-1] * h * w + c, d))
            self.mu = nn.Linear(d, d)
            self.logvar = nn.Linear(d, d)

        sizes = layout.map_sizes
        maps = layout.decoder
        seed = (maps[0], *sizes[0])
        self.decoder = nn.Sequential(
            nn.Sequential(
                Cat(), nn.Linear(d + c, prod(seed)), nn.LeakyReLU(0.2), nn.Unflatten(1, seed)
            ),
            *(doubling(maps[i], maps[i + 1], sizes[i], sizes[i + 1]) for i in range(len(maps) - 1)),
            nn.ConvTranspose2d(maps[-1], channels, layout.last_kernel, 1, 1),
            nn.Sigmoid(),
        )

    def _bottleneck(self) -> nn.Sequential:
        return nn.Sequential(
            Cat(), full_layer(self.layout.compressed_size, self.layout.condition_size)
        )

    def _compressor(self, tap: Shape) -> nn.Sequential:
        if len(tap) != 3 or tap[0] is None:
            return nn.Sequential()
        widths = [-(-tap[0] // 2**b) for b in range(self.layout.blocks + 1)]
        padding = self.layout.padding
        return nn.Sequential(*(convolution(i, o, 1, padding) for i, o in pairwise(widths)))

    def condition(self, taps: Sequence[Tensor]) -> Tensor:
        """c (B,C) of the taps. BadInput where their number or shapes are not the layout's."""
        self.layout.check_taps([tuple(tap.shape[1:]) for tap in taps])
        assert self.bottleneck is not None  # the check passes no layout without taps
        pairs = zip(self.compressors, taps, strict=True)
        c: Tensor = self.bottleneck([compressor(tap) for compressor, tap in pairs])
        return c

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """mu, logvar (B,D) of the posterior of z; c is (B,0) where there are no taps.

        BadInput where the purifier has no encoder.
        """
        if not self.layout.encoder:
            raise BadInput(
                "this purifier has no encoder, and can only decode: "
                "the released files lack the parts that only training needs"
            )
        h = self.joint((self.encoder((x - self.mean) / self.std), c))
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        """Images (B,C,H,W) in (0,1) of z and c."""
        x: Tensor = self.decoder((z, c))
        return x

    def forward(self, x: Tensor, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """One training pass on (perturbed) images and their taps.

        It gives a reconstruction from a sample of the posterior, and the posterior's mu and
        logvar.
        """
        c = self.condition(taps) if self.layout.taps else x.new_zeros(len(x), 0)
        mu, logvar = self.encode(x, c)
        z = mu + (logvar / 2).exp() * torch.randn_like(mu)
        return self.decode(z, c), mu, logvar
