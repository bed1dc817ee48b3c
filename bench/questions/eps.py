"""The size of a perturbation: as people write it, and the most that the box leaves room for.

Standard library only.
"""

from __future__ import annotations

import re
from fractions import Fraction

from bench.errors import BadInput

# A text that is longer, or an exponent of more digits, would be counted out digit by digit.
LONGEST = 60
NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?"
FORM = re.compile(rf"([+-]?{NUMBER})(?:\s*/\s*({NUMBER}))?")

Shape = tuple[int, int, int]  # (C,H,W)


def parse_eps(text: str) -> Fraction:
    """'8/255', '0.75/255', '0.031' or '1' as an exact fraction.

    In pixel units of [0,1], in pixels for l0. Raises BadInput.
    """
    text = text.strip()
    match = FORM.fullmatch(text) if len(text) <= LONGEST else None
    divisor = Fraction(match[2] or 1) if match else Fraction(0)
    if match is None or divisor == 0:
        raise BadInput(
            f"eps '{shorten(text)}' is not a number; give a fraction such as 8/255 or a decimal "
            "such as 0.031"
        )
    eps = Fraction(match[1]) / divisor
    if eps < 0:
        raise BadInput(f"eps '{text}' is negative; give {-eps} or 0")
    return eps


def shorten(text: str) -> str:
    """The text on one line, cut where it is long."""
    line = " ".join(text[:LONGEST].split())
    return f"{line}..." if len(text) > LONGEST else line


def refuse_wider_than_box(text: str, norm: str, shape: Shape | None) -> None:
    """BadInput where the eps `text` is more than any two images of `shape` differ by in the norm.

    Without a shape only linf is checked, whose box is 1 across whatever the shape is.
    """
    eps = parse_eps(text)
    if fits_box(eps, norm, shape):
        return
    if norm == "l0":
        assert shape is not None
        pixels = shape[1] * shape[2]
        raise BadInput(f"eps {text.strip()} is more than the {pixels} pixels of an image, in l0")
    line = f"eps {text.strip()} is more than the whole box in {norm}"
    if "/" not in text and fits_box(eps / 255, norm, shape):
        raise BadInput(f"{line}; did you mean {text.strip()}/255?")
    raise BadInput(f"{line}; the most is {describe_diameter(norm, shape)}")


def fits_box(eps: Fraction, norm: str, shape: Shape | None) -> bool:
    """Whether eps is at most the diameter of the box [0,1]^D in the norm, where that is known."""
    if norm == "linf":
        return eps <= 1
    if shape is None:
        return True
    channels, height, width = shape
    pixels = height * width
    if norm == "l0":
        return eps <= pixels
    size = channels * pixels
    return eps**2 <= size if norm == "l2" else eps <= size


def describe_diameter(norm: str, shape: Shape | None) -> str:
    if norm == "linf" or shape is None:
        return "1"
    channels, height, width = shape
    size = channels * height * width
    return f"{size**0.5:.4g}, the square root of {size}" if norm == "l2" else str(size)


def allows_nothing(eps: Fraction, norm: str) -> bool:
    """Whether no image but the clean one lies in the ball: in l0 a part of a pixel is none."""
    return eps < 1 if norm == "l0" else eps == 0
