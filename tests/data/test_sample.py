"""The fixed subset of a split: the same for good, stratified, nested."""

from __future__ import annotations

import hashlib

import pytest
import torch

from bench.data.sample import Dataset, dataset_of, load, stratified_order
from bench.errors import BadInput
from bench.questions.spec import Spec


def ids(text: str) -> list[int]:
    return load(Spec.parse(text)).ids.tolist()


def test_the_subset_never_changes() -> None:
    """Pinned: a change of these numbers makes every stored record an answer about other images."""
    assert ids("digits[n=6]") == [1650, 1590, 985, 7, 1601, 1494]
    assert ids("digits[n=12]")[6:] == [1221, 535, 1618, 1720, 1357, 1228]
    assert load(Spec("digits")).digest == "49086966f80da94b"


def test_the_order_is_that_of_a_hash_within_each_class() -> None:
    """Worked out by hand on three images of one class and one of another."""
    y = torch.tensor([1, 1, 0, 1])
    names = [10, 11, 12, 13]

    def hash_of(index: int) -> bytes:
        return hashlib.sha256(f"5/{names[index]}".encode()).digest()

    first, second, third = sorted([0, 1, 3], key=hash_of)  # at 1/6, 1/2, 5/6
    middle = sorted([2, second], key=hash_of)  # both at 1/2
    assert stratified_order(y, torch.tensor(names), seed=5).tolist() == [first, *middle, third]


@pytest.mark.parametrize("n", [10, 37, 100, 499])
def test_every_beginning_has_the_classes_in_proportion(n: int) -> None:
    whole = load(Spec("digits"))
    share = whole.y.bincount(minlength=10) * n / len(whole)
    counts = load(Spec.of("digits", {"n": n})).y.bincount(minlength=10)
    assert (counts - share).abs().max() <= 1


def test_proportion_holds_for_classes_of_unequal_size() -> None:
    y = torch.tensor([0] * 90 + [1] * 10)
    first = y[stratified_order(y, torch.arange(100))[:50]]
    assert first.bincount().tolist() == [45, 5]


def test_subsets_are_nested() -> None:
    assert ids("digits[n=200]")[:100] == ids("digits[n=100]")


def test_first_takes_the_beginning_of_the_split() -> None:
    whole = load(Spec("digits"))
    part = load(Spec.parse("digits[first=7]"))
    assert torch.equal(part.x, whole.x[:7])
    assert part.ids.tolist() == whole.ids[:7].tolist()
    assert part.digest == whole.digest


def test_the_split_of_digits_never_changes() -> None:
    from sklearn.datasets import load_digits

    test = load(Spec("digits"))
    train = load(Spec("digits"), split="train")
    assert len(test) == 500
    assert len(train) == 1297
    assert sorted([*test.ids.tolist(), *train.ids.tolist()]) == list(range(1797))
    assert test.x.shape == (500, 1, 8, 8)
    original = load_digits()
    images = torch.tensor(original.images[test.ids]).float()
    assert torch.equal(test.x[:, 0] * 16, images), "exact: sixteenths"
    assert torch.equal(test.y, torch.tensor(original.target[test.ids]))


def test_the_digest_is_of_images_and_labels() -> None:
    x = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    y = torch.tensor([0, 1])
    base = dataset_of("toy", x, y, classes=2)
    assert base.x.max() == torch.tensor(7 / 255)
    changed = x.clone()
    changed[1, 0, 1, 1] += 1
    others = [
        dataset_of("toy", changed, y, classes=2),
        dataset_of("toy", x, 1 - y, classes=2),
        dataset_of("toy", x.view(2, 2, 2, 1), y, classes=2),
    ]
    assert len({data.digest for data in [base, *others]}) == 4
    assert dataset_of("toy", x.clone(), y, classes=2).digest == base.digest


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits[n=501]", "n=501 is more than the 500 images of its test split"),
        ("digits[first=501]", "first=501 is more than the 500 images"),
        ("digits[n=0]", "n='0' is not a number of images"),
        ("digits[n=many]", "n='many' is not a number of images"),
        ("digits[n=3,first=3]", "both n and first"),
        ("digits[size=3]", "takes no 'size'"),
        ("digit", "did you mean 'digits'"),
    ],
)
def test_a_wrong_subset_is_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        load(Spec.parse(spec))
    assert "\n" not in str(caught.value)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(BadInput, match="split 'val' is unknown"):
        load(Spec("digits"), split="val")


X = torch.full((2, 1, 4, 4), 0.5)
Y = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X + 0.6, Y, r"lie in \[1.1, 1.1\], not in \[0, 1\]"),
        (X - 0.6, Y, r"lie in \[-0.1, -0.1\], not in \[0, 1\]"),
        (X * torch.nan, Y, "not in"),
        (X.long(), Y, "torch.int64"),
        (X[0], Y[:1], r"not float \(N,C,H,W\)"),
        (X, Y[:1], "not 2 whole numbers"),
        (X, Y.float(), "not 2 whole numbers"),
        (X, Y + 1, r"labels lie in \[1, 2\], not in \[0, 1\]"),
        (X, Y - 1, r"labels lie in \[-1, 0\], not in \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_refused(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        dataset_of("toy", x, y, classes=2)
    assert "dataset 'toy'" in str(caught.value)


def test_a_dataset_made_by_hand_is_checked_too() -> None:
    with pytest.raises(BadInput, match="its images lie in"):
        Dataset("toy", 255 * X, Y, torch.arange(2), 2, "")
    with pytest.raises(BadInput, match="ids"):
        Dataset("toy", X, Y, torch.zeros(2, dtype=torch.int64), 2, "")


def test_half_and_double_precision_become_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(dataset_of("toy", X.to(dtype), Y, classes=2).x, X)
