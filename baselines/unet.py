"""Noise predictors of diffusion models with their schedules: ours, and those that the diffusers library saved (Ho, Jain and Abbeel 2020)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from baselines.own import fill
from bench import weights
from bench.errors import BadInput, did_you_mean

NAME = "unet2d"  # what the card of one of ours calls the network
WANTS = {
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")  # of the same forward process
OLD = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}  # what diffusers called the layers of an attention before 0.14


@dataclass(frozen=True, slots=True)
class Schedule:
    """How images in [-1,1] turn into noise, and what the network says of it.

    `kept[n]` is the share of the image in the variance after n steps of noising, so kept[0] is 1; `predicts` is `epsilon`, `sample` or
    `v_prediction`; `wide` takes the larger of the two variances of Ho et al.; estimates of the image are clipped at `clip`, if it is not 0.
    """

    kept: tuple[float, ...]
    predicts: str
    wide: bool
    clip: float


def load(text: str) -> tuple[nn.Module, Schedule]:
    """The network, in eval mode on the CPU, its parameters frozen, and the schedule of `own:NAME` or `file:PATH`.

    The file has a card beside it, or is the `diffusion_pytorch_model.safetensors` of a model or a pipeline that diffusers saved. Of those, that
    file is read, `config.json` beside it, and `scheduler_config.json` beside it or in the folder `scheduler` next to its own; never a pickle.
    """
    path = weights.locate(text)
    if path.with_suffix(".json").is_file():
        tensors, card = weights.load(text)
        arch = card.get("arch")
        if (
            not isinstance(arch, Mapping)
            or arch.get("name") != NAME
            or not isinstance(card.get("schedule"), Mapping)
        ):
            raise BadInput(
                f"weights '{text}' hold no diffusion model: their card does not describe a '{NAME}' with a schedule"
            )
        net, schedule = make(arch.get("params"), text), schedule_of(card["schedule"], text)
    else:
        weights.pin(text)
        config, noising = settings(path)
        net, schedule = make(config, text), schedule_of(noising, text)
        tensors = {modern(name): value for name, value in read(path).items()}
    fill(net, tensors, text)
    return net.eval().requires_grad_(False), schedule


def read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(
            f"weights file '{path}' is not a safetensors file, or is damaged: {error}"
        ) from None


def settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What diffusers wrote beside the weights: the network's configuration and the scheduler's, each of a class that is known here."""
    found = []
    for name, folders, classes in (
        ("config.json", (path.parent,), ("UNet2DModel",)),
        ("scheduler_config.json", (path.parent, path.parent.parent / "scheduler"), SCHEDULERS),
    ):
        file = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if file is None:
            tried = " nor ".join(f"'{folder / name}'" for folder in folders)
            raise BadInput(
                f"weights file '{path}' has neither a card '{path.with_suffix('.json').name}' nor {tried} of diffusers"
            )
        try:
            config = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise BadInput(f"'{file}' is not JSON: {error}") from None
        kind = str(config.get("_class_name")) if isinstance(config, dict) else "nothing"
        if kind not in classes:
            raise BadInput(f"'{file}' describes a '{kind}'{did_you_mean(kind, classes)}")
        found.append({key: value for key, value in config.items() if not key.startswith("_")})
    return found[0], found[1]


def modern(name: str) -> str:
    """The name of a tensor as diffusers has it now."""
    *above, layer, kind = ["", *name.split(".")]
    return (
        ".".join([*above, OLD.get(layer, layer), kind]).removeprefix(".")
        if "attentions" in above
        else name
    )


def library() -> ModuleType:
    """The diffusers library; BadInput with the line that helps where it is not installed."""
    try:
        import diffusers
    except ImportError:
        told = "diffusion models need diffusers, which is not installed; install the extra 'diffusion': .venv/bin/uv pip install diffusers"
        raise BadInput(told) from None
    return diffusers


def make(config: Any, text: str) -> nn.Module:
    """The untrained UNet2DModel of the configuration; `text` names it in errors."""
    if not isinstance(config, Mapping):
        raise BadInput(f"the configuration of '{text}' is none")
    size = config.get("sample_size")
    if not (
        type(size) is int
        or (isinstance(size, list) and [type(side) for side in size] == [int, int])
    ):
        raise BadInput(
            f"the configuration of '{text}' has sample_size={size}; it must be the side of its images, or two sides"
        )
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise BadInput(
            f"diffusion model '{text}' is conditional on a class; purification needs one that is not"
        )
    if config.get("in_channels") != config.get("out_channels"):
        raise BadInput(
            f"diffusion model '{text}' maps {config.get('in_channels')} channels to {config.get('out_channels')}: they must be the same"
        )
    model = library().UNet2DModel
    try:
        net: nn.Module = model.from_config(dict(config))
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise BadInput(
            f"the configuration of '{text}' cannot be built: {str(error).partition(chr(10))[0]}"
        ) from None
    return net


def schedule_of(config: Any, text: str) -> Schedule:
    """The schedule of a diffusers DDPMScheduler's configuration; `text` names it in errors."""
    noising = library().DDPMScheduler
    try:
        scheduler = noising.from_config(dict(config))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BadInput(
            f"the schedule of '{text}' cannot be built: {str(error).partition(chr(10))[0]}"
        ) from None
    facts = scheduler.config
    for key, known in WANTS.items():
        if facts[key] not in known:
            raise BadInput(
                f"the schedule of '{text}' has {key}={facts[key]}; it must be {', '.join(known)}"
            )
    if facts["thresholding"]:
        raise BadInput(
            f"the schedule of '{text}' has dynamic thresholding, which purification does not"
        )
    kept = (1.0, *scheduler.alphas_cumprod.double().tolist())
    if not all(1 >= one > other > 0 for one, other in pairwise(kept)):
        raise BadInput(f"the schedule of '{text}' does not fall from 1 to above 0")
    clip = float(facts["clip_sample_range"]) if facts["clip_sample"] else 0.0
    return Schedule(
        kept, str(facts["prediction_type"]), facts["variance_type"] == "fixed_large", clip
    )
