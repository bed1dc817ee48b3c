"""CIFAR-10 as an archive of JPEG files."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import torch

from bench.data.cifar import EPS
from bench.data.images import Array, decode, stack
from bench.data.sample import Dataset, dataset_of
from bench.errors import BadInput
from bench.questions.facts import ImageFacts
from bench.questions.registry import dataset

MOST_BYTES = 1 << 20  # of an image of 32x32 pixels
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataset(
    "cifar10-jpeg",
    norm="linf",
    eps=EPS,
    n=500,
    images=ImageFacts(10000, (3, 32, 32)),
    roles={
        "standard": "autoattack:resnet18",
        "robust": "own:cifar10-jpeg-at",
        "other": "own:cifar10-jpeg-other",
        "carso": "own:cifar10-jpeg-carso",
        "vae": "own:cifar10-jpeg-vae",
        "wide": "own:cifar10-jpeg-wide",
        "carso-wide": "own:cifar10-jpeg-carso-wide",
        "vae-wide": "own:cifar10-jpeg-vae-wide",
    },
)
def cifar10_jpeg(split: str, data_dir: Path) -> Dataset:
    """CIFAR-10 after JPEG compression, from cifar10-jpeg.tar.xz; published numbers do not hold.

    The images differ a little from those of CIFAR-10. The ids are positions in the sorted order of
    class and file name, whatever the order of the archive.
    """
    path = data_dir / "cifar10-jpeg.tar.xz"
    if not path.is_file():
        raise BadInput(
            "dataset 'cifar10-jpeg' is not there: put cifar10-jpeg.tar.xz, "
            f"with <split>/<class>/*.jpg inside, into {data_dir}"
        )
    images = read_archive(path, split)
    if not images:
        raise BadInput(f"'{path}' holds no {split}/<class>/*.jpg")
    names = sorted(images)
    x = stack([images[name] for name in names], [f"{path}: {'/'.join(name)}" for name in names])
    y = torch.tensor([CLASSES.index(kind) for kind, _ in names])
    return dataset_of("cifar10-jpeg", x, y, classes=10)


def read_archive(path: Path, split: str) -> dict[tuple[str, str], Array]:
    """The images of a split by class and file name. Raises BadInput."""
    images: dict[tuple[str, str], Array] = {}
    try:
        with tarfile.open(path) as archive:
            # in the order of the file: compressed archives cannot be read at random
            for member in archive:
                parts = member.name.split("/")
                if len(parts) != 4 or parts[1] != split or parts[2] not in CLASSES:
                    continue
                if member.size > MOST_BYTES:
                    raise BadInput(
                        f"'{path}': {member.name} has {member.size} bytes; it is no image"
                    )
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    source = io.BytesIO(file.read())
                    images[parts[2], parts[3]] = decode(source, f"{path}: {member.name}")
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise BadInput(f"'{path}' is no tar.xz archive, or is damaged: {error}") from None
    return images
