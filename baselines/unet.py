"""Noise predictors of diffusion models with their schedules (Ho, Jain and Abbeel 2020).

They are ours, or those that the diffusers library saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from baselines.own import build_filled
from bench import weights
from bench.errors import BadInput, did_you_mean
from bench.tensor_files import read_tensors

NAME = "unet2d"  # what the card of one of ours calls the network
KNOWN_SETTINGS = {
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")  # of the same forward process
# What diffusers called the layers of an attention before 0.14.
OLD_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, slots=True)
class Schedule:
    """How images in [-1,1] turn into noise, and what the network says of it.

    `kept[n]` is the share of the image in the variance after n steps of noising, so kept[0] is 1.
    `predicts` is `epsilon`, `sample` or `v_prediction`. `wide` takes the larger of the two
    variances of Ho et al. Estimates of the image are clipped at `clip`, if it is not 0.
    """

    kept: tuple[float, ...]
    predicts: str
    wide: bool
    clip: float


def load(text: str) -> tuple[nn.Module, Schedule]:
    """The network and the schedule of `own:NAME` or `file:PATH`.

    The network is in eval mode on the CPU, its parameters frozen. The file has a card beside it, or
    is the `diffusion_pytorch_model.safetensors` of a model or a pipeline that diffusers saved. Of
    those, that file is read, `config.json` beside it, and `scheduler_config.json` beside it or in
    the folder `scheduler` next to its own; never a pickle.
    """
    path = weights.locate(text)
    if path.with_suffix(".json").is_file():
        tensors, card = weights.load(text)
        config, noising = read_card(card, text)
    else:
        weights.pin(text)
        config, noising = read_settings(path)
        tensors = {modernise(name): value for name, value in read_tensors(path).items()}
    schedule = make_schedule(noising, text)
    net = build_filled(lambda: make_unet(config, text), tensors, text)
    return net.eval().requires_grad_(False), schedule


def read_card(card: Mapping[str, Any], text: str) -> tuple[Any, Any]:
    """The network's configuration and the scheduler's, of a card of ours."""
    arch = card.get("arch")
    ours = isinstance(arch, Mapping) and arch.get("name") == NAME
    if not ours or not isinstance(card.get("schedule"), Mapping):
        raise BadInput(
            f"weights '{text}' hold no diffusion model: "
            f"their card does not describe a '{NAME}' with a schedule"
        )
    return card["arch"].get("params"), card["schedule"]


def read_settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What diffusers wrote beside the weights: the network's configuration and the scheduler's."""
    folder = path.parent
    config = read_config(path, "config.json", [folder], ["UNet2DModel"])
    folders = [folder, folder.parent / "scheduler"]
    return config, read_config(path, "scheduler_config.json", folders, SCHEDULERS)


def read_config(
    path: Path, name: str, folders: Sequence[Path], classes: Sequence[str]
) -> dict[str, Any]:
    """The configuration `name` in one of the folders, of one of the classes."""
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        tried = " nor ".join(f"'{folder / name}'" for folder in folders)
        raise BadInput(
            f"weights file '{path}' has neither a card '{path.with_suffix('.json').name}' "
            f"nor {tried} of diffusers"
        )
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"'{file}' is not JSON: {error}") from None
    kind = str(config.get("_class_name")) if isinstance(config, dict) else "nothing"
    if kind not in classes:
        raise BadInput(f"'{file}' describes a '{kind}'{did_you_mean(kind, classes)}")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def modernise(name: str) -> str:
    """The name of a tensor as diffusers has it now."""
    parts = name.split(".")
    if len(parts) >= 2 and "attentions" in parts[:-2]:
        parts[-2] = OLD_LAYERS.get(parts[-2], parts[-2])
    return ".".join(parts)


def import_diffusers() -> ModuleType:
    """The diffusers library; BadInput with the line that helps where it is not installed."""
    try:
        import diffusers
    except ImportError:
        raise BadInput(
            "diffusion models need diffusers, which is not installed; "
            "install the extra 'diffusion': .venv/bin/uv pip install diffusers"
        ) from None
    return diffusers


def make_unet(config: Any, text: str) -> nn.Module:
    """The untrained UNet2DModel of the configuration; `text` names it in errors."""
    if not isinstance(config, Mapping):
        raise BadInput(f"the configuration of '{text}' is none")
    check_config(config, text)
    model = import_diffusers().UNet2DModel
    try:
        net: nn.Module = model.from_config(dict(config))
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(f"the configuration of '{text}' cannot be built: {reason}") from None
    return net


def check_config(config: Mapping[str, Any], text: str) -> None:
    """BadInput where purification cannot use a network of this configuration."""
    size = config.get("sample_size")
    two_sides = isinstance(size, list) and [type(side) for side in size] == [int, int]
    if not (type(size) is int or two_sides):
        raise BadInput(
            f"the configuration of '{text}' has sample_size={size}; "
            "it must be the side of its images, or two sides"
        )
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise BadInput(
            f"diffusion model '{text}' is conditional on a class; "
            "purification needs one that is not"
        )
    if config.get("in_channels") != config.get("out_channels"):
        raise BadInput(
            f"diffusion model '{text}' maps {config.get('in_channels')} channels to "
            f"{config.get('out_channels')}: they must be the same"
        )


def make_schedule(config: Any, text: str) -> Schedule:
    """The schedule of a diffusers DDPMScheduler's configuration; `text` names it in errors."""
    noising = import_diffusers().DDPMScheduler
    try:
        scheduler = noising.from_config(dict(config))
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(f"the schedule of '{text}' cannot be built: {reason}") from None
    facts = scheduler.config
    for key, known in KNOWN_SETTINGS.items():
        if facts[key] not in known:
            raise BadInput(
                f"the schedule of '{text}' has {key}={facts[key]}; it must be {', '.join(known)}"
            )
    if facts["thresholding"]:
        raise BadInput(
            f"the schedule of '{text}' has dynamic thresholding, which purification does not"
        )
    kept = (1.0, *scheduler.alphas_cumprod.double().tolist())
    if not all(1 >= before > after > 0 for before, after in pairwise(kept)):
        raise BadInput(f"the schedule of '{text}' does not fall from 1 to above 0")
    return Schedule(
        kept,
        predicts=str(facts["prediction_type"]),
        wide=facts["variance_type"] == "fixed_large",
        clip=float(facts["clip_sample_range"]) if facts["clip_sample"] else 0.0,
    )
