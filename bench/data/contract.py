"""What every data set must hold: images in [0,1], labels in range, and ids that are unique.

Whatever does not is refused in one line: the data set, the first offender, and the remedy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.errors import BadInput

ROUNDING = 1e-6  # a pixel that lies no farther outside of [0,1] is clamped
DARK = 1 / 255 + ROUNDING  # the level that no pixel exceeds where images were divided twice


def to_images(name: str, x: Tensor, ids: Tensor) -> Tensor:
    """Images as float32 (N,C,H,W) in [0,1], from uint8 or from floats in [0,1].

    Errors name an image by its id. Raises BadInput.
    """
    refuse_other_shapes(name, x)
    if x.dtype == torch.uint8:
        return x.to(torch.float32).div_(255).contiguous()
    if not x.is_floating_point():
        raise refusal(name, describe_other_type(x))
    if not len(x):
        return x.to(torch.float32)
    low, high = map(float, x.aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        refuse_not_finite(name, x, ids)
        outside = (x < -ROUNDING) | (x > 1 + ROUNDING)
        raise refusal(
            name,
            f"its images lie in [{low:g}, {high:g}], not in [0, 1] (the first is image "
            f"{name_first(outside, ids)}): {remedy_of_range(low, high)}",
        )
    x = x.to(torch.float32)
    return (x.clamp(0, 1) if low < 0 or high > 1 else x).contiguous()


def to_labels(name: str, labels: Any, n: int, classes: int, ids: Tensor) -> Tensor:
    """Labels of `n` images as int64 (n,), whole numbers in [0,classes). Raises BadInput."""
    if not isinstance(classes, int) or classes < 2:
        raise refusal(name, f"classes={classes} is not a whole number of at least 2")
    y = to_tensor(name, "labels", labels)
    if y.dim() == 2:
        one_hot = y.shape[1] > 1
        form, remedy = ("one-hot", "argmax(1)") if one_hot else ("a column", "squeeze(1)")
        raise refusal(name, f"its labels {tuple(y.shape)} are {form}: give labels.{remedy}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.dim() != 1:
        shape = tuple(y.shape)
        raise refusal(
            name, f"its labels are {y.dtype} {shape}, not {n} whole numbers: give labels.long()"
        )
    if len(y) != n:
        kind = "label" if len(y) < n else "image"
        raise refusal(
            name,
            f"it has {len(y)} labels, not {n} whole numbers, one for each image: "
            f"the first without {kind} is number {min(len(y), n)}",
        )
    y = y.to(torch.int64)
    outside = (y < 0) | (y >= classes)
    if bool(outside.any()):
        raise refusal(name, describe_other_labels(y, classes, name_first(outside, ids)))
    return y.contiguous()


def to_ids(name: str, values: Any, n: int) -> Tensor:
    """Ids of `n` images as int64 (n,), each unique. Raises BadInput."""
    ids = to_tensor(name, "ids", values)
    if ids.shape != (n,) or ids.is_floating_point() or ids.is_complex():
        shape = tuple(ids.shape)
        raise refusal(name, f"its ids are {ids.dtype} {shape}, not {n} whole numbers")
    ids = ids.to(torch.int64)
    unique, counts = ids.unique(return_counts=True)
    if len(unique) < n:
        twice = int(unique[counts > 1][0])
        positions = (ids == twice).nonzero().flatten().tolist()
        raise refusal(
            name,
            f"the ids of its images are not unique: images {positions[0]} and {positions[1]} "
            f"have the id {twice}; give each its own",
        )
    return ids


def find_doubts(name: str, x: Tensor, y: Tensor, classes: int) -> list[str]:
    """What looks wrong in a whole split, one line each, and cannot be known to be."""
    doubts = []
    if len(x) and float(x.max()) <= DARK:
        doubts.append(
            f"dataset '{name}': no pixel is above 1/255; if its images were divided by 255 twice, "
            "or hold 0 and 1 as uint8, give them as floats in [0,1]"
        )
    if classes > 2 and y.unique().tolist() == list(range(1, classes)):
        doubts.append(
            f"dataset '{name}': no image has the label 0, and each other class has some; "
            "if its labels begin at 1, subtract 1"
        )
    return doubts


def refusal(name: str, reason: str) -> BadInput:
    return BadInput(f"dataset '{name}': {reason}")


def to_tensor(name: str, what: str, values: Any) -> Tensor:
    """A tensor, an array or a list as a tensor on the CPU, without a gradient."""
    try:
        tensor = torch.as_tensor(values).detach().cpu()
        tensor[:0]  # a single number has no length
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        kind = type(values).__name__
        reason = str(error).partition("\n")[0]
        raise refusal(name, f"its {what} are a {kind}, not a tensor: {reason}") from None
    return tensor


def refuse_other_shapes(name: str, x: Tensor) -> None:
    """BadInput unless `x` looks like (N,C,H,W)."""
    shape = tuple(x.shape)
    line = f"its images are {x.dtype} {shape}, not float (N,C,H,W)"
    if x.dim() == 3:
        raise refusal(name, f"{line}: add a channel dimension, images.unsqueeze(1)")
    if x.dim() != 4:
        raise refusal(name, line)
    _, channels, height, width = shape
    if min(channels, height, width) < 1:
        raise refusal(name, f"{line} of at least 1 each")
    if width in (1, 3, 4) and channels > 4 and height > 4:
        raise refusal(name, f"{line}: channels last? give images.permute(0, 3, 1, 2)")


def describe_other_type(x: Tensor) -> str:
    """What is wrong with images that are neither uint8 nor floats."""
    if x.dtype == torch.bool:
        return "its images are torch.bool: give images.float()"
    if x.is_complex() or not x.numel():
        return f"its images are {x.dtype}: give uint8, or float in [0,1]"
    low, high = map(int, x.to(torch.int64).aminmax())
    bytes_fit = low >= 0 and high <= 255
    remedy = "images.to(torch.uint8)" if bytes_fit else "uint8, or float in [0,1]"
    return f"its images are {x.dtype} in [{low}, {high}], which has no known scale: give {remedy}"


def refuse_not_finite(name: str, x: Tensor, ids: Tensor) -> None:
    """BadInput where a pixel is NaN or infinite."""
    wrong = ~x.isfinite()
    if bool(wrong.any()):
        value = float(x[wrong][0])
        raise refusal(
            name,
            f"image {name_first(wrong, ids)} holds {value}, which is not in [0, 1]: "
            "mend it or leave it out",
        )


def name_first(wrong: Tensor, ids: Tensor) -> int:
    """The id of the first image with a wrong value, by `wrong` (N,...)."""
    return int(ids[int(wrong.nonzero()[0, 0])])


def remedy_of_range(low: float, high: float) -> str:
    """What to give in place of images in [low, high]."""
    if low >= 0 and 2 < high <= 255:
        return "give images / 255"
    if -1 - ROUNDING <= low < 0 and high <= 1 + ROUNDING:
        return "give (images + 1) / 2, or [0,1] and normalise inside of the model"
    return "give [0,1] and normalise inside of the model"


def describe_other_labels(y: Tensor, classes: int, first: int) -> str:
    """What is wrong with labels that are not all in [0,classes); `first` names the offender."""
    low, high = int(y.min()), int(y.max())
    line = f"its labels lie in [{low}, {high}], not in [0, {classes - 1}]"
    line = f"{line} (the first is that of image {first}): "
    if low >= 1 and high == classes:
        return f"{line}they begin at 1; subtract 1"
    if low < 0:
        return f"{line}leave out the images without a class"
    return f"{line}give classes={high + 1}, or the labels of {classes} classes"
