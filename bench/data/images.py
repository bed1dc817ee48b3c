"""Image files as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.errors import BadInput

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "RGB", "RGBA", "CMYK", "YCbCr")
MOST_PIXELS = 1 << 24
Array = np.ndarray[Any, np.dtype[np.uint8]]


def decode(source: Path | IO[bytes], name: str) -> Array:
    """An image file as grey (H,W) or RGB (H,W,3), uint8. Errors call the image `name`.

    Transparency is dropped. Images of more than 8 bits, and of more than `MOST_PIXELS`, which a
    small file can claim, are refused. Raises BadInput.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is refused, and named
            with Image.open(source) as image:
                refuse_unfit(image, name)
                return np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
    except BadInput:
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"image '{name}' cannot be read: {reason}") from None


def refuse_unfit(image: Image.Image, name: str) -> None:
    """BadInput for an image that is too large, or of more than 8 bits; its pixels are not read."""
    if image.width * image.height > MOST_PIXELS:
        raise BadInput(
            f"image '{name}' is {image.width}x{image.height} pixels; "
            f"the most is {MOST_PIXELS} in all: make it smaller"
        )
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise BadInput(f"image '{name}' has the mode {image.mode}, not 8 bits of grey or colour")


def stack(images: Sequence[Array], names: Sequence[str]) -> Tensor:
    """Images of one size as (N,C,H,W) uint8: in colour if any is. Raises BadInput."""
    height, width = images[0].shape[:2]
    for image, name in zip(images, names, strict=True):
        if image.shape[:2] != (height, width):
            raise BadInput(
                f"image '{name}' is {image.shape[1]}x{image.shape[0]} pixels, "
                f"but '{names[0]}' is {width}x{height}; all must be of one size"
            )
    if all(image.ndim == 2 for image in images):
        return torch.from_numpy(np.stack(images)).unsqueeze(1)
    coloured = [in_colour(image) for image in images]
    return torch.from_numpy(np.stack(coloured)).permute(0, 3, 1, 2)


def in_colour(image: Array) -> Array:
    """(H,W) or (H,W,3) -> (H,W,3)."""
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, 2)


def read_images(files: Sequence[Path]) -> Tensor:
    """Image files of one size as (N,C,H,W) uint8. Raises BadInput."""
    names = [str(file) for file in files]
    images = [decode(file, name) for file, name in zip(files, names, strict=True)]
    return stack(images, names)
