"""Datasets that are files: what is written by hand here comes back, and what is damaged, foreign or missing is refused in one line."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data import cifar, mnist, svhn
from bench.data.sample import Dataset, load
from bench.errors import BadInput
from bench.questions.spec import Spec

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)


def read(text: str, data_dir: Path, split: str = "test") -> Dataset:
    return load(Spec.parse(text), split=split, data_dir=data_dir)


def refused(text: str, data_dir: Path, split: str = "test") -> str:
    with pytest.raises(BadInput) as caught:
        read(text, data_dir, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def put_mnist(
    folder: Path, write: Callable[[Path, bytes], None], suffix: str, labels: int = 6
) -> None:
    folder.mkdir(parents=True)
    write(folder / f"t10k-images-idx3-ubyte{suffix}", idx(PIXELS))
    write(folder / f"t10k-labels-idx1-ubyte{suffix}", idx(np.arange(labels, dtype=np.uint8)))


def squeeze(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data))


@pytest.mark.parametrize(
    ("folder", "write", "suffix"), [("MNIST/raw", Path.write_bytes, ""), ("mnist", squeeze, ".gz")]
)
def test_mnist_in_both_layouts(
    tmp_path: Path, folder: str, write: Callable[[Path, bytes], None], suffix: str
) -> None:
    put_mnist(tmp_path / folder, write, suffix)
    data = read("mnist", tmp_path)
    assert data.x.shape == (6, 1, 28, 28)
    assert torch.equal((data.x[:, 0] * 255).round().byte(), torch.from_numpy(PIXELS))
    assert data.y.tolist() == [0, 1, 2, 3, 4, 5]


def test_mnist_that_is_damaged_or_mixed_up(tmp_path: Path) -> None:
    put_mnist(tmp_path / "a/mnist", squeeze, ".gz")
    images = tmp_path / "a/mnist/t10k-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:500])
    assert "damaged" in refused("mnist", tmp_path / "a")
    images.write_bytes(gzip.compress(idx(PIXELS)[:-1]))
    assert "damaged" in refused("mnist", tmp_path / "a")
    images.write_bytes(gzip.compress(idx(PIXELS[0])))
    assert "3 dimensions" in refused("mnist", tmp_path / "a")
    put_mnist(tmp_path / "b/mnist", squeeze, ".gz", labels=5)
    assert "6 images, 5 labels" in refused("mnist", tmp_path / "b")


def text(data: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(data)) + data


def put_cifar(folder: Path, name: str, key: bytes, top: int = 9) -> None:
    """A batch as Python 2 pickled it, opcode by opcode: strings that are not unicode, and an array."""
    folder.mkdir(parents=True, exist_ok=True)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
        + text(b"b")
        + b"tR(K\x01K\x06M\x00\x0c\x86"
    )
    kind = (
        b"cnumpy\ndtype\n("
        + text(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + text(b"|")
        + b"NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in (0, 1, 2, top, 4, 5)) + b"e"
    batch = (
        b"\x80\x02}("
        + text(b"data")
        + array
        + kind
        + b"\x89"
        + text(COLOURS.tobytes())
        + b"tb"
        + text(key)
        + labels
        + b"u."
    )
    (folder / name).write_bytes(batch)


@pytest.mark.parametrize(
    ("name", "folder", "key", "train"),
    [
        ("cifar10", "cifar-10-batches-py", b"labels", [f"data_batch_{i}" for i in range(1, 6)]),
        ("cifar100", "cifar-100-python", b"fine_labels", ["train"]),
    ],
)
def test_cifar_batches(
    tmp_path: Path, name: str, folder: str, key: bytes, train: list[str]
) -> None:
    for batch in ("test_batch", "test", *train):
        put_cifar(tmp_path / folder, batch, key)
    data = read(name, tmp_path)
    assert torch.equal((data.x * 255).round().byte(), torch.from_numpy(COLOURS))
    assert data.y.tolist() == [0, 1, 2, 9, 4, 5]
    assert len(read(name, tmp_path, "train")) == 6 * len(train)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_cifar_batch_cannot_run_a_program(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(
        pickle.dumps({"data": Harm(tmp_path / "harm")}, protocol=2)
    )
    assert "it asks for posix.mkdir" in refused("cifar10", tmp_path)
    assert not (tmp_path / "harm").exists()


def test_damaged_cifar_batches(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    put_cifar(folder, "test_batch", b"labels")
    (folder / "test_batch").write_bytes((folder / "test_batch").read_bytes()[:1000])
    assert "damaged" in refused("cifar10", tmp_path)
    put_cifar(folder, "test_batch", b"labels", top=10)
    assert "not those of 10 classes" in refused("cifar10", tmp_path)


def jpeg(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_cifar10_jpeg_is_read_from_its_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar10-jpeg.tar.xz", "w:xz") as archive:
        for name, colour in (
            ("test/truck/0001.jpg", (250, 0, 0)),
            ("test/airplane/0000.jpg", (0, 250, 0)),
            ("train/cat/0000.jpg", (0, 0, 250)),
        ):
            info = tarfile.TarInfo(f"cifar10-jpeg/{name}")
            info.size = len(jpeg(colour))
            archive.addfile(info, io.BytesIO(jpeg(colour)))
    data = read("cifar10-jpeg", tmp_path)
    assert data.y.tolist() == [0, 9]  # in the order of the names, not of the archive
    assert data.x.mean((2, 3)).argmax(1).tolist() == [1, 0]
    assert read("cifar10-jpeg", tmp_path, "train").y.tolist() == [3]
    (tmp_path / "cifar10-jpeg.tar.xz").write_bytes(
        (tmp_path / "cifar10-jpeg.tar.xz").read_bytes()[:200]
    )
    assert "damaged" in refused("cifar10-jpeg", tmp_path)


def test_svhn_calls_zero_ten(tmp_path: Path) -> None:
    from scipy.io import savemat

    savemat(
        tmp_path / "test_32x32.mat",
        {
            "X": COLOURS.transpose(2, 3, 1, 0),
            "y": np.array([[10], [1], [2], [3], [4], [9]], np.uint8),
        },
    )
    data = read("svhn", tmp_path)
    assert data.y.tolist() == [0, 1, 2, 3, 4, 9]
    assert torch.equal((data.x * 255).round().byte(), torch.from_numpy(COLOURS))
    (tmp_path / "test_32x32.mat").write_bytes(b"<html>")
    assert "damaged" in refused("svhn", tmp_path)


def put_image(path: Path, level: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode != "RGB" else (level,) * 3).save(path)


def test_tiny_imagenet_is_tested_on_its_validation_split(tmp_path: Path) -> None:
    top = tmp_path / "tiny-imagenet-200"
    for name, level in (("n02", 20), ("n01", 10)):
        put_image(top / "train" / name / "images" / f"{name}_0.JPEG", level, (64, 64))
        put_image(top / "val/images" / f"val_{level}.JPEG", level, (64, 64), "RGB")
    (top / "wnids.txt").write_text("n02\nn01\n")
    (top / "val/val_annotations.txt").write_text(
        "val_20.JPEG\tn02\t0\t0\t9\t9\nval_10.JPEG\tn01\t0\t0\t9\t9\n"
    )
    data = read("tiny-imagenet", tmp_path)
    assert (data.y.tolist(), data.classes) == ([0, 1], 2)
    assert torch.allclose(data.x.mean((1, 2, 3)) * 255, torch.tensor([10.0, 20.0]), atol=1)
    assert read("tiny-imagenet", tmp_path, "train").y.tolist() == [0, 1]
    (top / "val/images/val_20.JPEG").unlink()
    assert "val_20.JPEG" in refused("tiny-imagenet", tmp_path)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for path, level in (
        ("test/b/1.png", 30),
        ("test/a/2.png", 10),
        ("test/a/1.png", 20),
        ("train/c/1.png", 0),
    ):
        put_image(tmp_path / path, level)
    (tmp_path / "test/a/notes.txt").write_text("not an image")
    data = read(f"folder[path={tmp_path}]", tmp_path)
    assert (data.x.shape, data.classes) == (
        (3, 1, 8, 8),
        3,
    )  # a class that has no test image still counts
    assert (data.x[:, 0, 0, 0] * 255).round().tolist() == [20, 10, 30]
    assert data.y.tolist() == [0, 0, 1]
    put_image(tmp_path / "test/b/2.png", 30, mode="RGB")
    assert read(f"folder[path={tmp_path}]", tmp_path).x.shape == (4, 3, 8, 8)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    spec = f"folder[path={tmp_path}]"
    assert "does not exist" in refused("folder[path=nowhere]", tmp_path)
    assert "0 classes and 0 images" in refused(spec, tmp_path)
    put_image(tmp_path / "test/a/1.png", 1)
    put_image(tmp_path / "test/b/1.png", 1, (9, 8))
    assert "is 9x8 pixels, but" in refused(spec, tmp_path)
    put_image(tmp_path / "test/b/1.png", 1, mode="I;16")
    assert "mode I;16" in refused(spec, tmp_path)
    (tmp_path / "test/b/1.png").write_bytes((tmp_path / "test/a/1.png").read_bytes()[:40])
    assert "cannot be read" in refused(spec, tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "put"),
    [
        (
            "mnist",
            mnist,
            "put t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into {}/mnist",
        ),
        ("cifar10", cifar, "put cifar-10-python.tar.gz, or what is in it, into {}"),
        ("cifar100", cifar, "put cifar-100-python.tar.gz, or what is in it, into {}"),
        ("svhn", svhn, "put test_32x32.mat into {}"),
    ],
)
def test_without_a_network_the_line_says_what_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, module: object, put: str
) -> None:
    """The download makes its folders before it fails, as torchvision's does: nothing of that may stay."""

    def fail(data_dir: Path, *_: object) -> None:
        (data_dir / "MNIST/raw").mkdir(parents=True)
        raise OSError("no\nnetwork")

    monkeypatch.setattr(module, "download", fail)
    says = refused(name, tmp_path / "data")
    assert (
        says
        == f"dataset '{name}' is not there: {put.format(tmp_path / 'data')} (its download failed: no network)"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [("cifar10-jpeg", "cifar10-jpeg.tar.xz"), ("tiny-imagenet", "tiny-imagenet-200.zip")],
)
def test_what_nobody_can_download(tmp_path: Path, name: str, file: str) -> None:
    says = refused(name, tmp_path)
    assert file in says
    assert str(tmp_path) in says


@pytest.mark.skipif(
    not os.environ.get("BENCH_DATA"),
    reason="reads real files: set BENCH_DATA to the folder that holds them",
)
@pytest.mark.parametrize(
    ("name", "shape", "digest"),
    [("mnist", (1, 28, 28), "8564f5bfda8af07b"), ("cifar10-jpeg", (3, 32, 32), "6a9724561f079c16")],
)
def test_the_real_files(name: str, shape: tuple[int, ...], digest: str) -> None:
    whole = load(Spec(name))
    assert whole.x.shape == (10000, *shape)
    assert whole.digest == digest
