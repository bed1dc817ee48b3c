"""Weights files that others made: plain tensors come back, and nothing else is run or believed."""

from __future__ import annotations

import collections
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from baselines.own import make_network
from bench import weights
from bench.errors import BadInput
from bench.questions.pins import unpinned
from bench.questions.plan import plan
from bench.questions.registry import build_classifier, build_defence
from bench.questions.request import Request
from bench.tensor_files import read_tensors

ARCH: dict[str, Any] = {
    "name": "cnn",
    "params": {"shape": [1, 8, 8], "classes": 10, "width": 4, "hidden": 8},
}
X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def make_net() -> nn.Module:
    return make_network(ARCH, "net").eval().requires_grad_(False)


def keep(path: Path, content: object, card: dict[str, Any] | None = None) -> str:
    """Write the content as torch does, and a card as a user writes it; return the name."""
    torch.save(content, path)
    return describe(path, card)


def describe(path: Path, card: dict[str, Any] | None = None) -> str:
    path.with_suffix(".json").write_text(json.dumps(card or {"arch": ARCH}))
    return f"file:{path}"


def refusal(path: Path) -> str:
    """The message of the error, of one line that names the file."""
    with pytest.raises(BadInput) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net.state_dict(),
        lambda net: dict(net.state_dict()),
        lambda net: {"state_dict": net.state_dict(), "epoch": 3, "best": 0.5, "done": True},
        lambda net: {"model": net.state_dict(), "optimizer": {"state": {}, "groups": [1, None]}},
        lambda net: {name: nn.Parameter(value) for name, value in net.state_dict().items()},
        lambda net: nn.DataParallel(net).state_dict(),
        lambda net: torch.compile(net).state_dict(),
        lambda net: torch.compile(nn.DataParallel(torch.compile(net))).state_dict(),
        lambda net: {"net": nn.DataParallel(nn.DataParallel(net)).state_dict()},
    ],
)
def test_a_file_of_torch_is_read_where_a_card_says_the_architecture(
    tmp_path: Path, wrap: Callable[[nn.Module], object]
) -> None:
    net = make_net()
    again = build_classifier(keep(tmp_path / "net.pt", wrap(net)))
    assert torch.equal(again(X), net(X))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.module."])
def test_prefixes_are_taken_off_in_safetensors_too(tmp_path: Path, prefix: str) -> None:
    net = make_net()
    path = tmp_path / "net.safetensors"
    save_file({f"{prefix}{name}": value for name, value in net.state_dict().items()}, path)
    assert torch.equal(build_classifier(describe(path))(X), net(X))


def test_a_wrapped_part_of_a_network_is_recognised(tmp_path: Path) -> None:
    net = make_net()
    tensors = {
        name.replace("conv1.", "conv1._orig_mod."): value
        for name, value in net.state_dict().items()
    }
    assert torch.equal(build_classifier(keep(tmp_path / "net.pt", tensors))(X), net(X))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3),
        torch.arange(6.0).view(2, 3).T,
        torch.arange(20.0)[3:9:2],
        torch.tensor(3.5),
        torch.zeros(0, 4),
        torch.ones(2, dtype=torch.float16),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.float64),
        torch.tensor([-1, 2**40]),
        torch.tensor([True, False]),
        torch.tensor([255], dtype=torch.uint8),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_plain_tensor_comes_back(tmp_path: Path, tensor: Tensor, protocol: int) -> None:
    path = tmp_path / "net.pt"
    torch.save({"a": tensor, "shared": tensor}, path, pickle_protocol=protocol)
    read = read_tensors(path)
    assert read.keys() == {"a", "shared"}
    assert read["a"].dtype == tensor.dtype
    assert torch.equal(read["a"], tensor)


class Harm:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: {"a": Harm(path)}, "it asks for posix.mkdir"),
        (lambda path: {"state_dict": {"a": torch.ones(1)}, "args": Harm(path)}, "posix.mkdir"),
        (lambda path: make_net(), "it asks for baselines.nets.cnn.Cnn"),
        (lambda path: {"a": torch.ones(1), "n": np.float64(3)}, "it asks for numpy"),
        (lambda path: {"a": collections.Counter()}, "it asks for collections.Counter"),
        (lambda path: {"a": bytearray(3)}, "it asks for"),
        (lambda path: {"a": torch.ones(2).to_sparse()}, "it asks for"),
        (lambda path: {"a": torch.ones(1), "epoch": 3}, "it holds 'epoch', which is no tensor"),
        (lambda path: {3: torch.ones(1)}, "it holds '3', which is no tensor"),
        (lambda path: [torch.ones(1)], "it holds a list"),
    ],
)
def test_a_file_of_torch_with_more_than_tensors_is_refused_and_not_run(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "net.pt"
    torch.save(make(tmp_path / "harm"), path)
    message = refusal(path)
    assert reason in message
    assert "torch.save(model.state_dict(), PATH)" in message
    assert not (tmp_path / "harm").exists()


def test_bare_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(Harm(tmp_path / "harm"), protocol=protocol))
        assert "bare pickle" in refusal(path)
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert "bare pickle" in refusal(path)
    assert not (tmp_path / "harm").exists()


def rewrite(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """A file of torch with another pickle, and one storage of 4 floats."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/data/0", np.arange(4, dtype=np.float32).tobytes())


def pickled_tensor(size: str, stride: str, offset: str = "I0\n", dtype: str = "Float") -> bytes:
    """A pickle of the dictionary {"a": a view of the storage "0"}."""
    storage = f"(Vstorage\nctorch\n{dtype}Storage\nV0\nVcpu\nI4\ntQ".encode()
    view = f"{offset}{size}{stride}I00\n)tR".encode()
    return b"\x80\x02(Va\nctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"d."


def test_a_pickle_by_hand_is_read(tmp_path: Path) -> None:
    rewrite(tmp_path / "net.pt", pickled_tensor("(I2\nI2\nt", "(I2\nI1\nt"))
    assert read_tensors(tmp_path / "net.pt")["a"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    "data",
    [
        pickled_tensor("(I5\nt", "(I1\nt"),  # past the end of the storage
        pickled_tensor("(I1\nt", "(I1\nt", "I4\n"),
        pickled_tensor("(I1\nt", "(I1\nt", "I-1\n"),
        pickled_tensor("(I2\nt", "(I-1\nt", "I1\n"),
        pickled_tensor("(I1000000000000\nt", "(I0\nt"),  # one value a trillion times
        pickled_tensor("(I1000000\nI1000000\nt", "(I1000000\nI1\nt"),
        pickled_tensor("(I2\nt", "(I1\nI1\nt"),
        pickled_tensor("(Vx\nt", "(I1\nt"),
        pickled_tensor("(I4\nt", "(I1\nt", dtype="Double"),
        pickled_tensor("(I4\nt", "(I1\nt", dtype="Quantised"),
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2^31 places
        b"\x80\x02X\xff\xff\xff\x7fa.",  # a text of 2^31 characters
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",  # an array of 2^40 bytes
        b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b"a.",
        b"\x80\x02cbuiltins\nbytearray\nM\xff\xff\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n)R}Vkeys\nI1\nsb.",
        b"",
        b".",
    ],
)
def test_no_pickle_is_taken_at_its_word(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "net.pt"
    rewrite(path, data)
    refusal(path)


def test_nothing_is_allocated_on_a_files_word(tmp_path: Path) -> None:
    """The claims of each file are terabytes or gigabytes; the process may have 300 MB more."""
    rewrite(tmp_path / "memo.pt", b"\x80\x02}r\xff\xff\xff\x7f.")
    rewrite(tmp_path / "array.pt", b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"a.")
    rewrite(tmp_path / "view.pt", pickled_tensor("(I10000000000\nt", "(I0\nt"))
    rewrite(tmp_path / "zeros.pt", bytes(1 << 28), zipfile.ZIP_DEFLATED)
    (tmp_path / "head.safetensors").write_bytes(struct.pack("<Q", 2**33) + b"{}")
    wide = {"name": "cnn", "params": {**ARCH["params"], "width": 1 << 20}}
    name = keep(tmp_path / "wide.pt", make_net().state_dict(), {"arch": wide})
    code = f"""
import resource, sys
from pathlib import Path
from baselines.own import load_classifier
from bench.errors import BadInput
from bench.tensor_files import read_tensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path({str(tmp_path)!r}).glob("*.*")):
    if path.suffix == ".json" or path.stem == "wide":
        continue
    try:
        read_tensors(path)
    except BadInput as error:
        print(path.name)
try:
    load_classifier({name!r})
except BadInput as error:
    assert "do not fit their card" in str(error), error
    print("wide.pt")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 300_000, grown
"""
    words = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = ["array.pt", "head.safetensors", "memo.pt", "view.pt", "zeros.pt", "wide.pt"]
    assert done.stdout.split() == names


def test_a_zip_that_claims_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    rewrite(path, bytes(1 << 20), zipfile.ZIP_DEFLATED)
    assert "its entries claim" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"<html>",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 1 << 15) + b'{"a":' * (1 << 13),
        struct.pack("<Q", 64)
        + b'{"a":{"dtype":"F32","shape":[9999999],"data_offsets":[0,39999996]}}'[:64],
        b"PK\3\4 and no more",
        b"PK\3\4" + bytes(100),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    refusal(path)


def test_a_truncated_or_changed_file_of_torch_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(make_net().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refusal(path)
    place = whole.index(make_net().get_buffer("std").numpy().tobytes())
    path.write_bytes(whole[:place] + b"\x07" + whole[place + 1 :])
    assert "CRC" in refusal(path)


def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    tensors = {f"module.{name}": value for name, value in make_net().state_dict().items()}
    tensors["module.conv2.bias"] = torch.zeros(3)
    text = keep(tmp_path / "net.pt", tensors)
    with pytest.raises(BadInput, match=r"conv2.bias is \(3,\), not \(8,\)") as caught:
        build_classifier(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"sha256": "0000"}', "not the one that its card describes"),
        (b"[1]", "no table of facts, but a list"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * (1 << 21), "more than 1048576 bytes"),
        (b"{}", "'arch' must have a name and params"),
    ],
)
def test_a_card_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    text = keep(tmp_path / "net.pt", make_net().state_dict())
    (tmp_path / "net.json").write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        build_classifier(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "my nets/net one.pt",
        "me@home/net.pt",
        "me@deadbeef/net.pt",
        "net@v2.pt",
        "net@deadbeef",
        "net@12345678.pt",
        "a+b/net.pt",
        "größe/net.pt",
    ],
)
def test_a_path_may_hold_spaces_and_what_looks_like_a_pin(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    text = keep(path, make_net().state_dict())
    digest = weights.digest(path)[:8]
    defence = f"undefended[classifier={text}]"
    (cell,) = plan([Request(defences=(defence,), attacks=("none",))]).cells
    pinned = str(cell.defence.params["classifier"])
    assert pinned == f"{text}@{digest}"
    assert unpinned(pinned) == text
    assert weights.locate(pinned) == path
    assert weights.pin(pinned) == weights.pin(text) == pinned
    assert torch.equal(build_defence(cell.defence)(X), make_net_of(path)(X))
    (again,) = plan([Request(defences=(str(cell.defence),), attacks=("none",))]).cells
    assert again.key == cell.key
    with pytest.raises(BadInput, match=f"have the digest {digest}, not 00000000"):
        plan([Request(defences=(f"undefended[classifier={text}@00000000]",), attacks=("none",))])


def make_net_of(path: Path) -> nn.Module:
    net = make_net()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net
