"""Training recipes: TOML files that state every choice.

So a run is a file and what was set on top of it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from bench.errors import BadInput, did_you_mean
from carso.purifier import Layout

FOLDER = Path(__file__).resolve().parent / "recipes"
LAYOUT_FIELDS = (
    "mean",
    "std",
    "blocks",
    "padding",
    "bottleneck",
    "latent",
    "encoder",
    "decoder",
    "last_kernel",
)
STRENGTHS = ("eps_weak", "eps_strong", "pgd_step", "validation_eps")
POSITIVE = ("epochs", "batch", "lr", "pgd_steps")
LARGEST = {
    "adversarial": 1.0,
    "warmup": 0.5,
    "lag": 0.75,
    "beta": float("inf"),
    "validation": 10**9,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every field of a recipe. None has a default, so that each file says all.

    Strengths (`eps_*`, `pgd_step`) are text, exact, in [0,1] units.
    """

    layers: tuple[str, ...]  # the classifier's layers to tap
    blocks: int  # the sizes from here to last_kernel are those of carso.purifier.Layout
    padding: int
    bottleneck: int
    latent: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    last_kernel: int
    mean: tuple[float, ...]  # of the training images, per channel
    std: tuple[float, ...]
    epochs: int
    batch: int
    lr: float  # at the plateau; the paper: 1e-4 times the batch of one GPU
    lr_start: float  # in the first epoch
    lr_final: float  # after the last
    warmup: float  # share of the epochs of linear warm-up; the plateau is as long
    lag: float  # share of the epochs before the KL term sets in, over a third as many
    beta: float  # weight of the KL term in the end
    # Share of each batch that is attacked, in four equal parts: PGD weak, strong, FGSM weak, strong
    adversarial: float
    eps_weak: str  # linf
    eps_strong: str
    # pixel: as the text says; std: both divided by the mean of `std`, as for the released weights
    eps_unit: str
    pgd_steps: int
    pgd_step: str
    validation: int  # images of the train split that are held out for the final check
    validation_eps: str  # linf strength of the PGD of that check
    half: bool  # store the weights in half precision

    def layout(self, image: tuple[int, int, int], taps: tuple[tuple[int, ...], ...]) -> Layout:
        """The purifier's layout for these images and taps. BadInput where it cannot be built."""
        return Layout(image, taps, **{name: getattr(self, name) for name in LAYOUT_FIELDS})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_recipe(name: str, kind: str = "carso", changes: Mapping[str, str] | None = None) -> Recipe:
    """The recipe `name` of this package, or of the path of a TOML file.

    Its table `[vae]` goes on top for that kind, and `changes`, as text, on top of both. BadInput
    for an unknown name or field, a missing field, and a value of the wrong type.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        names = [recipe.stem for recipe in FOLDER.glob("*.toml")]
        raise BadInput(f"recipe '{name}' is unknown{did_you_mean(name, names)}")
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"recipe '{path}' is not TOML: {error}") from None
    special = values.pop("vae", {})
    if kind == "vae":
        values |= {"layers": [], **special}
    types = {field.name: str(field.type) for field in fields(Recipe)}
    for key, text in (changes or {}).items():
        values[key] = parse_value(key, text, types.get(key, "str"))
    for key in values:
        if key not in types:
            raise BadInput(f"a recipe has no field '{key}'{did_you_mean(key, types)}")
    for key in types:
        if key not in values:
            raise BadInput(f"recipe '{path.name}' lacks the field '{key}'")
    recipe = Recipe(**{key: check_type(key, values[key], types[key]) for key in types})
    check_ranges(recipe)
    return recipe


def parse_value(key: str, text: str, kind: str) -> Any:
    """A value of the command line, as TOML writes it; lists also without brackets and quotes."""
    if kind == "str":
        return text
    if kind.startswith("tuple"):
        items = [item.strip().strip("\"'") for item in text.strip("[] ").split(",")]
        return [parse_value(key, item, item_kind(kind)) for item in items if item]
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text]
        return int(text) if kind == "int" else float(text)
    except (KeyError, ValueError):
        raise BadInput(f"recipe field {key}='{text}' is not of the type {kind}") from None


def check_type(key: str, value: Any, kind: str) -> Any:
    """The value as the type of its field; BadInput where it is of another."""
    if kind.startswith("tuple"):
        if isinstance(value, list):
            return tuple(check_type(key, item, item_kind(kind)) for item in value)
    elif kind == "float" and type(value) in (int, float):
        return float(value)
    elif type(value).__name__ == kind:
        return value
    raise BadInput(
        f"recipe field {key}={value!r} is not of the type {kind.replace('tuple', 'list')}"
    )


def item_kind(kind: str) -> str:
    """`tuple[int, ...]` -> `int`."""
    return kind.removeprefix("tuple[").partition(",")[0]


def check_ranges(recipe: Recipe) -> None:
    """BadInput where a number is out of its range."""
    for key in STRENGTHS:
        parse_strength(key, getattr(recipe, key))
    if recipe.eps_unit not in ("pixel", "std"):
        raise BadInput(
            f"recipe field eps_unit='{recipe.eps_unit}' is unknown; there are: pixel, std"
        )
    for key in POSITIVE:
        value = getattr(recipe, key)
        if value <= 0:
            raise BadInput(f"recipe field {key}={value} must be above 0")
    for key, largest in LARGEST.items():
        value = getattr(recipe, key)
        if not 0 <= value <= largest:
            raise BadInput(f"recipe field {key}={value} must be from 0 to {largest:g}")


def parse_strength(key: str, text: str) -> float:
    """`8/255` or `0.03` as a number; BadInput where it is none, or negative."""
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise BadInput(f"recipe field {key}='{text}' is not a number such as 8/255") from None
    if value < 0:
        raise BadInput(f"recipe field {key}='{text}' is negative")
    return value
