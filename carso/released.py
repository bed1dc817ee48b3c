"""What the paper's authors released: for which classifiers, in which files, and how they come here.

arXiv 2306.06081.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bench.errors import BadInput, did_you_mean
from bench.files import DownloadFailed, download, model_folder
from carso.purifier import Layout, Purifier
from carso.recipe import read_recipe

BASE = "https://bucket.ballarin.cc/aimldl/carso2024cnn/"
PARTS = ("repr_compressors", "repr_fcn_compressor", "decoder")
TRAINING_PARTS = ("input_compressor", "joint_fcn_compressor", "neck")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A classifier of the paper, and the purifier around it.

    All classifiers are WRN-28-10. Files are named from `BASE` on.
    """

    recipe: str  # of carso/recipes: layers, sizes, scaling of the image
    classes: int
    classifier: str
    purifier: str = ""  # the common beginning of its three files; empty: none was released
    robustbench: str = ""  # what that library calls the same classifier


SCENARIOS = {
    "cifar10": Scenario(
        "cifar10",
        10,
        "cifar_10_cuiwrn2810/models/cifar10_a3_b10_t4_20m_w.safetensors",
        "cifar_10_cuiwrn2810/models/wrn_28_10_cifar_10_cui_2023",
        "Cui2023Decoupled_WRN-28-10",
    ),
    "cifar100": Scenario(
        "cifar100",
        100,
        "cifar_100_cuiwrn2810/models/cifar100_a5_b12_t4_50m_w.safetensors",
        "cifar_100_cuiwrn2810/models/wrn_28_10_cifar_100_cui_2023",
        "cifar100/Linf/Cui2023Decoupled_WRN-28-10",
    ),
    "tinyimagenet200": Scenario(
        "tinyimagenet200",
        200,
        "tinyimagenet_wangwrn2810/models/tiny_linf_wrn28_10_w.safetensors",
        "tinyimagenet_wangwrn2810/models/wrn_28_10_tinyimagenet_200_wang_2023",
    ),
    "cifar10-own": Scenario(
        "cifar10",
        10,
        "cifar_10_ownwrn2810/WRN_28_10_cifar10_09428.safetensors",
        "cifar_10_ownwrn2810/wrn_28_10_cifar_10_own_2025",
    ),
    "cifar100-own": Scenario(
        "cifar100",
        100,
        "cifar_100_ownwrn2810/WRN_28_10_cifar100_07476.safetensors",
        "cifar_100_ownwrn2810/wrn_28_10_cifar_100_own_2025",
    ),
    "cifar10-gowal": Scenario(
        "cifar10", 10, "cifar_10_gowalwrn2810/cifar10_linf_wrn28-10_with.safetensors"
    ),
    "cifar10-rebuffi": Scenario(
        "cifar10", 10, "cifar_10_rebuffiwrn2810/cifar10_linf_wrn28-10_cutmix_ddpm_v2.safetensors"
    ),
    "cifar100-rebuffi": Scenario(
        "cifar100", 100, "cifar_100_rebuffiwrn2810/cifar100_linf_wrn28-10_cutmix_ddpm.safetensors"
    ),
}


def find_scenario(name: str, options: Iterable[str] = SCENARIOS) -> Scenario:
    """The scenario of that name. BadInput names the nearest of `options` for another name."""
    options = list(options)
    if name not in options:
        raise BadInput(f"the authors released no '{name}'{did_you_mean(name, options)}")
    return SCENARIOS[name]


def with_purifier() -> list[str]:
    """The names of the scenarios that have a purifier."""
    return [name for name, scenario in SCENARIOS.items() if scenario.purifier]


def layers(name: str) -> tuple[str, ...]:
    """The classifier's layers that the purifier reads."""
    return read_recipe(find_scenario(name).recipe).layers


def layout(name: str) -> Layout:
    """All sizes of the released purifier.

    It has no encoder: only training needs one, and it was not released.
    """
    recipe = read_recipe(find_scenario(name).recipe)
    side = 64 if recipe.last_kernel == 3 else 32
    groups = [int(layer.split(".")[1]) for layer in recipe.layers]
    taps = tuple((160 << group, side >> group, side >> group) for group in groups)
    return replace(recipe.layout((3, side, side), taps), encoder=())


def purifier_parts(purifier: Purifier) -> dict[str, nn.Module]:
    """A purifier's parts by the authors' names for them, each with their key names."""
    parts: dict[str, nn.Module | None] = {
        "repr_compressors": purifier.compressors,
        "repr_fcn_compressor": purifier.bottleneck,
        "decoder": purifier.decoder,
    }
    if purifier.layout.encoder:
        parts["input_compressor"] = purifier.encoder
        parts["joint_fcn_compressor"] = purifier.joint
        parts["neck"] = nn.ModuleDict({"x_to_mu": purifier.mu, "x_to_log_var": purifier.logvar})
    return {name: part for name, part in parts.items() if part is not None}


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def folder() -> Path:
    """Where the files lie: in the folder `carso2024cnn` of the folder of models."""
    return model_folder() / "carso2024cnn"


def purifier_files(name: str) -> dict[str, str]:
    """The purifier's files, from `BASE` or `folder` on, by part."""
    stem = find_scenario(name, with_purifier()).purifier
    return {part: f"{stem}_{part}.safetensors" for part in PARTS}


def fetch_purifier(name: str) -> None:
    """Have the purifier's three files here: fetched where missing, keys and shapes checked.

    If a file cannot be fetched, BadInput says where each file belongs and where it is from. It also
    says what is wrong with a file that is here.
    """
    files = purifier_files(name)
    with torch.device("meta"):
        parts = purifier_parts(Purifier(layout(name), layers(name)))
    shapes = {files[part]: shapes_of(parts[part].state_dict()) for part in PARTS}
    fetch_files(f"purifier 'released:{name}'", shapes)


def fetch_files(what: str, shapes: Mapping[str, Shapes]) -> None:
    """Have files here that hold tensors of these shapes. BadInput as of `fetch_purifier`.

    `what` they are names them in errors.
    """
    for file, expected in shapes.items():
        path = folder() / file
        if path.is_file():
            check_file(path, expected)
            continue
        try:
            download(BASE + file, path, check=partial(check_file, expected=expected))
        except DownloadFailed as error:
            why = f" (the download of {path.name} failed: {error.reason})"
            raise missing(what, shapes, folder(), why) from None


def missing(what: str, files: Iterable[str], top: Path, why: str = "") -> BadInput:
    """The error that says which file to put where."""
    places = [f"{BASE}{file} at {top / file}" for file in files if not (top / file).is_file()]
    return BadInput(f"the files of {what} are not there: put {', '.join(places)}{why}")


def check_file(path: Path, expected: Shapes) -> None:
    """BadInput unless the file is a safetensors file of exactly these tensors.

    Only its header is read.
    """
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"'{path}' is not a safetensors file, or is damaged: {error}") from None
    compare_shapes(f"'{path}'", shapes, expected)


def compare_shapes(what: str, shapes: Shapes, expected: Shapes) -> None:
    """BadInput, one line, that names what is missing, left over, or of another shape."""
    for how, names in (
        ("lacks", expected.keys() - shapes.keys()),
        ("also holds", shapes.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise BadInput(f"{what} {how} {', '.join(sorted(names)[:3])}{more}")
    for key, shape in expected.items():
        if shapes[key] != shape:
            raise BadInput(f"{what} holds {key} of the shape {shapes[key]}, not {shape}")


def check_values(what: str, tensors: Mapping[str, Tensor]) -> None:
    """BadInput, one line, that names a tensor with NaN or infinite values.

    So does a variance with negative values.
    """
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise BadInput(f"{what} is damaged: {key} is not finite")
        if key.endswith("running_var") and bool((value < 0).any()):
            raise BadInput(f"{what} is damaged: {key} has negative values")
