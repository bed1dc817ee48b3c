"""Diffusion purification: step by step what diffusers does, with an exact gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

import baselines.diffpure
from baselines.diffpure import DiffPure, clip_with_identity_gradient, plan_steps
from baselines.unet import Schedule, make_schedule
from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.randomness import random_stream
from bench.questions.registry import build_classifier, defences
from bench.questions.spec import Spec
from carso.adversary import pgd

CPU = torch.device("cpu")
N = 12


def unet(channels: int = 1, size: int = 8, seed: int = 0) -> Any:
    with random_stream(CPU, seed):
        net = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
        )
    return net.eval().requires_grad_(False)


def config(**changes: Any) -> dict[str, Any]:
    return {"num_train_timesteps": N, "beta_start": 0.02, "beta_end": 0.3, **changes}


def build_diffpure(
    t: float = 0.5,
    steps: int = 0,
    samples: int = 1,
    *,
    net: Any = None,
    inner: nn.Module | None = None,
    **changes: Any,
) -> DiffPure:
    inner = inner or build_classifier("own:digits-standard")
    return DiffPure(
        inner,
        net or unet(),
        make_schedule(config(**changes), "toy"),
        t=t,
        steps=steps,
        samples=samples,
    )


@pytest.fixture(scope="module")
def x() -> Tensor:
    return load(Spec.of("digits", {"n": 6})).x


def queue(monkeypatch: pytest.MonkeyPatch, where: str, noise: list[Tensor]) -> None:
    """Let diffusers draw this noise."""
    left: Iterator[Tensor] = iter(noise)
    monkeypatch.setattr(f"diffusers.{where}.randn_tensor", lambda *_, **__: next(left))


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "v_prediction", "clip_sample_range": 0.7},
        {"prediction_type": "sample", "variance_type": "fixed_large"},
        {"variance_type": "fixed_small_log", "beta_schedule": "scaled_linear"},
    ],
)
def test_every_step_is_that_of_the_scheduler_of_diffusers(
    x: Tensor, changes: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    defence = build_diffpure(steps=steps, **changes)
    seen: list[Tensor] = []
    true = defence.step_back
    monkeypatch.setattr(defence, "step_back", lambda *given: seen.append(true(*given)) or seen[-1])
    with random_stream(CPU, 0):
        purified = defence.purify(x)
    with random_stream(CPU, 0):
        noise = list(torch.randn(len(defence.steps), *x.shape))
    scheduler = DDPMScheduler(**config(**changes))
    times = [step.t for step in defence.steps]
    assert len(times) == (steps or N // 2)
    assert times[0] == N // 2 - 1
    scheduler.set_timesteps(timesteps=times)
    # The scheduler adds noise to its answer where the last timestep is not 0. An ancestral step
    # down to the image does not.
    queue(monkeypatch, "schedulers.scheduling_ddpm", [*noise[1:], torch.zeros_like(x)])
    here = scheduler.add_noise(2 * x - 1, noise[0], torch.tensor(times[:1] * len(x)))
    for t, ours in zip(times, seen, strict=True):
        here = scheduler.step(defence.unet(here, t).sample, t, here).prev_sample
        assert torch.allclose(ours, here, atol=2e-5)
    assert torch.allclose(purified, ((here + 1) / 2).clamp(0, 1), atol=2e-5)


def test_from_pure_noise_it_draws_what_the_pipeline_of_diffusers_draws(
    x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    defence = build_diffpure(t=1.0)
    with random_stream(CPU, 1):
        ours = defence.purify(x)
    with random_stream(CPU, 1):
        noise = list(torch.randn(N, *x.shape))
    start = defence.kept**0.5 * (2 * x - 1) + (1 - defence.kept) ** 0.5 * noise[0]
    queue(monkeypatch, "pipelines.ddpm.pipeline_ddpm", [start])
    queue(monkeypatch, "schedulers.scheduling_ddpm", noise[1:])
    pipeline = DDPMPipeline(unet=defence.unet, scheduler=DDPMScheduler(**config()))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=len(x), num_inference_steps=N, output_type="np").images
    assert torch.allclose(ours, torch.from_numpy(images).permute(0, 3, 1, 2), atol=2e-5)


def test_at_the_end_of_a_long_schedule_nothing_of_the_image_is_left(x: Tensor) -> None:
    defence = build_diffpure(t=1.0, beta_end=0.999, num_train_timesteps=40)
    with random_stream(CPU, 0):
        purified = defence.purify(x[:1])
    with random_stream(CPU, 0):
        other = defence.purify(x[1:2])
    assert torch.allclose(purified, other, atol=1e-3)
    few = build_diffpure(t=0.01)
    assert [step.t for step in few.steps] == [0]
    assert few.kept == pytest.approx(0.98)


def test_the_gradient_is_that_of_finite_differences(x: Tensor) -> None:
    """In float64, over the two steps of t=1/6, before a classifier without kinks."""
    with random_stream(CPU, 0):
        inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    defence = build_diffpure(t=2 / N, net=unet().double(), inner=inner, clip_sample_range=3.0)
    assert len(defence.steps) == 2
    point = (0.2 + 0.6 * x[:2].double()).requires_grad_()

    def loss(images: Tensor) -> Tensor:
        with random_stream(CPU, 0):
            logits: Tensor = defence(images)
        return logits[:, 3].sum()

    (slope,) = torch.autograd.grad(loss(point), point)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        way = torch.randn(point.shape, generator=generator, dtype=torch.float64)
        step = 1e-6 * way
        with torch.no_grad():
            measured = (loss(point + step) - loss(point - step)) / 2e-6
        assert measured.item() == pytest.approx((slope * way).sum().item(), rel=1e-6, abs=1e-8)


def test_samples_are_averaged(x: Tensor) -> None:
    defence = build_diffpure(samples=5)
    with random_stream(CPU, 0), torch.no_grad():
        parts = defence.per_draw(x)
    assert parts.shape == (6, 5, 10)
    assert parts.std(1).min() > 0
    with random_stream(CPU, 0), torch.no_grad():
        assert torch.allclose(defence(x), parts.mean(1))


def test_identity_purifies_and_hands_back_the_gradient_behind(x: Tensor) -> None:
    defence, point = build_diffpure(), x.clone().requires_grad_()
    with random_stream(CPU, 0):
        logits = defence.surrogates["identity"](point)
    (slope,) = torch.autograd.grad(logits.square().sum(), point)
    with random_stream(CPU, 0):
        purified = defence.purify(x).requires_grad_()
    (behind,) = torch.autograd.grad(defence.classify(purified).square().sum(), purified)
    assert torch.allclose(slope, behind, atol=1e-4)


def test_coarse_is_the_same_purification_in_fewer_steps_that_sees_no_clipping(x: Tensor) -> None:
    fine = build_diffpure(t=1.0)
    same = build_diffpure(t=1.0, steps=baselines.diffpure.COARSE_STEPS)
    with random_stream(CPU, 0), torch.no_grad():
        coarse = fine.coarse(x)
    with random_stream(CPU, 0), torch.no_grad():
        assert torch.allclose(coarse, same.purify(x), atol=1e-6)
    assert len(build_diffpure(t=0.25).coarse_steps) == 3  # not more than the defence takes
    point = torch.tensor([-2.0, 0.3, 2.0]).requires_grad_()
    clipped = clip_with_identity_gradient(point, -1, 1)
    assert clipped.tolist() == pytest.approx([-1, 0.3, 1])
    assert torch.autograd.grad(clipped.sum(), point)[0].tolist() == [1, 1, 1]


def test_colour_images_and_smaller_ones_fit_and_others_are_refused() -> None:
    inner = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    for channels, height, width in ((3, 8, 8), (3, 6, 7), (1, 5, 8)):
        defence = build_diffpure(net=unet(channels), inner=inner)
        image = torch.rand(2, channels, height, width)
        framed = defence.frame(image)
        assert framed.shape == (2, channels, 8, 8)
        top, left = (8 - height) // 2, (8 - width) // 2
        assert torch.equal(framed[:, :, top : top + height, left : left + width], image)
        assert torch.equal(framed[:, :, 0, left : left + width], image[:, :, 0])
        # Without noise and with a network that keeps the image, what comes out is what went in.
        still = DiffPure(
            inner,
            Silent(channels),
            Schedule((1.0, 1 - 1e-9), "epsilon", False, 1.0),
            t=1.0,
            steps=0,
            samples=1,
        )
        assert torch.allclose(still.purify(image), image, atol=1e-3)
    for shape in ((1, 8, 8), (3, 9, 8), (3, 8, 9)):
        with pytest.raises(
            BadInput,
            match="its model takes images of 3x8x8 at most, not " + "x".join(map(str, shape)),
        ):
            build_diffpure(net=unet(3), inner=inner).purify(torch.rand(1, *shape))


class Silent(nn.Module):
    """Predicts that there is no noise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.config = {"sample_size": [8, 8], "in_channels": channels}

    def forward(self, x: Tensor, t: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (torch.zeros_like(x),)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"t": 0.0}, "t=0.0 is not above 0 and at most 1"),
        ({"t": 1.5}, "t=1.5 is not above 0 and at most 1"),
        ({"t": float("nan")}, "t=nan is not above 0"),
        ({"t": 0.5, "steps": 7}, "steps=7 is not between 0 (all) and 6, the steps of t=0.5"),
        ({"steps": -1}, "steps=-1 is not between 0"),
        ({"samples": 0}, "samples=0 is too small; the least is 1"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        build_diffpure(**knobs)
    assert f"defence 'diffpure': {message}" in str(error.value)


def test_surrogates_of_what_is_inside_are_reached() -> None:
    defence = defences.get("diffpure").make(
        inner="jpeg[classifier=own:digits-standard]",
        classifier="",
        checkpoint="own:digits-diffusion",
    )
    ways = ("", "+identity", "+soft")
    names = {f"{way}{name}" for way in ("identity", "coarse") for name in ways}
    assert set(defence.surrogates) == names
    images = load(Spec.of("digits", {"n": 3})).x
    assert torch.equal(defence.base(images), build_classifier("own:digits-standard")(images))


def test_purification_keeps_digits_and_undoes_part_of_an_attack() -> None:
    data = load(Spec.of("digits", {"n": 200}))
    classifier = build_classifier("own:digits-standard")
    defence = defences.get("diffpure").make(
        classifier="own:digits-standard", checkpoint="own:digits-diffusion"
    )
    with random_stream(CPU, 0):
        x_adv = pgd(
            classifier, data.x, data.y, data.x.new_full((200, 1, 1, 1), 0.2), steps=20, step=0.025
        )
        with torch.no_grad():
            clean, bare, undone = (
                (way.argmax(1) == data.y).float().mean()
                for way in (defence(data.x), classifier(x_adv), defence(x_adv))
            )
    assert clean >= 0.9
    assert bare <= 0.2
    assert undone >= bare + 0.2


def test_a_descent_ends_at_the_image() -> None:
    steps = plan_steps(make_schedule(config(), "toy"), 10, 4)
    assert [step.t for step in steps] == [9, 7, 4, 1]
    assert (steps[-1].image, steps[-1].here, steps[-1].std) == (
        pytest.approx(1),
        pytest.approx(0),
        0,
    )
