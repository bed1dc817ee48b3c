"""The conditional VAE: from a classifier's representation, and a latent z, to a clean image. Trained to undo perturbations.

Layer for layer the paper's networks for 3x32x32 and 3x64x64 images (arXiv 2306.06081); other sizes follow the same rules. The modules
`compressors`, `bottleneck` and `decoder` have the key names and shapes of the authors' released files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """All sizes of a purifier. Without taps it is an unconditional VAE.

    `image` (C,H,W); `taps`: the shapes of the representation, per layer, without the batch; where weights do not tell heights and widths, these
    are None, and `flat` is the number of values of all compressed taps together (0: counted); `mean`, `std`: per channel, the scaling of
    the image before the encoder; `blocks` 3x3 convolutions per (channels, height, width) tap, each halving the channels, with
    `padding` 0 (each takes 2 from height and width) or 1; taps of other ranks enter flat; `bottleneck`: size C of the condition;
    `latent`: size D of z; `encoder`: channels of the strided convolutions on the image (none: a purifier that can
    only decode); `decoder`: channels of the seed map, then of every stage that doubles it; `last_kernel` 3, or 2 where the last stage overshoots
    by one pixel.
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
        if len(self.mean) != self.image[0] or len(self.std) != self.image[0] or min(self.std) <= 0:
            raise ValueError(
                f"mean {self.mean} and std {self.std} must have one value for each of the {self.image[0]} channels, std above 0"
            )
        if self.last_kernel not in (2, 3) or self.padding not in (0, 1):
            raise ValueError(
                f"last_kernel={self.last_kernel} must be 2 or 3, and padding={self.padding} 0 or 1"
            )
        if (
            self.blocks < 0
            or min(self.latent, self.bottleneck, *self.encoder, *self.decoder) < 1
            or not self.decoder
        ):
            raise ValueError(
                "blocks must be 0 or more; latent, bottleneck, and the channels of encoder and decoder at least 1"
            )
        if any(tap[:1] == (None,) or (len(tap) != 3 and None in tap) for tap in self.taps):
            raise ValueError(
                f"taps {self.taps}: only the height and the width of a tap can be unknown"
            )
        if self.known != (self.flat == 0):
            raise ValueError(
                f"flat={self.flat} is counted where the taps' shapes are known, and must be given where they are not"
            )
        for i, tap in enumerate(self.taps):
            self._large_enough(i, tap)

    def _large_enough(self, i: int, tap: Shape) -> None:
        least = 1 + 2 * self.blocks * (1 - self.padding)
        if len(tap) == 3 and min(n for n in (*tap[1:], least) if n is not None) < least:
            raise ValueError(
                f"tap {i} ({'x'.join(map(str, tap))}) is too small for {self.blocks} blocks of 3x3 convolutions without padding, which need "
                f"{least}x{least}: take fewer blocks, padding=1, or another layer"
            )

    def check(self, got: Sequence[tuple[int, ...]]) -> None:
        """ValueError where taps of the shapes `got` (without the batch) are not those of the layout."""
        same = len(got) == len(self.taps) and all(
            len(a) == len(b) and all(m in (n, None) for m, n in zip(a, b, strict=True))
            for a, b in zip(self.taps, got, strict=True)
        )
        if not same or not got:
            raise ValueError(
                f"the purifier was made for taps of the shapes {self.taps}, the classifier gives {tuple(got)}"
            )
        if not self.known:
            for i, tap in enumerate(got):
                self._large_enough(i, tap)
            if (total := self.count(got)) != self.flat:
                raise ValueError(
                    f"the purifier was made for taps of {self.flat} values after compression, the classifier's have {total}: {tuple(got)}"
                )

    @property
    def known(self) -> bool:
        """Whether the shapes of all taps are."""
        return not any(None in tap for tap in self.taps)

    def count(self, taps: Sequence[tuple[int, ...]]) -> int:
        """The number of values of these taps after their compressors, all together."""
        return sum(prod(self.compressed(tap)) for tap in taps)

    def compressed(self, tap: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tap after its compressor."""
        if len(tap) != 3:
            return tap
        shrink = 2 * self.blocks * (1 - self.padding)
        return -(-tap[0] // 2**self.blocks), tap[1] - shrink, tap[2] - shrink

    @property
    def condition(self) -> int:
        """C, or 0 where there are no taps."""
        return self.bottleneck if self.taps else 0

    @property
    def total(self) -> int:
        """The number of values of the compressed taps: what the bottleneck reads."""
        return self.flat or self.count(
            [tuple(n for n in tap if n is not None) for tap in self.taps]
        )

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the decoder's maps, from its seed to its last stage: found backwards, each half of the next, rounded up."""
        _, h, w = self.image
        found = [(h + (self.last_kernel == 2), w + (self.last_kernel == 2))]
        for _ in self.decoder[1:]:
            found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
        return found[::-1]

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "flat" or v}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Layout:
        """ValueError where a field is missing or unknown."""
        names = {f.name for f in fields(Layout)}
        if odd := (names ^ set(data)) - {"flat"}:
            raise ValueError(
                f"the purifier's layout lacks or has unknown fields: {', '.join(sorted(odd))}"
            )
        return Layout(**{k: _frozen(v) for k, v in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


class Cat(nn.Module):
    """Flatten every tensor from its dimension 1 on, and join them along it."""

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.flatten(1) for t in tensors], 1)


def conv(i: int, o: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, 3, stride, padding, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)
    )


def full(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.LeakyReLU(0.2))


def double(i: int, o: int, before: tuple[int, int], after: tuple[int, int]) -> nn.Sequential:
    """Transposed convolution from a map of size `before` to `after`: 2n-1 or, with an output padding of 1, 2n."""
    extra = (after[0] - 2 * before[0] + 1, after[1] - 2 * before[1] + 1)
    return nn.Sequential(
        nn.ConvTranspose2d(i, o, 3, 2, 1, extra, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)
    )


class Purifier(nn.Module):
    """`layers`: the classifier's layers whose outputs are the taps, in execution order (empty: the unconditional VAE).

    Images (B,C,H,W) in [0,1]; taps: tuple of (B,...); c (B,C); z, mu, logvar (B,D). Inference needs `condition` and `decode` only.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layout: Layout, layers: Sequence[str] = ()) -> None:
        super().__init__()
        self.layout, self.layers = layout, tuple(layers)
        channels, h, w = layout.image
        d, c = layout.latent, layout.condition
        for name in ("mean", "std"):
            self.register_buffer(
                name, torch.tensor(getattr(layout, name)).view(-1, 1, 1), persistent=False
            )

        self.compressors = nn.ModuleList(self._compressor(tap) for tap in layout.taps)
        self.bottleneck = nn.Sequential(Cat(), full(layout.total, c)) if layout.taps else None

        if layout.encoder:
            ins = (channels, *layout.encoder)
            self.encoder = nn.Sequential(*(conv(i, o, 2, 1) for i, o in pairwise(ins)))
            for _ in layout.encoder:
                h, w = -(-h // 2), -(-w // 2)
            self.joint = nn.Sequential(Cat(), full(layout.encoder[-1] * h * w + c, d))
            self.mu, self.logvar = nn.Linear(d, d), nn.Linear(d, d)

        sizes, maps = layout.sizes, layout.decoder
        seed = (maps[0], *sizes[0])
        self.decoder = nn.Sequential(
            nn.Sequential(
                Cat(), nn.Linear(d + c, prod(seed)), nn.LeakyReLU(0.2), nn.Unflatten(1, seed)
            ),
            *(double(maps[i], maps[i + 1], sizes[i], sizes[i + 1]) for i in range(len(maps) - 1)),
            nn.ConvTranspose2d(maps[-1], channels, layout.last_kernel, 1, 1),
            nn.Sigmoid(),
        )

    def _compressor(self, tap: Shape) -> nn.Sequential:
        if len(tap) != 3 or tap[0] is None:
            return nn.Sequential()
        widths = [-(-tap[0] // 2**b) for b in range(self.layout.blocks + 1)]
        return nn.Sequential(*(conv(i, o, 1, self.layout.padding) for i, o in pairwise(widths)))

    def condition(self, taps: Sequence[Tensor]) -> Tensor:
        """c (B,C) of the taps; ValueError where their number or shapes are not those of the layout."""
        self.layout.check([tuple(r.shape[1:]) for r in taps])
        assert self.bottleneck is not None  # the check passes no layout without taps
        c: Tensor = self.bottleneck([p(r) for p, r in zip(self.compressors, taps, strict=True)])
        return c

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """mu, logvar (B,D) of the posterior of z; c (B,0) where there are no taps. ValueError where the purifier has no encoder."""
        if not self.layout.encoder:
            raise ValueError(
                "this purifier has no encoder, and can only decode: the released files lack the parts that only training needs"
            )
        h = self.joint((self.encoder((x - self.mean) / self.std), c))
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        x: Tensor = self.decoder((z, c))
        return x

    def forward(self, x: Tensor, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """One training pass on (perturbed) images and their taps: a reconstruction from a sample of the posterior, its mu and logvar."""
        c = self.condition(taps) if self.layout.taps else x.new_zeros(len(x), 0)
        mu, logvar = self.encode(x, c)
        z = mu + (logvar / 2).exp() * torch.randn_like(mu)
        return self.decode(z, c), mu, logvar
