"""Whatever a plug-in raises before a sweep is one line that names it, and nothing is written."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.questions import registry
from tests.cli.commands import run

HEAD = """
import torch
from bench import attack, build_classifier, classifier, defence
from bench.questions.facts import DefenceFacts


def fail(*given):
    raise KeyError("mine")


def leave(*given):
    raise SystemExit(0)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


def raise_unprintable(*given):
    raise Unprintable
"""
DEFENCE = """
@defence("mine", bare=True, broken=True, {facts})
def mine(*, classifier: str = "{source}"):
    return build_classifier(classifier)
"""
ATTACK = """
@attack("mine", norms={{"linf"}}, access="white-box", family="gradient", {facts})
def mine(model, x, y, threat, *, word: str = "a"):
    return x
"""
CLASSIFIER = """
@classifier("mine", {facts})
def mine_classifier(argument):
    return build_classifier("toy:linear")
"""
ON_DEFENCE = ["--defences", "mine", "--attacks", "toy-exact"]
ON_ATTACK = ["--defences", "toy-linear", "--attacks", "mine"]


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it: each writes a file of its own."""
    for names in registry.registries.values():
        monkeypatch.setattr(names, "_entries", dict(vars(names)["_entries"]))


def refusal(text: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command says; nothing else happens."""
    plugin = folder / "mine.py"
    plugin.write_text(text)
    out = folder / "out"
    command = ["--with", str(plugin), "--dataset", "toy", *words, "--out", str(out)]
    assert run(command) == 2
    line = capsys.readouterr().err
    assert line.startswith("bench: ")
    assert line.count("\n") == 1
    assert not out.exists()
    return line


def of_defence(facts: str, source: str = "toy:linear") -> str:
    return HEAD + DEFENCE.format(facts=facts, source=source)


def of_classifier(facts: str) -> str:
    return HEAD + CLASSIFIER.format(facts=facts) + DEFENCE.format(facts="", source="mine:a")


def of_attack(facts: str) -> str:
    return HEAD + ATTACK.format(facts=facts)


HOOKS = {
    "stochastic": of_defence("stochastic=fail"),
    "dependent_defaults": of_defence("dependent_defaults=fail"),
    "pin": of_defence("pin=fail"),
    "fetch": of_defence("fetch=fail"),
    "files": of_defence("files=fail"),
    "names": of_classifier("names=fail"),
    "digest": of_classifier("digest=fail"),
    "fetch of a classifier": of_classifier("fetch=fail"),
    "parse": of_attack('parsers={{"word": fail}}'.replace("{{", "{").replace("}}", "}")),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_is_one_line(
    hook: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ON_ATTACK if hook == "parse" else ON_DEFENCE
    line = refusal(HOOKS[hook], words, tmp_path, capsys)
    assert "'mine'" in line
    assert f"{hook.partition(' ')[0]}" in line
    assert "raised KeyError: 'mine' (mine.py:8)" in line


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("leave", "raised SystemExit: 0 (mine.py:12)"),
        ("raise_unprintable", "raised Unprintable: its message cannot be read"),
        ("open", "raised TypeError"),
    ],
)
def test_a_hook_that_leaves_is_one_line(
    hook: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = of_defence(f"stochastic={hook}")
    assert message in refusal(text, ON_DEFENCE, tmp_path, capsys)


ANSWERS = {
    "defence 'mine': its stochastic gives 'yes', not true or false": of_defence("stochastic='yes'"),
    "its stochastic gives None, not true or false": of_defence("stochastic=lambda knobs: None"),
    "its dependent_defaults gives list, not a mapping": of_defence(
        "dependent_defaults=lambda knobs: []"
    ),
    "its pin gives 'digest', which is no knob": of_defence("pin=lambda knobs: {'digest': 'a'}"),
    "its files gives 3, not a path": of_defence("files=3"),
    "its names gives 'abc', not a list of texts": of_classifier("names=lambda: 'abc'"),
    "its digest gives 7, not a text": of_classifier("digest=lambda argument: 7"),
    "its digest gives 'zz', not at least 8 digits": of_classifier("digest=lambda argument: 'zz'"),
}


@pytest.mark.parametrize("message", ANSWERS)
def test_an_answer_of_another_type_is_one_line(
    message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(ANSWERS[message], ON_DEFENCE, tmp_path, capsys)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ("fail", "attack 'mine': its calls raised KeyError: 'mine' (mine.py:8)"),
        ("lambda knobs, stochastic: 'many'", "its calls gives 'many', not a finite number"),
        ("lambda knobs, stochastic: float('nan')", "its calls gives nan, not a finite number"),
    ],
)
def test_calls_are_finite_numbers(
    calls: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = of_attack(f"calls={calls}")
    assert message in refusal(text, [*ON_ATTACK, "--dry-run"], tmp_path, capsys)


def test_a_hook_cannot_edit_the_knobs_of_the_question() -> None:
    def edit(knobs: dict[str, object]) -> bool:
        knobs.clear()
        return False

    registry.defence("mine", stochastic=edit)(lambda *, a=1: None)
    spec = registry.defences.resolve(registry.Spec("mine"))
    assert not registry.is_stochastic(spec)
    assert spec.params == {"a": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("raise SystemExit(0)", "SystemExit: 0 (mine.py:1)"),
        ("raise KeyError('a')", "KeyError: 'a' (mine.py:1)"),
        ("def f(:", "SyntaxError: invalid syntax (mine.py:1)"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("\0", "SyntaxError: source code string cannot contain null bytes"),
        ("raise GeneratorExit", "GeneratorExit (mine.py:1)"),
        ("open('/no/such/file')", "FileNotFoundError"),
    ],
)
def test_a_plugin_file_that_cannot_be_imported_is_one_line(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(line, ON_DEFENCE, tmp_path, capsys)
    assert "mine.py' cannot be imported: " in error
    assert message in error


ACTS = {
    "torch.clamp": "torch.clamp = None or (lambda x: x)",
    "the working folder": "import os; os.chdir('/')",
    "the environment": "import os; os.environ['BENCH_DATA'] = '/nowhere'",
    "the default dtype": "torch.set_default_dtype(torch.float64)",
    "random generators": "torch.manual_seed(7); import random; random.seed(7)",
}


@pytest.mark.parametrize("name", ACTS)
def test_what_a_plugin_file_changes_is_put_back_with_a_note(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def look() -> list[object]:
        numbers = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
        return [torch.clamp, Path.cwd(), dict(os.environ), torch.get_default_dtype(), numbers]

    plugin = tmp_path / "mine.py"
    plugin.write_text(of_defence("") + ACTS[name] + "\n")
    command = ["--with", str(plugin), "--dataset", "toy", *ON_DEFENCE, "--n", "4"]
    before = look()
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    assert look() == before
    output = capsys.readouterr().out
    assert f"mine.py' changes {name} when imported; this is put back" in output.replace("\n", " ")
