"""Before a sweep every defence is built and asked: what it raises is one line, nothing is written.

Modules that are wrapped run, and other forms of an answer are noted once.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.judging.border import place_defence
from bench.questions import registry
from tests.cli.commands import run

HEAD = """
import torch
from torch import nn
from bench import build_classifier, defence


class Net(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return FORWARD


@defence("mine", bare=True, broken=True)
def mine(*, classifier: str = "@standard"):
    net = build_classifier(classifier)
    FACTORY
    return Net(net)
"""


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it: each writes a file of its own."""
    for names in registry.registries.values():
        monkeypatch.setattr(names, "_entries", dict(vars(names)["_entries"]))


def write_plugin(folder: Path, *, factory: str = "pass", forward: str = "self.net(x)") -> Path:
    plugin = folder / "mine.py"
    plugin.write_text(HEAD.replace("FACTORY", factory).replace("FORWARD", forward))
    return plugin


def sweep(plugin: Path, out: Path) -> int:
    return run(
        [
            *("--with", str(plugin), "--dataset", "toy", "--n", "4", "--defences", "mine"),
            *("--attacks", "toy-exact", "--out", str(out)),
        ]
    )


FACTORIES = {
    "assert False, 'no such thing'": "AssertionError: no such thing (mine.py:19)",
    "raise KeyError('weights')": "KeyError: 'weights' (mine.py:19)",
    "nn.Linear(2, 3).load_state_dict({})": "RuntimeError: Error(s) in loading state_dict",
    "nn.Linear(2, 3).load_state_dict({}) ": "(mine.py:19)",
    "open('/no/such/file')": "FileNotFoundError: [Errno 2] No such file or directory",
    "raise SystemExit(0)": "SystemExit: 0 (mine.py:19)",
    "raise GeneratorExit": "GeneratorExit (mine.py:19)",
    "raise StopIteration": "StopIteration (mine.py:19)",
    "return None": "defence 'mine' is no nn.Module: its factory returns NoneType",
    "return 'net'": "defence 'mine' is no nn.Module: its factory returns str",
    "return net.forward": "defence 'mine' is no nn.Module: its factory returns method",
}
FORWARDS = {
    "self.net(x[0])": "it answers shape (1, 2) for 2 images; logits are (B,K) (mine.py:12)",
    "self.net.nothing(x)": "AttributeError: 'Linear' object has no attribute 'nothing'",
    "{}['a']": "KeyError: 'a' (mine.py:13)",
    "exit(0)": "SystemExit: 0",
    "next(iter(()))": "StopIteration (mine.py:13)",
    "nn.Linear(5, 2)(x.flatten(1))": "mat1 and mat2 shapes cannot be multiplied",
    "None": "it answers None, which holds no logits",
    "'logits'": "it answers a str, which holds no logits",
    "self.net(x).numpy()": "it answers a numpy array, which holds no logits",
    "(row for row in self.net(x))": "it answers a generator, which holds no logits",
    "[self.net(x)]": "it answers a list, which holds no logits",
    "self.net(x).argmax(1)": "it answers numbers of type torch.int64; logits are floating",
    "self.net(x)[:1]": "it answers shape (1, 2) for 2 images; logits are (B,K)",
    "self.net(x).to('meta')": "it answers on meta, and its images lie on cpu",
    "torch.cat([self.net(x)] * 2, 1)": "answers (2, 4) for 2 images of 'toy', which has 2 classes",
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_what_a_factory_raises_is_one_line(
    factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_plugin(tmp_path, factory=factory)
    assert sweep(plugin, tmp_path / "out") == 2
    refuse_all_but_one_line(capsys, FACTORIES[factory], tmp_path)


@pytest.mark.parametrize("forward", FORWARDS)
def test_what_a_forward_raises_is_one_line(
    forward: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_plugin(tmp_path, forward=forward)
    assert sweep(plugin, tmp_path / "out") == 2
    refuse_all_but_one_line(capsys, FORWARDS[forward], tmp_path)


def refuse_all_but_one_line(capsys: pytest.CaptureFixture[str], message: str, folder: Path) -> None:
    line = capsys.readouterr().err
    assert line.startswith("bench: defence 'mine'")
    assert message in line
    assert line.count("\n") == 1
    assert not (folder / "out").exists()


def test_a_factory_that_fails_stops_a_dry_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plugin = write_plugin(tmp_path, factory="raise KeyError('weights')")
    words = ["--with", str(plugin), "--dataset", "toy", "--defences", "mine", "--dry-run"]
    assert run([*words, "--attacks", "toy-exact", "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert "'weights' (mine.py:19)" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("forward", "note"),
    [
        ("{'logits': self.net(x)}", "its logits are ['logits'] of a mapping"),
        ("(self.net(x), x)", "its logits are the first of a tuple"),
        ("self.net(x).double()", "its logits are float64"),
    ],
)
def test_the_form_of_an_answer_is_noted_once_and_stands_in_the_row(
    forward: str, note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(write_plugin(tmp_path, forward=forward), tmp_path / "out") == 0
    assert (
        capsys.readouterr().out.count(f"note: defence 'mine' with classifier 'toy:linear': {note}")
        == 1
    )
    (board,) = (tmp_path / "out" / "leaderboards").glob("toy-*.csv")
    (row,) = csv.DictReader(board.open())
    assert note in row["reasons"]
    assert row["robust_acc"] is not None


WRAPPERS = {
    "torch.jit.script": "return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)))",
    "torch.jit.trace": "return torch.jit.trace(net, torch.rand(2, 1, 2, 3))",
    "DataParallel": "return nn.DataParallel(net)",
    "a wrapper with _orig_mod": "wrapped = Net(net); wrapped._orig_mod = net; return wrapped",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_modules_run(wrapper: str, tmp_path: Path) -> None:
    assert sweep(write_plugin(tmp_path, factory=WRAPPERS[wrapper]), tmp_path / "out") == 0
    assert len(list((tmp_path / "out").rglob("toy-exact-*.json"))) == 1


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.head = nn.Linear(3 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).relu().flatten(1))
        return logits


@pytest.mark.parametrize("wrap", [torch.jit.script, nn.DataParallel], ids=["script", "parallel"])
def test_a_wrapped_network_answers_as_the_network(wrap: type[nn.Module]) -> None:
    net = Small().eval().requires_grad_(False)
    images = torch.rand(3, 1, 8, 8)
    right = net(images)
    border = place_defence(wrap(net), images)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(border(leaf).sum(), leaf)
    assert torch.allclose(border(images), right, atol=1e-6)
    assert float(gradient.abs().sum()) > 0
