"""Training recipes: TOML files that state every choice, so that a run is a file and what was set on top of it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from carso.purifier import Layout

FOLDER = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every field of a recipe; none has a default, so that each file says all. Strengths (`eps_*`, `pgd_step`) are text, exact, in [0,1] units."""

    layers: tuple[str, ...]  # the classifier's layers to tap
    blocks: int  # the six sizes of carso.purifier.Layout
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
    lag: float  # share of the epochs before the KL term sets in (over a third as many)
    beta: float  # weight of the KL term in the end
    adversarial: float  # share of each batch that is attacked, in four equal parts: PGD weak and strong, FGSM weak and strong
    eps_weak: str  # linf
    eps_strong: str
    eps_unit: str  # pixel: as the text says; std: both divided by the mean of `std`, as the released weights were trained
    pgd_steps: int
    pgd_step: str
    validation: int  # images of the train split that are held out for the final check
    validation_eps: str  # linf strength of the PGD of that check
    half: bool  # store the weights in half precision

    def layout(self, image: tuple[int, int, int], taps: tuple[tuple[int, ...], ...]) -> Layout:
        """The purifier's layout for these images and taps; ValueError where it cannot be built."""
        names = (
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
        return Layout(image, taps, **{name: getattr(self, name) for name in names})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read(name: str, kind: str = "carso", changes: Mapping[str, str] | None = None) -> Recipe:
    """The recipe `name` (of this package, or the path of a TOML file), with its table `[vae]` on top for that kind, and `changes` as text on top.

    ValueError, one line, for an unknown name or field, a missing field, and a value of the wrong type.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ValueError(
            f"recipe '{name}' is unknown{_near(name, sorted(p.stem for p in FOLDER.glob('*.toml')))}"
        )
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe '{path}' is not TOML: {error}") from None
    special = values.pop("vae", {})
    values |= {"layers": [], **special} if kind == "vae" else {}
    types = {f.name: str(f.type) for f in fields(Recipe)}
    for key, text in (changes or {}).items():
        values[key] = _parse(key, text, types.get(key, "str"))
    for key in values:
        if key not in types:
            raise ValueError(f"a recipe has no field '{key}'{_near(key, list(types))}")
    if missing := [key for key in types if key not in values]:
        raise ValueError(f"recipe '{path.name}' lacks the field '{missing[0]}'")
    recipe = Recipe(**{key: _typed(key, values[key], want) for key, want in types.items()})
    _sane(recipe)
    return recipe


def _parse(key: str, text: str, want: str) -> Any:
    """A value of the command line: as TOML writes it, lists also without brackets and quotes."""
    if want == "str":
        return text
    if want.startswith("tuple"):
        items = [item.strip().strip("\"'") for item in text.strip("[] ").split(",") if item.strip()]
        return [_parse(key, item, want[6:].partition(",")[0]) for item in items]
    try:
        return (
            {"true": True, "false": False}[text]
            if want == "bool"
            else int(text)
            if want == "int"
            else float(text)
        )
    except (KeyError, ValueError):
        raise ValueError(f"recipe field {key}='{text}' is not of the type {want}") from None


def _typed(key: str, value: Any, want: str) -> Any:
    if want.startswith("tuple"):
        if isinstance(value, list):
            return tuple(_typed(key, v, want[6:].partition(",")[0]) for v in value)
    elif want == "float" and type(value) in (int, float):
        return float(value)
    elif type(value).__name__ == want:
        return value
    raise ValueError(
        f"recipe field {key}={value!r} is not of the type {want.replace('tuple', 'list')}"
    )


def _sane(recipe: Recipe) -> None:
    for key in ("eps_weak", "eps_strong", "pgd_step", "validation_eps"):
        strength(key, getattr(recipe, key))
    if recipe.eps_unit not in ("pixel", "std"):
        raise ValueError(
            f"recipe field eps_unit='{recipe.eps_unit}' is unknown; there are: pixel, std"
        )
    for key in ("epochs", "batch", "lr", "pgd_steps"):
        if getattr(recipe, key) <= 0:
            raise ValueError(f"recipe field {key}={getattr(recipe, key)} must be above 0")
    for key, most in (
        ("adversarial", 1.0),
        ("warmup", 0.5),
        ("lag", 0.75),
        ("beta", float("inf")),
        ("validation", 10**9),
    ):
        if not 0 <= getattr(recipe, key) <= most:
            raise ValueError(
                f"recipe field {key}={getattr(recipe, key)} must be from 0 to {most:g}"
            )


def strength(key: str, text: str) -> float:
    """`8/255` or `0.03` as a number; ValueError where it is none, or negative."""
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"recipe field {key}='{text}' is not a number such as 8/255") from None
    if value < 0:
        raise ValueError(f"recipe field {key}='{text}' is negative")
    return value


def _near(name: str, options: list[str]) -> str:
    close = difflib.get_close_matches(name, options, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; there are: {', '.join(options)}"
