"""Diffusion models: what their training learns, and which files of them are read."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from baselines.diffusion import fit, main, noise_loss, schedule_config, unet_config
from baselines.recipes import DIFFUSION_RECIPES, DiffusionRecipe
from baselines.unet import load, make_schedule, make_unet, modernise
from bench.data.sample import Dataset, dataset_of
from bench.errors import BadInput
from bench.judging.randomness import random_stream
from bench.questions.registry import build_defence, defences
from bench.questions.spec import Spec
from tests.baselines.test_diffpure import CPU, config, unet

FILE = "diffusion_pytorch_model.safetensors"
TINY = DiffusionRecipe(
    (8, 8), steps=60, batch=32, lr=1e-2, average=0.9, noising=20, beta_start=0.01, beta_end=0.6
)


def quiet(step: int, loss: float) -> None: ...


def test_training_learns_what_noise_is_and_repeats() -> None:
    """The noise on images that are all the same can be predicted almost exactly.

    An untrained network, or one that answers 0, has a loss of 1.
    """
    x = torch.zeros(64, 1, 8, 8)
    x[..., :4] = 1

    def train() -> tuple[nn.Module, float]:
        torch.manual_seed(0)
        schedule = make_schedule(schedule_config(TINY), "toy")
        net = fit(make_unet(unet_config(TINY, (1, 8, 8)), "toy"), schedule, x, TINY, quiet)
        with torch.no_grad():
            return net, noise_loss(net, schedule, x.repeat(4, 1, 1, 1)).item()

    net, loss = train()
    assert loss < 0.35
    assert not net.training
    again, same = train()
    assert loss == same
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True)
    )


class Knowing(nn.Module):
    """Recovers the noise that was added to a known image, from the timestep that it is told."""

    def __init__(self, image: Tensor, kept: list[float]) -> None:
        super().__init__()
        self.image, self.kept = image, kept

    def forward(self, x: Tensor, t: Tensor, return_dict: bool) -> tuple[Tensor]:
        kept = torch.tensor(self.kept)[t].view(-1, 1, 1, 1)
        return ((x - kept.sqrt() * (2 * self.image - 1)) / (1 - kept).sqrt(),)


def test_the_loss_is_zero_for_who_knows_the_image_and_the_schedule_of_diffusers() -> None:
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = DDPMScheduler(**config()).alphas_cumprod.tolist()
    torch.manual_seed(0)
    assert (
        noise_loss(
            Knowing(image, reference), make_schedule(config(), "toy"), image.expand(200, -1, -1, -1)
        )
        < 1e-8
    )


def save(folder: Path, *, pipeline: bool = True) -> tuple[Path, Any]:
    """A model that diffusers saved, and the model."""
    net, scheduler = unet(seed=3), DDPMScheduler(**config())
    if pipeline:
        DDPMPipeline(unet=net, scheduler=scheduler).save_pretrained(folder)
        return folder / "unet" / FILE, net
    net.save_pretrained(folder)
    scheduler.save_pretrained(folder)
    return folder / FILE, net


def same(net: nn.Module, other: nn.Module) -> bool:
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([3, 7])
    return torch.equal(net(x, t, return_dict=False)[0], other(x, t, return_dict=False)[0])


@pytest.mark.parametrize("pipeline", [True, False])
def test_what_diffusers_saved_is_read_and_pinned_and_purifies(
    tmp_path: Path, pipeline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    file, net = save(tmp_path, pipeline=pipeline)
    loaded, schedule = load(f"file:{file}")
    assert same(loaded, net)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert schedule.kept[1:] == pytest.approx(
        DDPMScheduler(**config()).alphas_cumprod.tolist(), rel=1e-7
    )
    assert (schedule.predicts, schedule.wide, schedule.clip) == ("epsilon", False, 1.0)
    built = build_defence(
        defences.resolve(
            Spec.of(
                "diffpure",
                {"classifier": "own:digits-standard", "checkpoint": f"file:{file}", "steps": 1},
            )
        )
    )
    with random_stream(CPU, 0):
        assert built(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(BadInput, match="not 00000000"):
        load(f"file:{file}@00000000")


def test_layers_under_their_old_names_are_read(tmp_path: Path) -> None:
    file, net = save(tmp_path)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(file).items():
        for now, then in names.items():
            name = name.replace(f".{now}.", f".{then}.")
        tensors[name] = value
    assert any(".query." in name for name in tensors)
    save_file(tensors, file)
    assert same(load(f"file:{file}")[0], net)
    assert modernise("mid_block.query.weight") == "mid_block.query.weight"


class Planted:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.flag),)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    flag = tmp_path / "run"
    file, net = save(tmp_path / "model")
    planted = pickle.dumps(Planted(flag))
    pickled = file.with_suffix(".bin")
    pickled.write_bytes(planted)
    assert same(load(f"file:{file}")[0], net)
    file.write_bytes(planted)
    with pytest.raises(BadInput, match="is not a safetensors file, or is damaged"):
        load(f"file:{file}")
    file.unlink()
    with pytest.raises(BadInput, match="does not exist"):
        load(f"file:{file}")
    with pytest.raises(BadInput, match="is not a safetensors file, or is damaged"):
        load(f"file:{pickled}")
    assert not flag.exists()
    pickle.loads(planted)  # had one been read, this is what would have been seen
    assert flag.exists()


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        (
            "unet/config.json",
            {"_class_name": "UNet2DConditionModel"},
            "describes a 'UNet2DConditionModel'; did you mean 'UNet2DModel'?",
        ),
        ("unet/config.json", {"num_class_embeds": 10}, "is conditional on a class"),
        ("unet/config.json", {"out_channels": 2}, "maps 1 channels to 2"),
        (
            "unet/config.json",
            {"sample_size": None},
            "has sample_size=None; it must be the side of its images, or two sides",
        ),
        ("unet/config.json", {"norm_num_groups": 3}, "cannot be built: "),
        ("unet/config.json", {"block_out_channels": [4, 4]}, "do not fit their card: "),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "ScoreSdeVeScheduler"},
            "describes a 'ScoreSdeVeScheduler'",
        ),
        ("scheduler/scheduler_config.json", {"beta_schedule": "cubic"}, "the schedule of 'file:"),
        ("scheduler/scheduler_config.json", {"beta_end": 5.0}, "does not fall from 1 to above 0"),
        (
            "scheduler/scheduler_config.json",
            {"variance_type": "learned_range"},
            "has variance_type=learned_range; it must be fixed_small, ",
        ),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "flow"},
            "has prediction_type=flow; it must be epsilon, sample, v_prediction",
        ),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "has dynamic thresholding"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, where: str, changes: dict[str, Any], message: str
) -> None:
    file, _ = save(tmp_path)
    path = tmp_path / where
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(BadInput) as error:
        load(f"file:{file}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_damaged_files_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = save(tmp_path)
    for where in (tmp_path / "scheduler/scheduler_config.json", tmp_path / "unet/config.json"):
        where.write_text("no JSON")
        with pytest.raises(BadInput, match="is not JSON"):
            load(f"file:{file}")
        where.unlink()
        with pytest.raises(BadInput, match=f"has neither a card .* nor .*{where.name}"):
            load(f"file:{file}")
    with pytest.raises(
        BadInput, match="hold no diffusion model: their card does not describe a 'unet2d'"
    ):
        load("own:digits-standard")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BadInput, match="install the extra 'diffusion'"):
        make_unet({"sample_size": 8, "in_channels": 1, "out_channels": 1}, "toy")


def small_digits(spec: Spec, **_: Any) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return dataset_of(
        spec.name, torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 10, classes=10
    )


def test_the_command_writes_what_diffpure_reads_and_says_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("baselines.diffusion.load", small_digits)
    monkeypatch.setitem(
        DIFFUSION_RECIPES,
        "digits",
        DiffusionRecipe((8, 8), steps=60, batch=8, noising=10, validation=10),
    )
    assert (
        main(["--dataset", "digits", "--steps", "3", "--device", "cpu", "--out", str(tmp_path)])
        == 0
    )
    card = json.loads((tmp_path / "digits-diffusion.json").read_text())
    assert card["recipe"]["steps"] == 3
    assert (card["validation"]["n"], card["seed"]) == (10, 0)
    assert [row["t"] for row in card["validation"]["accuracy"]][2] == 0.1
    assert all(
        0 <= row[key] <= 1
        for row in card["validation"]["accuracy"]
        for key in ("clean", "attacked")
    )
    net, schedule = load(f"file:{tmp_path / 'digits-diffusion.safetensors'}")
    assert len(schedule.kept) == 11
    assert sum(p.numel() for p in net.parameters()) == card["parameters"]
    first = (tmp_path / "digits-diffusion.safetensors").read_bytes()
    assert (
        main(["--dataset", "digits", "--steps", "3", "--device", "cpu", "--out", str(tmp_path)])
        == 0
    )
    assert (tmp_path / "digits-diffusion.safetensors").read_bytes() == first
    assert "held-out accuracy, n=10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--dataset", "digit"],
            "no recipe for a diffusion model of 'digit'; did you mean 'digits'?",
        ),
        (["--dataset", "digits", "--steps", "-1"], "-1"),
    ],
)
def test_a_wrong_command_ends_in_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
