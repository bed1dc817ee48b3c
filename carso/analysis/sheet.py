"""A sheet of images with a label under each, as a PNG.

Every pixel of an image is a square of whole pixels of the sheet.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import BadInput

# Blue and vermilion: told apart by every kind of colour vision.
RIGHT = "#0072B2"
WRONG = "#D55E00"
PLAIN = "#1a1a1a"
SOFT = "#5b6670"
# Lengths, in pixels of the sheet.
TILE = 96
GAP = 10
CAPTION = 40
LEFT = 14
TOP = 142
BOTTOM = 20
NOTES = 1040  # a sheet of few columns is as wide as its notes
DPI = 150
MARKS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}"}
Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tile:
    """An image (C,H,W) in [0,1], or none, over a line of text and a second, small line.

    A mark before the text says right or wrong, where `right` says it.
    """

    image: Pixels | None
    line: str = ""
    right: bool | None = None
    small: str = ""

    @property
    def text(self) -> str:
        return self.line if self.right is None else f"{MARKS[self.right]} {self.line}"


def zoom(height: int, width: int) -> int:
    """Pixels of the sheet per pixel of the image and axis."""
    return max(round(TILE / max(height, width)), 1)


def place(row: int, column: int, height: int, width: int) -> tuple[int, int]:
    """Left and top of a tile, in pixels of the sheet."""
    z = zoom(height, width)
    return LEFT + column * (width * z + GAP), TOP + row * (height * z + CAPTION)


class Sheet:
    """A figure on which texts and images are placed by pixels from its left and its top."""

    def __init__(self, width: int, height: int) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise BadInput("pictures need matplotlib; run 'make setup'") from None
        self.width = width
        self.height = height
        size = (width / DPI, height / DPI)
        self.figure = Figure(figsize=size, dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def write(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        """Text of `size` points with its top left at (x, y), unless `ha` and `va` say otherwise."""
        style = {"color": PLAIN, "ha": "left", "va": "top", "weight": "normal", **style}
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size,
            parse_math=False,
            **style,
        )

    def paste(self, x: int, y: int, image: NDArray[np.uint8]) -> None:
        """An image (H,W,3) with its top left at (x, y), pixel by pixel."""
        below = self.height - y - image.shape[0]
        self.figure.figimage(image, x, below, origin="upper", resize=False)

    def to_png(self) -> bytes:
        out = io.BytesIO()
        # The version of matplotlib is no part of the figure.
        self.figure.savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()


def png(
    title: str, notes: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[Tile]]
) -> bytes:
    """The sheet: title, notes below it, a heading over each column.

    The first tile of a row holds an image; all images have one size.
    """
    first = rows[0][0].image
    assert first is not None
    _, height, width = first.shape
    z = zoom(height, width)
    right, bottom = place(len(rows), len(columns), height, width)
    sheet = Sheet(max(right - GAP + LEFT, NOTES), bottom + BOTTOM - CAPTION + GAP)
    sheet.write(LEFT, 10, title, 9, weight="bold")
    for i, note in enumerate(notes):
        sheet.write(LEFT, 32 + 16 * i, note, 6.5, color=SOFT)
    for column, heading in enumerate(columns):
        x, y = place(0, column, height, width)
        middle = x + width * z / 2
        sheet.write(middle, y - 5, heading, 5.5, color=SOFT, ha="center", va="bottom")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            x, y = place(row, column, height, width)
            draw_tile(sheet, tile, x, y, (height * z, width * z))
    return sheet.to_png()


def draw_tile(sheet: Sheet, tile: Tile, x: int, y: int, size: tuple[int, int]) -> None:
    """The tile with its top left at (x, y); `size` (height, width) is that of an image."""
    height, width = size
    middle = x + width / 2
    colour = PLAIN
    if tile.right is not None:
        colour = RIGHT if tile.right else WRONG
    if tile.image is None:
        centre = y + height / 2
        sheet.write(middle, centre - 16, tile.text, 13, color=colour, ha="center", weight="bold")
        sheet.write(middle, centre + 16, tile.small, 6, color=SOFT, ha="center")
        return
    sheet.paste(x, y, enlarge(tile.image, width // tile.image.shape[2]))
    sheet.write(middle, y + height + 3, tile.text, 7.5, color=colour, ha="center")
    sheet.write(middle, y + height + 19, tile.small, 5.5, color=SOFT, ha="center")


def enlarge(image: Pixels, z: int) -> NDArray[np.uint8]:
    """(H,W,3) of an image of one or three channels, each pixel `z` times in both directions."""
    rgb = np.repeat(image, 3, 0) if image.shape[0] == 1 else image
    values = np.rint(rgb.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)
    return np.kron(values, np.ones((z, z, 1), np.uint8))
