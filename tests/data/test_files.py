"""Datasets that are files.

What a test writes by hand comes back. What is damaged, foreign or missing is refused in one line.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import files
from bench.data.sample import Dataset, load
from bench.errors import BadInput
from bench.questions.spec import Spec

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)


def load_from(spec: str, data_dir: Path, split: str = "test") -> Dataset:
    return load(Spec.parse(spec), split=split, data_dir=data_dir)


def refusal(spec: str, data_dir: Path, split: str = "test") -> str:
    """The message of the error, of one line."""
    with pytest.raises(BadInput) as caught:
        load_from(spec, data_dir, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def idx_file(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(
    folder: Path, write: Callable[[Path, bytes], None], suffix: str, labels: int = 6
) -> None:
    folder.mkdir(parents=True)
    write(folder / f"t10k-images-idx3-ubyte{suffix}", idx_file(PIXELS))
    write(folder / f"t10k-labels-idx1-ubyte{suffix}", idx_file(np.arange(labels, dtype=np.uint8)))


def write_gzip(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data))


@pytest.mark.parametrize(
    ("folder", "write", "suffix"),
    [("MNIST/raw", Path.write_bytes, ""), ("mnist", write_gzip, ".gz")],
)
def test_mnist_in_both_layouts(
    tmp_path: Path, folder: str, write: Callable[[Path, bytes], None], suffix: str
) -> None:
    write_mnist(tmp_path / folder, write, suffix)
    data = load_from("mnist", tmp_path)
    assert data.x.shape == (6, 1, 28, 28)
    assert torch.equal((data.x[:, 0] * 255).round().byte(), torch.from_numpy(PIXELS))
    assert data.y.tolist() == [0, 1, 2, 3, 4, 5]


def test_damaged_or_mixed_up_mnist_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a/mnist", write_gzip, ".gz")
    images = tmp_path / "a/mnist/t10k-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:500])
    assert "damaged" in refusal("mnist", tmp_path / "a")
    images.write_bytes(gzip.compress(idx_file(PIXELS)[:-1]))
    assert "damaged" in refusal("mnist", tmp_path / "a")
    images.write_bytes(gzip.compress(idx_file(PIXELS[0])))
    assert "3 dimensions" in refusal("mnist", tmp_path / "a")
    write_mnist(tmp_path / "b/mnist", write_gzip, ".gz", labels=5)
    assert "6 images, 5 labels" in refusal("mnist", tmp_path / "b")


def pickled_string(data: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(data)) + data


def write_cifar(folder: Path, name: str, key: bytes, top: int = 9) -> None:
    """A batch as Python 2 pickled it, opcode by opcode.

    Its strings are not unicode. `top` is the label of the fourth image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    array_start = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
        + pickled_string(b"b")
        + b"tR(K\x01K\x06M\x00\x0c\x86"
    )
    dtype = (
        b"cnumpy\ndtype\n("
        + pickled_string(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + pickled_string(b"|")
        + b"NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    numbers = [b"K" + bytes([label]) for label in (0, 1, 2, top, 4, 5)]
    labels = b"](" + b"".join(numbers) + b"e"
    batch = (
        b"\x80\x02}("
        + pickled_string(b"data")
        + array_start
        + dtype
        + b"\x89"
        + pickled_string(COLOURS.tobytes())
        + b"tb"
        + pickled_string(key)
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
        write_cifar(tmp_path / folder, batch, key)
    data = load_from(name, tmp_path)
    assert torch.equal((data.x * 255).round().byte(), torch.from_numpy(COLOURS))
    assert data.y.tolist() == [0, 1, 2, 9, 4, 5]
    assert len(load_from(name, tmp_path, "train")) == 6 * len(train)


def test_a_cifar_archive_is_unpacked(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py", "test_batch", b"labels")
    archive = tmp_path / "data" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    assert load_from("cifar10", archive.parent).y.tolist() == [0, 1, 2, 9, 4, 5]
    archive.unlink()
    assert len(load_from("cifar10", archive.parent)) == 6  # from the batches that were unpacked


@pytest.mark.parametrize(
    "content", [b"<html>", gzip.compress(b"\0" * 1024, mtime=0)[:-9]], ids=["page", "cut"]
)
def test_a_damaged_cifar_archive(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(content)
    assert f"'{archive}' is no CIFAR archive, or is damaged" in refusal("cifar10", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


class Harm:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_cifar_batch_cannot_run_a_program(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(
        pickle.dumps({"data": Harm(tmp_path / "harm")}, protocol=2)
    )
    assert "it asks for posix.mkdir" in refusal("cifar10", tmp_path)
    assert not (tmp_path / "harm").exists()


def test_damaged_cifar_batches_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, "test_batch", b"labels")
    (folder / "test_batch").write_bytes((folder / "test_batch").read_bytes()[:1000])
    assert "damaged" in refusal("cifar10", tmp_path)
    write_cifar(folder, "test_batch", b"labels", top=10)
    assert "not those of 10 classes" in refusal("cifar10", tmp_path)


def jpeg_file(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_cifar10_jpeg_is_read_from_its_archive(tmp_path: Path) -> None:
    path = tmp_path / "cifar10-jpeg.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name, colour in (
            ("test/truck/0001.jpg", (250, 0, 0)),
            ("test/airplane/0000.jpg", (0, 250, 0)),
            ("train/cat/0000.jpg", (0, 0, 250)),
        ):
            info = tarfile.TarInfo(f"cifar10-jpeg/{name}")
            content = jpeg_file(colour)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = load_from("cifar10-jpeg", tmp_path)
    assert data.y.tolist() == [0, 9]  # in the order of the names, not of the archive
    assert data.x.mean((2, 3)).argmax(1).tolist() == [1, 0]
    assert load_from("cifar10-jpeg", tmp_path, "train").y.tolist() == [3]
    path.write_bytes(path.read_bytes()[:200])
    assert "damaged" in refusal("cifar10-jpeg", tmp_path)


def test_svhn_calls_zero_ten(tmp_path: Path) -> None:
    from scipy.io import savemat

    savemat(
        tmp_path / "test_32x32.mat",
        {
            "X": COLOURS.transpose(2, 3, 1, 0),
            "y": np.array([[10], [1], [2], [3], [4], [9]], np.uint8),
        },
    )
    data = load_from("svhn", tmp_path)
    assert data.y.tolist() == [0, 1, 2, 3, 4, 9]
    assert torch.equal((data.x * 255).round().byte(), torch.from_numpy(COLOURS))
    (tmp_path / "test_32x32.mat").write_bytes(b"<html>")
    assert "damaged" in refusal("svhn", tmp_path)


def write_image(path: Path, level: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    """An image of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (level, level, level) if mode == "RGB" else level
    Image.new(mode, size, colour).save(path)


def test_tiny_imagenet_is_tested_on_its_validation_split(tmp_path: Path) -> None:
    top = tmp_path / "tiny-imagenet-200"
    for name, level in (("n02", 20), ("n01", 10)):
        write_image(top / "train" / name / "images" / f"{name}_0.JPEG", level, (64, 64))
        write_image(top / "val/images" / f"val_{level}.JPEG", level, (64, 64), "RGB")
    (top / "wnids.txt").write_text("n02\nn01\n")
    (top / "val/val_annotations.txt").write_text(
        "val_20.JPEG\tn02\t0\t0\t9\t9\nval_10.JPEG\tn01\t0\t0\t9\t9\n"
    )
    data = load_from("tiny-imagenet", tmp_path)
    assert data.y.tolist() == [0, 1]
    assert data.classes == 2
    assert torch.allclose(data.x.mean((1, 2, 3)) * 255, torch.tensor([10.0, 20.0]), atol=1)
    assert load_from("tiny-imagenet", tmp_path, "train").y.tolist() == [0, 1]
    (top / "val/images/val_20.JPEG").unlink()
    assert "val_20.JPEG" in refusal("tiny-imagenet", tmp_path)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for path, level in (
        ("test/b/1.png", 30),
        ("test/a/2.png", 10),
        ("test/a/1.png", 20),
        ("train/c/1.png", 0),
    ):
        write_image(tmp_path / path, level)
    (tmp_path / "test/a/notes.txt").write_text("not an image")
    data = load_from(f"folder[path={tmp_path}]", tmp_path)
    assert data.x.shape == (3, 1, 8, 8)
    assert data.classes == 3, "a class that has no test image still counts"
    assert (data.x[:, 0, 0, 0] * 255).round().tolist() == [20, 10, 30]
    assert data.y.tolist() == [0, 0, 1]
    write_image(tmp_path / "test/b/2.png", 30, mode="RGB")
    assert load_from(f"folder[path={tmp_path}]", tmp_path).x.shape == (4, 3, 8, 8)


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    spec = f"folder[path={tmp_path}]"
    assert "does not exist" in refusal("folder[path=nowhere]", tmp_path)
    assert "0 classes and 0 images" in refusal(spec, tmp_path)
    write_image(tmp_path / "test/a/1.png", 1)
    write_image(tmp_path / "test/b/1.png", 1, (9, 8))
    assert "is 9x8 pixels, but" in refusal(spec, tmp_path)
    write_image(tmp_path / "test/b/1.png", 1, mode="I;16")
    assert "mode I;16" in refusal(spec, tmp_path)
    (tmp_path / "test/b/1.png").write_bytes((tmp_path / "test/a/1.png").read_bytes()[:40])
    assert "cannot be read" in refusal(spec, tmp_path)


def test_what_editors_and_archivers_leave_in_a_folder_is_ignored(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        for split in ("train", "test"):
            write_image(tmp_path / split / kind / "1.png", 10)
    for path in (
        "test/.ipynb_checkpoints/1-checkpoint.png",
        "test/a/.ipynb_checkpoints/1.png",
        "test/__MACOSX/1.png",
        "test/a/._1.png",
        "train/.git/1.png",
    ):
        write_image(tmp_path / path, 99)
    for name in (".DS_Store", "test/.DS_Store", "test/a/Thumbs.db", "test/b/desktop.ini"):
        (tmp_path / name).write_bytes(b"\0")
    (tmp_path / "test/b/folder.png").mkdir()
    data = load_from(f"folder[path={tmp_path}]", tmp_path)
    assert (len(data), data.classes, data.notes) == (2, 2, ())


def test_classes_of_one_split_alone_are_named(tmp_path: Path) -> None:
    for path in ("test/a/1.png", "test/b/1.png", "train/a/1.png"):
        write_image(tmp_path / path, 10)
    spec = f"folder[path={tmp_path}]"
    (note,) = load_from(spec, tmp_path).notes
    assert note == f"image folder '{tmp_path}': only test/ has the classes b"
    write_image(tmp_path / "train/c/1.png", 10)
    assert "only train/ has the classes c" in load_from(spec, tmp_path).notes[0]


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose head claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [5000, 10_000, 60_000])
def test_an_image_that_claims_to_be_huge_is_refused_unread(tmp_path: Path, side: int) -> None:
    write_image(tmp_path / "test/a/1.png", 1)
    (tmp_path / "test/b").mkdir()
    (tmp_path / "test/b/1.png").write_bytes(png_that_claims(side, side))
    message = refusal(f"folder[path={tmp_path}]", tmp_path)
    assert str(tmp_path / "test/b/1.png") in message


@pytest.mark.parametrize("content", [b"", b"<html>", b"GIF89a", b"BM", b"II*\0\xff\xff\xff\xff"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    write_image(tmp_path / "test/a/1.png", 1)
    (tmp_path / "test/b").mkdir()
    (tmp_path / "test/b/1.png").write_bytes(content)
    assert "test/b/1.png' cannot be read" in refusal(f"folder[path={tmp_path}]", tmp_path)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31), "its head claims"),
        (struct.pack(">HBB3I", 0, 8, 3, 2, 20, 20) + bytes(800), "20x20, not 28x28"),
        (struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + bytes(1600), "damaged"),
        (b"\0\0\x08\x03\0", "damaged"),
        (b"", "damaged"),
    ],
)
def test_a_wrong_mnist_file_is_named(tmp_path: Path, head: bytes, reason: str) -> None:
    write_mnist(tmp_path / "mnist", write_gzip, ".gz")
    images = tmp_path / "mnist/t10k-images-idx3-ubyte.gz"
    images.write_bytes(gzip.compress(head))
    message = refusal("mnist", tmp_path)
    assert str(images) in message
    assert reason in message


def test_empty_files_of_mnist_and_svhn_are_refused(tmp_path: Path) -> None:
    from scipy.io import savemat

    write_mnist(tmp_path / "mnist", write_gzip, ".gz", labels=0)
    images = tmp_path / "mnist/t10k-images-idx3-ubyte.gz"
    images.write_bytes(gzip.compress(idx_file(PIXELS[:0])))
    assert "has no images" in refusal("mnist", tmp_path)
    empty = {"X": np.zeros((32, 32, 3, 0), np.uint8), "y": np.zeros((0, 1), np.uint8)}
    savemat(tmp_path / "test_32x32.mat", empty)
    assert "is no file of dataset 'svhn'" in refusal("svhn", tmp_path)


@pytest.mark.parametrize(
    ("name", "put"),
    [
        ("mnist", "put t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into {}/mnist"),
        ("cifar10", "put cifar-10-python.tar.gz, or what is in it, into {}"),
        ("cifar100", "put cifar-100-python.tar.gz, or what is in it, into {}"),
        ("svhn", "put test_32x32.mat into {}"),
    ],
)
def test_without_a_network_the_error_names_file_and_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, put: str
) -> None:
    """No folder of a download that fails may stay."""

    def fail(url: str, path: str, _: object) -> None:
        assert url.startswith("http")
        Path(path).write_bytes(b"half of it")
        raise OSError("no\nnetwork")

    monkeypatch.setattr(files, "http_downloader", lambda: fail)
    place = put.format(tmp_path / "data")
    assert refusal(name, tmp_path / "data") == (
        f"dataset '{name}' is not there: {place} (its download failed: no network)"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [("cifar10-jpeg", "cifar10-jpeg.tar.xz"), ("tiny-imagenet", "tiny-imagenet-200.zip")],
)
def test_a_missing_archive_is_named(tmp_path: Path, name: str, file: str) -> None:
    message = refusal(name, tmp_path)
    assert file in message
    assert str(tmp_path) in message


@pytest.mark.skipif(
    not os.environ.get("BENCH_DATA"),
    reason="reads real files: set BENCH_DATA to the folder that holds them",
)
@pytest.mark.parametrize(
    ("name", "shape", "digest"),
    [("mnist", (1, 28, 28), "8564f5bfda8af07b"), ("cifar10-jpeg", (3, 32, 32), "6a9724561f079c16")],
)
def test_digests_of_the_real_files(name: str, shape: tuple[int, ...], digest: str) -> None:
    whole = load(Spec(name))
    assert whole.x.shape == (10000, *shape)
    assert whole.digest == digest
