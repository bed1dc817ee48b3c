"""Data sets as people's own loaders give them: what breaks the contract is refused in one line."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from bench.data.sample import Dataset, dataset_of, load
from bench.errors import BadInput
from bench.questions.registry import dataset, datasets
from bench.questions.spec import Spec

IMAGES = torch.linspace(0, 1, 40 * 64).view(40, 1, 8, 8)
LABELS = torch.arange(40) % 10


def spoil(values: torch.Tensor, index: tuple[int, ...], value: float) -> torch.Tensor:
    """A copy with one value changed."""
    values = values.clone()
    values[index] = value
    return values


def make(x: Any = IMAGES, y: Any = LABELS, **options: Any) -> Dataset:
    return dataset_of("mine", x, y, **{"classes": 10, **options})


@pytest.mark.parametrize(
    ("options", "reason", "remedy"),
    [
        ({"x": IMAGES * 2 - 1}, "lie in [-1, 1]", "(images + 1) / 2"),
        ({"x": IMAGES * 255}, "lie in [0, 255], not in [0, 1] (the first is image", "images / 255"),
        ({"x": IMAGES * 5 - 2}, "lie in [-2, 3]", "normalise inside of the model"),
        ({"x": spoil(IMAGES, (7, 0, 1, 1), 1.01)}, "the first is image 7", "give [0,1]"),
        ({"x": spoil(IMAGES, (3, 0, 2, 2), torch.nan)}, "image 3 holds nan", "leave it out"),
        ({"x": spoil(IMAGES, (5, 0, 2, 2), -torch.inf)}, "image 5 holds -inf", "leave it out"),
        (
            {"x": spoil(IMAGES, (3, 0, 2, 2), torch.nan), "ids": torch.arange(100, 140)},
            "image 103 holds nan",
            "leave it out",
        ),
        ({"x": (IMAGES * 255).int()}, "torch.int32 in [0, 255]", "images.to(torch.uint8)"),
        ({"x": (IMAGES * 999).long()}, "torch.int64 in [0, 999]", "uint8, or float in [0,1]"),
        ({"x": (IMAGES * 255).to(torch.uint16)}, "torch.uint16 in [0, 255]", "torch.uint8"),
        ({"x": IMAGES > 0.5}, "torch.bool", "images.float()"),
        ({"x": IMAGES.to(torch.complex64)}, "torch.complex64", "uint8, or float in [0,1]"),
        ({"x": IMAGES.permute(0, 2, 3, 1)}, "(40, 8, 8, 1)", "images.permute(0, 3, 1, 2)"),
        ({"x": IMAGES[:, 0]}, "(40, 8, 8)", "add a channel dimension, images.unsqueeze(1)"),
        ({"x": IMAGES.flatten(1)}, "(40, 64), not float (N,C,H,W)", ""),
        ({"x": IMAGES[..., :0]}, "(40, 1, 8, 0)", "at least 1 each"),
        ({"x": 3.0}, "its images are a float, not a tensor", ""),
        ({"x": "images"}, "its images are a str, not a tensor", ""),
        ({"x": [IMAGES, None]}, "its images are a list, not a tensor", ""),
        ({"y": LABELS + 1}, "[1, 10], not in [0, 9] (the first is that of image 9)", "subtract 1"),
        ({"y": spoil(LABELS, (5,), -1)}, "the first is that of image 5", "without a class"),
        ({"y": spoil(LABELS, (6,), 12)}, "the first is that of image 6", "classes=13"),
        ({"y": LABELS + 0.5}, "torch.float32 (40,), not 40 whole numbers", "labels.long()"),
        ({"y": LABELS > 4}, "torch.bool", "labels.long()"),
        ({"y": LABELS[:39]}, "39 labels, not 40", "first without label is number 39"),
        ({"y": LABELS.repeat(2)}, "80 labels, not 40", "first without image is number 40"),
        ({"y": LABELS[:, None]}, "(40, 1) are a column", "labels.squeeze(1)"),
        (
            {"y": torch.nn.functional.one_hot(LABELS, 10)},
            "(40, 10) are one-hot",
            "labels.argmax(1)",
        ),
        ({"y": [str(label) for label in LABELS]}, "its labels are a list, not a tensor", ""),
        ({"ids": torch.arange(40) // 2}, "not unique: images 0 and 1 have the id 0", "its own"),
        ({"ids": torch.arange(39)}, "its ids are torch.int64 (39,), not 40", ""),
        ({"ids": torch.arange(40) / 2}, "its ids are torch.float32", "not 40 whole numbers"),
        ({"classes": 1}, "classes=1", "at least 2"),
        ({"classes": "ten"}, "classes=ten", "at least 2"),
    ],
)
def test_a_broken_contract_is_one_line_with_the_remedy(
    options: dict[str, Any], reason: str, remedy: str
) -> None:
    with pytest.raises(BadInput) as caught:
        make(**options)
    message = str(caught.value)
    assert message.startswith("dataset 'mine': ")
    assert reason in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "x",
    [
        IMAGES.double(),
        IMAGES.clone().requires_grad_(),
        IMAGES.numpy(),
        IMAGES + 3e-8,
        IMAGES - 9e-7,
        IMAGES.numpy().astype(np.float64) + 1e-9,
    ],
)
def test_what_is_right_but_for_rounding_becomes_float32_in_the_box(x: Any) -> None:
    data = make(x, LABELS.numpy().astype(np.uint8))
    assert data.x.dtype == torch.float32
    assert data.y.dtype == torch.int64
    assert 0 <= float(data.x.min()) <= float(data.x.max()) <= 1
    assert torch.allclose(data.x, IMAGES, atol=1e-6)
    assert not data.notes


def test_a_plugin_may_change_its_own_tensors_later() -> None:
    x, y, ids = IMAGES.clone(), LABELS.clone(), torch.arange(40)
    data = make(x, y, ids=ids)
    for values in (x, y, ids):
        values.zero_()
    assert torch.equal(data.x, IMAGES)
    assert torch.equal(data.y, LABELS)
    assert torch.equal(data.ids, torch.arange(40))


def test_bytes_are_divided_by_255() -> None:
    levels = (IMAGES * 255).round()
    assert torch.equal(make(levels.byte()).x, levels / 255)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"x": IMAGES / 255}, "no pixel is above 1/255"),
        ({"x": (IMAGES > 0.5).byte()}, "no pixel is above 1/255"),
        ({"y": (LABELS + 1).clamp(max=9)}, "no image has the label 0"),
    ],
)
def test_what_cannot_be_known_to_be_wrong_is_a_note(options: dict[str, Any], note: str) -> None:
    (line,) = make(**options).notes
    assert note in line


def test_a_factory_must_return_a_dataset_that_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_entries", dict(vars(datasets)["_entries"]))

    @dataset("test-pair", norm="linf", eps={"linf": "1/5"}, n=4, roles={})
    def pair(split: str, data_dir: object) -> object:
        return IMAGES, LABELS

    @dataset("test-empty", norm="linf", eps={"linf": "1/5"}, n=4, roles={})
    def empty(split: str, data_dir: object) -> Dataset:
        return make(IMAGES[:0], LABELS[:0])

    @dataset("test-broken", norm="linf", eps={"linf": "1/5"}, n=4, roles={})
    def broken(split: str, data_dir: object) -> object:
        return {"train": 1}[split]

    with pytest.raises(BadInput, match=r"cannot be loaded: KeyError: 'test' \(test_contract.py:\d"):
        load(Spec("test-broken"))
    with pytest.raises(BadInput, match=re.escape("let it return dataset_of(name, images")):
        load(Spec("test-pair"))
    with pytest.raises(BadInput, match="has no images in its test split"):
        load(Spec("test-empty"))
