"""Image files as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.errors import BadInput

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
Array = np.ndarray[Any, np.dtype[np.uint8]]


def decode(source: Path | IO[bytes], name: str) -> Array:
    """Grey (H,W) or RGB (H,W,3) uint8; `name` is that of errors. Transparency is dropped; images of more than 8 bits are refused."""
    try:
        with Image.open(source) as image:
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise BadInput(
                    f"image '{name}' has the mode {image.mode}, not 8 bits of grey or colour"
                )
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"image '{name}' cannot be read: {error}") from None


def stack(images: Sequence[Array], names: Sequence[str]) -> Tensor:
    """(N,C,H,W) uint8: grey if all are grey, colour if any is; images of another size than the first are refused."""
    sizes = [image.shape[:2] for image in images]
    for size, name in zip(sizes, names, strict=True):
        if size != sizes[0]:
            raise BadInput(
                f"image '{name}' is {size[1]}x{size[0]} pixels, but '{names[0]}' is {sizes[0][1]}x{sizes[0][0]}; all must be of one size"
            )
    if all(image.ndim == 2 for image in images):
        return torch.from_numpy(np.stack(images)).unsqueeze(1)
    coloured = [
        image if image.ndim == 3 else np.repeat(image[:, :, None], 3, 2) for image in images
    ]
    return torch.from_numpy(np.stack(coloured)).permute(0, 3, 1, 2)
