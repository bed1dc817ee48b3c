"""A sheet of images with a label under each, as a PNG in which every pixel of an image is a square of whole pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.errors import BadInput

RIGHT, WRONG, PLAIN, SOFT = (
    "#0072B2",
    "#D55E00",
    "#1a1a1a",
    "#5b6670",
)  # blue and vermilion: told apart by every kind of colour vision
TILE, GAP, CAPTION, LEFT, TOP, BOTTOM = 96, 10, 40, 14, 142, 20  # pixels
DPI = 150
NOTES = 1040  # a sheet of few columns is as wide as its notes
MARKS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}"}
Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tile:
    """An image (C,H,W) in [0,1], or none; under it a line, with a mark where it is right or wrong, and a second, small one."""

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


def png(
    title: str, notes: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[Tile]]
) -> bytes:
    """The sheet: title, notes below it, a heading over each column. The first tile of a row holds an image; all images have one size."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("pictures need matplotlib; run 'make setup'") from None
    first = rows[0][0].image
    assert first is not None
    _, h, w = first.shape
    z = zoom(h, w)
    right, bottom = place(len(rows), len(columns), h, w)
    wide, high = max(right - GAP + LEFT, NOTES), bottom + BOTTOM - CAPTION + GAP
    figure = Figure(figsize=(wide / DPI, high / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def write(
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str = PLAIN,
        ha: str = "left",
        va: str = "top",
        weight: str = "normal",
    ) -> None:
        figure.text(
            x / wide,
            1 - y / high,
            text,
            fontsize=size,
            color=colour,
            ha=ha,
            va=va,
            weight=weight,
            parse_math=False,
        )

    write(LEFT, 10, title, 9, weight="bold")
    for i, note in enumerate(notes):
        write(LEFT, 32 + 16 * i, note, 6.5, SOFT)
    for column, heading in enumerate(columns):
        x, y = place(0, column, h, w)
        write(x + w * z / 2, y - 5, heading, 5.5, SOFT, ha="center", va="bottom")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            x, y = place(row, column, h, w)
            colour = PLAIN if tile.right is None else RIGHT if tile.right else WRONG
            middle = x + w * z / 2
            if tile.image is None:
                write(middle, y + h * z / 2 - 16, tile.text, 13, colour, ha="center", weight="bold")
                write(middle, y + h * z / 2 + 16, tile.small, 6, SOFT, ha="center")
                continue
            figure.figimage(
                enlarged(tile.image, z), x, high - y - h * z, origin="upper", resize=False
            )
            write(middle, y + h * z + 3, tile.text, 7.5, colour, ha="center")
            write(middle, y + h * z + 19, tile.small, 5.5, SOFT, ha="center")
    out = io.BytesIO()
    figure.savefig(
        out, format="png", metadata={"Software": None}
    )  # the version of matplotlib is no part of the figure
    return out.getvalue()


def enlarged(image: Pixels, z: int) -> NDArray[np.uint8]:
    """(H,W,3) of an image of one or three channels, each pixel `z` times in both directions."""
    c, _, _ = image.shape
    rgb = np.repeat(image, 3, 0) if c == 1 else image
    return np.kron(
        np.rint(rgb.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8),
        np.ones((z, z, 1), np.uint8),
    )
