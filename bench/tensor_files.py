"""Tensors in files that others made: safetensors, and torch's format where it holds tensors alone.

Nothing in a file is run, and nothing is allocated on its word: what it claims to hold is compared
with its size first. Torch is imported where tensors are read.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

MOST_HEAD = 1 << 24  # bytes of a head or a pickle: ten thousand tensors have 2 million
MOST_SHARED = 4  # times the file's size: tensors may share their values
DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
CONTAINERS = ("state_dict", "model_state_dict", "model", "net")  # where training scripts keep them
ALONE = "save its tensors alone, torch.save(model.state_dict(), PATH)"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU. Raises BadInput, one line that names the file."""
    with path.open("rb") as file:
        head = file.read(9)
    is_zip = head.startswith(b"PK\3\4")
    is_pickle = head.startswith(b"\x80") and not head.endswith(b"{")
    try:
        if is_pickle:
            raise ValueError(f"it is a bare pickle, which can run any program; {ALONE}")
        return read_torch(path) if is_zip else read_safetensors(path, head)
    except Exception as error:  # a damaged file can raise anything
        kind = "torch" if is_zip else "safetensors"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"weights file '{path}' is not a {kind} file, or is damaged: {reason}"
        ) from None


def read_safetensors(path: Path, head: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file; `head` begins with the length of what describes them."""
    from safetensors.torch import load_file

    claimed = int.from_bytes(head[:8], "little")
    size = path.stat().st_size
    if size < 8 or claimed > min(size - 8, MOST_HEAD):
        raise ValueError(f"its head claims {claimed} bytes, of {size} in the file")
    return load_file(path)


class Piece(NamedTuple):
    """A tensor as a pickle of torch describes it: a view of the entry `key` of the archive."""

    dtype: str
    key: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch(path: Path) -> dict[str, Tensor]:
    """Tensors of a file of `torch.save`: a zip of one pickle and of an entry for each storage."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        claimed = sum(entry.file_size for entry in entries.values())
        if claimed > size:
            raise ValueError(f"its entries claim {claimed} bytes, of {size} in the file")
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or entries[pickles[0]].file_size > MOST_HEAD:
            raise ValueError(f"it has no list of its tensors; {ALONE}")
        pieces = read_pieces(archive.read(pickles[0]))
        refuse_claims(pieces, size)
        folder = pickles[0].removesuffix("data.pkl")
        storages = {
            piece.key: archive.read(f"{folder}data/{piece.key}") for piece in pieces.values()
        }
    return {name: build_tensor(name, piece, storages) for name, piece in pieces.items()}


def read_pieces(data: bytes) -> dict[str, Piece]:
    """The tensors that a pickle names, be they in a container of a training script."""
    for _ in pickletools.genops(data):
        pass  # raises where a length is more than there is
    content = TensorsOnly(data).load()
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}; {ALONE}")
    for name in CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Piece):
            raise ValueError(f"it holds '{name}', which is no tensor; {ALONE}")
    if not content:
        raise ValueError("it holds no tensor")
    return dict(content)


class TensorsOnly(pickle._Unpickler):
    """Reads a pickle of dictionaries, plain values and descriptions of tensors.

    Anything else is refused: a pickle can run any program. In Python, for the unpickler in C sizes
    its memory by a number that the pickle gives.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        # Made for this pickle alone, which could change them.
        self.known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_parameter"): lambda piece, *_: piece,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *values: describe_tensor(*values),
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) not in self.known:
            raise ValueError(f"it asks for {module}.{name}; {ALONE}")
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        """The type and the entry of a storage."""
        _, dtype, key, *_ = pid
        return str(dtype), str(key)


def describe_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Piece:
    """What `torch.save` says of a tensor; `storage` is from `TensorsOnly.persistent_load`."""
    dtype, key = storage
    return Piece(dtype, key, offset, tuple(size), tuple(stride))


def refuse_claims(pieces: Mapping[str, Piece], size: int) -> None:
    """ValueError where the tensors would take much more than the `size` of their file."""
    claimed = 0
    for name, piece in pieces.items():
        numbers = (piece.offset, *piece.size, *piece.stride)
        whole = all(type(number) is int and number >= 0 for number in numbers)
        if not whole or len(piece.size) != len(piece.stride):
            raise ValueError(f"the shape of '{name}' is none")
        claimed += math.prod(piece.size)
    if claimed > MOST_SHARED * size:
        raise ValueError(f"its tensors claim {claimed} values, of {size} bytes in the file")


def build_tensor(name: str, piece: Piece, storages: Mapping[str, bytes]) -> Tensor:
    """The tensor of a piece; ValueError where its storage holds less."""
    import torch

    if piece.dtype not in DTYPES.values():
        raise ValueError(f"the type of '{name}' is {piece.dtype}")
    dtype: torch.dtype = getattr(torch, piece.dtype)
    data = storages[piece.key]
    count = len(data) // dtype.itemsize
    strides = zip(piece.size, piece.stride, strict=True)
    last = piece.offset + sum((length - 1) * step for length, step in strides)
    if 0 in piece.size:
        return torch.empty(piece.size, dtype=dtype)
    if last >= count or math.prod(piece.size) > count:
        raise ValueError(f"'{name}' claims more than the {count} values of its storage")
    values = torch.frombuffer(bytearray(data), dtype=dtype)
    return values.as_strided(piece.size, piece.stride, piece.offset).contiguous()
