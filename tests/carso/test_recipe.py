"""Recipes: complete, typed, and answered in one line where they are wrong."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from carso.recipe import FOLDER, Recipe, read_recipe

NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("kind", ["carso", "vae"])
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_can_be_read(name: str, kind: str) -> None:
    recipe = read_recipe(name, kind)
    assert bool(recipe.layers) == (kind == "carso")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_explains_itself(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text()
    assert text.startswith("# ")
    for field in fields(Recipe):
        assert f"\n{field.name} = " in text
    for line in text.splitlines():
        assert "#" in line or not re.match(r"\w+ = .*[^\[]$", line) or line.startswith("layers"), (
            f"no word about: {line}"
        )


def test_changes_are_typed() -> None:
    recipe = read_recipe(
        "digits",
        changes={
            "layers": "conv1, conv3",
            "epochs": "3",
            "lr": "1e-3",
            "half": "false",
            "encoder": "[4,5]",
            "eps_weak": "1/9",
        },
    )
    assert (recipe.layers, recipe.encoder, recipe.eps_weak) == (("conv1", "conv3"), (4, 5), "1/9")
    assert (recipe.epochs, recipe.lr, recipe.half) == (3, 1e-3, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": "3"}, "no field 'epoch'; did you mean 'epochs'"),
        ({"epochs": "three"}, "epochs='three' is not of the type int"),
        ({"epochs": "0"}, "epochs=0 must be above 0"),
        ({"pgd_steps": "0"}, "pgd_steps=0 must be above 0"),
        ({"eps_unit": "byte"}, "eps_unit='byte' is unknown; there are: pixel, std"),
        ({"half": "maybe"}, "half='maybe' is not of the type bool"),
        ({"eps_strong": "-1/255"}, "eps_strong='-1/255' is negative"),
        ({"eps_strong": "much"}, "eps_strong='much' is not a number"),
        ({"adversarial": "1.5"}, "adversarial=1.5 must be from 0 to 1"),
        ({"decoder": "8,x"}, "decoder='x' is not of the type int"),
    ],
)
def test_bad_changes(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe("digits", changes=changes)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recipe 'digit' is unknown; did you mean 'digits'"):
        read_recipe("digit")
    text = (FOLDER / "digits.toml").read_text()
    for broken, message in (
        (text.replace("blocks = ", "bloks = "), "no field 'bloks'"),
        (text.replace("epochs = ", "# "), "lacks the field 'epochs'"),
        (text.replace("half = true", "half = 1"), "half=1 is not of the type bool"),
        ("= 3", "is not TOML"),
    ):
        path = tmp_path / "mine.toml"
        path.write_text(broken)
        with pytest.raises(ValueError, match=message):
            read_recipe(str(path))
