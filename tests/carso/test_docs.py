"""The page about CARSO: its example runs as it stands, and its names are those of the code."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import carso.loss
import carso.representation
from carso import CARSO, Purifier
from carso.aggregate import AGGREGATIONS
from carso.recipe import FOLDER, Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "carso.md"
TEXT = PAGE.read_text()

CLAIMS = """
held_out = y[1500:]
assert logits.shape == (297, 10)
assert draws.shape == (297, 4, 10)
assert (draws[:, 0] != draws[:, 1]).any()
assert (logits.argmax(1) == held_out).float().mean() > 0.75, "of ten classes"
shuffled = model(x[1500:].roll(1, 0))
assert (shuffled.argmax(1) == held_out).float().mean() < 0.3, "the image decides the answer"
z = torch.randn(297, 8, recipe.latent)
fresh = CARSO(classifier, purifier, samples=8, aggregation="peel")
same = torch.equal(model.sample_logits(x[1500:], z), fresh.sample_logits(x[1500:], z))
assert same, "the file holds what was trained"
other = nn.Sequential(*(layer for layer in classifier[:-1]), nn.Linear(512, 10))
try:
    check_classifier(card, other)
except ValueError:
    pass
else:
    raise AssertionError("another classifier was accepted")
of_the_bench = {name for name in sys.modules if name.split(".")[0] in ("bench", "baselines")}
assert of_the_bench <= {"bench", "bench.errors", "bench.files"}, of_the_bench
"""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_example_runs_without_the_bench(tmp_path: Path) -> None:
    """In a process of its own, with the project's packages on the path, and its files elsewhere."""
    example, keeping = blocks("python")
    statements = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.stmt)]
    assert len(statements) <= 21
    start = f"import sys, torch\nsys.path.insert(0, {str(ROOT)!r})\ntorch.manual_seed(0)\n"
    program = start + example + keeping + CLAIMS
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_every_field_of_a_recipe_and_every_recipe_is_on_the_page() -> None:
    _, section = TEXT.split("## Recipes and training")
    table = [
        line.split("|")[1]
        for line in section.partition("\n## ")[0].splitlines()
        if line.startswith("| `")
    ]
    assert sorted(re.findall(r"`(\w+)`", " ".join(table))) == sorted(f.name for f in fields(Recipe))
    assert all(f"`{path.stem}`" in section for path in FOLDER.glob("*.toml"))


def test_the_aggregations_of_the_page_are_those_of_the_code() -> None:
    _, section = TEXT.split("## From samples to one answer")
    assert set(
        re.findall(r"^\| `([\w-]+)` \|", section.partition("\n## ")[0], re.MULTILINE)
    ) == set(AGGREGATIONS)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("CARSO", CARSO),
        ("CARSO.sample_logits", CARSO.sample_logits),
        ("CARSO.draws", CARSO.draws),
        ("CARSO.purify", CARSO.purify),
        ("CARSO.latent", CARSO.latent),
        ("CARSO.decode", CARSO.decode),
        ("CARSO.classify", CARSO.classify),
        ("carso.representation.taps", carso.representation.taps),
        ("Purifier.condition", Purifier.condition),
        ("Purifier.encode", Purifier.encode),
        ("Purifier.decode", Purifier.decode),
        ("carso.loss.elbo", carso.loss.elbo),
    ],
)
def test_signatures_are_those_of_the_code(name: str, function: object) -> None:
    assert callable(function)
    (given,) = re.findall(
        rf"`{re.escape(name)}\(([^`]*)\)`", TEXT.split("## The interface")[1].partition("\n## ")[0]
    )
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    plain = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert given.replace('"', "'").split(", ") == plain


def test_surrogates_and_links() -> None:
    named = re.search(r"`CARSO.surrogates` .*: (`.*`) \|", TEXT)
    assert named
    body = inspect.getsource(vars(CARSO)["surrogates"].fget)
    assert set(re.findall(r"`([\w-]+)`", named[1])) == set(re.findall(r'"([\w-]+)":', body))
    for link in re.findall(r"\]\((?!https)([^)]+)\)", TEXT):
        assert (PAGE.parent / link).is_file(), link


def test_commands_of_the_page_have_such_flags() -> None:
    commands = [line.split("#")[0].split() for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 3
    for words in commands:
        source = ROOT / (words[2].replace(".", "/") + ".py")
        assert words[:2] == ["python", "-m"]
        assert source.is_file()
        assert all(f'"{word}"' in source.read_text() for word in words if word.startswith("--")), (
            words
        )
