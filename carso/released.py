"""What the paper's authors released: for which classifier, in which files of which keys and shapes, and how they come here. arXiv 2306.06081."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bench.files import DownloadFailed, download, model_folder
from carso import recipe
from carso.purifier import Layout, Purifier

BASE = "https://bucket.ballarin.cc/aimldl/carso2024cnn/"
PARTS = ("repr_compressors", "repr_fcn_compressor", "decoder")
TRAINING = ("input_compressor", "joint_fcn_compressor", "neck")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A classifier of the paper, and the purifier around it. All classifiers are WRN-28-10; files are named from `BASE` on."""

    recipe: str  # of carso/recipes: layers, sizes, scaling of the image
    classes: int
    classifier: str
    purifier: str = (
        ""  # what the names of its three files have in common; empty where none was released
    )
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


def scenario(name: str, options: Iterable[str] = SCENARIOS) -> Scenario:
    """The scenario of that name; ValueError names the nearest one of `options` for a name that is none of them."""
    options = list(options)
    if name not in options:
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(options)}"
        raise ValueError(f"the authors released no '{name}'; {hint}")
    return SCENARIOS[name]


def with_purifier() -> list[str]:
    return [name for name, one in SCENARIOS.items() if one.purifier]


def layers(name: str) -> tuple[str, ...]:
    """The classifier's layers that the purifier reads."""
    return recipe.read(scenario(name).recipe).layers


def layout(name: str) -> Layout:
    """Of the released purifier: all sizes, without an encoder, which only training needs, and which was not released."""
    told = recipe.read(scenario(name).recipe)
    side = 64 if told.last_kernel == 3 else 32
    groups = [int(layer.split(".")[1]) for layer in told.layers]
    return replace(
        told.layout((3, side, side), tuple((160 << g, side >> g, side >> g) for g in groups)),
        encoder=(),
    )


def modules(purifier: Purifier) -> dict[str, nn.Module]:
    """A purifier's parts by the authors' names for them, each with their key names."""
    parts: dict[str, nn.Module | None] = {
        "repr_compressors": purifier.compressors,
        "repr_fcn_compressor": purifier.bottleneck,
    }
    parts["decoder"] = purifier.decoder
    if purifier.layout.encoder:
        parts |= {"input_compressor": purifier.encoder, "joint_fcn_compressor": purifier.joint}
        parts["neck"] = nn.ModuleDict({"x_to_mu": purifier.mu, "x_to_log_var": purifier.logvar})
    return {name: part for name, part in parts.items() if part is not None}


def shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def folder() -> Path:
    """Where the files lie: in the folder that the environment variable BENCH_MODELS names, else in `models`."""
    return model_folder() / "carso2024cnn"


def files(name: str) -> dict[str, str]:
    """The purifier's files, from `BASE` or `folder` on, by part."""
    stem = scenario(name, with_purifier()).purifier
    return {part: f"{stem}_{part}.safetensors" for part in PARTS}


def ensure(name: str) -> None:
    """Have the purifier's three files here: fetched where they are missing, their keys and shapes checked.

    ValueError, one line: where each file belongs and where it is from, if it cannot be fetched; what is wrong with one that is here.
    """
    found = files(name)
    with torch.device("meta"):
        parts = modules(Purifier(layout(name), layers(name)))
    obtain(
        f"purifier 'released:{name}'",
        {found[part]: shapes(parts[part].state_dict()) for part in PARTS},
    )


def obtain(what: str, wanted: Mapping[str, Shapes]) -> None:
    """Have files here that hold tensors of these shapes; `what` they are names them in errors. ValueError as of `ensure`."""
    for file, want in wanted.items():
        path = folder() / file
        if path.is_file():
            check(path, want)
            continue
        try:
            download(BASE + file, path, check=partial(check, want=want))
        except DownloadFailed as error:
            raise missing(
                what,
                wanted,
                folder(),
                f" (the download of {path.name} failed: {error.reason})",
            ) from None


def missing(what: str, wanted: Iterable[str], top: Path, why: str = "") -> ValueError:
    places = [f"{BASE}{file} at {top / file}" for file in wanted if not (top / file).is_file()]
    return ValueError(f"the files of {what} are not there: put {', '.join(places)}{why}")


def check(path: Path, want: Shapes) -> None:
    """ValueError unless the file is a safetensors file of exactly these tensors; reads nothing but its header."""
    try:
        with safe_open(path, "pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{path}' is not a safetensors file, or is damaged: {error}") from None
    compare(f"'{path}'", found, want)


def compare(what: str, found: Shapes, want: Shapes) -> None:
    """ValueError, one line, that names what is missing, left over, or of another shape."""
    for how, names in (
        ("lacks", want.keys() - found.keys()),
        ("also holds", found.keys() - want.keys()),
    ):
        if names:
            raise ValueError(
                f"{what} {how} {', '.join(sorted(names)[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            )
    for key, shape in want.items():
        if found[key] != shape:
            raise ValueError(f"{what} holds {key} of the shape {found[key]}, not {shape}")


def sound(what: str, tensors: Mapping[str, Tensor]) -> None:
    """ValueError, one line, that names a tensor with NaN, infinite, or, of variances, negative values."""
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{what} is damaged: {key} is not finite")
        if key.endswith("running_var") and bool((value < 0).any()):
            raise ValueError(f"{what} is damaged: {key} has negative values")
