"""Diffusion purification: noise the image, denoise it, classify (Nie et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from baselines.transform import (
    Answer,
    Transform,
    compose_surrogates,
    inner_surrogates,
    with_identity_gradient,
)
from baselines.unet import Schedule, load
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence

Clip = Callable[[Tensor, float, float], Tensor]

COARSE_STEPS = 5  # reverse steps of the surrogate process
PIXELS_PER_BATCH = {"cpu": 2**16}  # pixel values that go through the UNet at once
PIXELS_PER_BATCH_ELSEWHERE = 2**18


@dataclass(frozen=True, slots=True)
class Step:
    """One ancestral step from x at timestep `t` to an earlier x.

    The mean is `image` x_0 + `here` x, the standard deviation `std`; `kept` is as in Schedule.
    """

    t: int
    kept: float
    image: float
    here: float
    std: float


def plan_steps(schedule: Schedule, top: int, steps: int) -> list[Step]:
    """`steps` ancestral steps, evenly spaced, from `top` steps of noising down to the image.

    Ho, Jain and Abbeel (2020), arXiv 2006.11239, eq. 7.
    """
    times = [round(top * (1 - done / steps)) for done in range(steps + 1)]
    planned = []
    for high, low in pairwise(times):
        kept = schedule.kept[high]
        after = schedule.kept[low]
        beta = 1 - kept / after
        variance = beta if schedule.wide else beta * (1 - after) / (1 - kept)
        planned.append(
            Step(
                t=high - 1,
                kept=kept,
                image=math.sqrt(after) * beta / (1 - kept),
                here=math.sqrt(kept / after) * (1 - after) / (1 - kept),
                std=math.sqrt(variance) if low else 0.0,
            )
        )
    return planned


class DiffPure(nn.Module):
    """`inner`, a classifier or a defence, on images that were noised and denoised.

    Images (B,C,H,W) in [0,1] to the mean logits (B,K) over `samples`. Images are noised to a share
    `t` of the schedule, rounded to steps of it, at least one. `steps` of these are taken back,
    evenly spaced (0: all). Every image, call and sample has its own noise. Images smaller than
    those of the model are continued by their edge for it. BadInput for a knob out of its range,
    and for images that are larger or have other channels.

    The gradient of `forward` is the true one, through all steps. Only the image and the noise of
    each step are kept for it; the rest is recomputed on the way back. Surrogates: `coarse` is the
    same purification in 5 reverse steps at most, on both ways. Its clipping is not seen on the way
    back (the surrogate process of Lee and Kim 2023). `identity` purifies, and takes that for
    the identity on the way back (BPDA). The surrogates of `inner` are there behind each, as
    `identity+lse`.
    """

    def __init__(
        self,
        inner: nn.Module,
        unet: nn.Module,
        schedule: Schedule,
        *,
        t: float,
        steps: int,
        samples: int,
    ) -> None:
        super().__init__()
        if not 0 < t <= 1:
            raise BadInput(f"defence 'diffpure': t={t} is not above 0 and at most 1")
        top = max(round(t * (len(schedule.kept) - 1)), 1)
        if not 0 <= steps <= top:
            raise BadInput(
                f"defence 'diffpure': steps={steps} is not between 0 (all) and {top}, "
                f"the steps of t={t}"
            )
        if samples < 1:
            raise BadInput(f"defence 'diffpure': samples={samples} is too small; the least is 1")
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.unet = unet
        self.schedule = schedule
        self.kept = schedule.kept[top]
        self.steps = plan_steps(schedule, top, steps or top)
        self.coarse_steps = plan_steps(schedule, top, min(COARSE_STEPS, len(self.steps)))
        self.samples = samples
        self.surrogates: dict[str, Answer] = compose_surrogates(
            {"identity": self.identity, "coarse": self.coarse},
            {"": inner, **inner_surrogates(inner)},
            self.mean_logits,
        )

    def purify(self, x: Tensor) -> Tensor:
        """One purification of each image."""
        return self.denoise(x, self.steps)

    def classify(self, x_hat: Tensor) -> Tensor:
        """Logits (B,K) of purified images."""
        logits: Tensor = self.inner(x_hat)
        return logits

    def per_draw(self, x: Tensor) -> Tensor:
        """The logits (B,samples,K) of one draw, before their mean."""
        return self.sample_logits(self.purify, self.inner, x, self.samples)

    def forward(self, x: Tensor) -> Tensor:
        return self.per_draw(x).mean(1)

    def draws(self, x: Tensor, k: int) -> Tensor:
        """`k` independent predictions (B,k,K).

        All images, draws and samples go through in flat batches of bounded size.
        """
        logits = self.sample_logits(self.purify, self.inner, x, k * self.samples)
        answers: Tensor = logits.unflatten(1, (k, self.samples)).mean(2)
        return answers

    def identity(self, x: Tensor) -> Tensor:
        return with_identity_gradient(self.purify, x)

    def coarse(self, x: Tensor) -> Tensor:
        """The images purified in fewer steps, with a gradient as if nothing had been clipped."""
        return self.denoise(x, self.coarse_steps, clip=clip_with_identity_gradient)

    def mean_logits(self, purify: Transform, answer: Answer, x: Tensor) -> Tensor:
        return self.sample_logits(purify, answer, x, self.samples).mean(1)

    def sample_logits(self, purify: Transform, answer: Answer, x: Tensor, n: int) -> Tensor:
        """Logits (B,n,K) of n purifications of each image.

        The classifier's activations too are recomputed, so that none are kept of any batch.
        """
        flat = x[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)  # (B*n,C,H,W)
        limit = PIXELS_PER_BATCH.get(x.device.type, PIXELS_PER_BATCH_ELSEWHERE)
        count = max(math.ceil(flat.numel() / limit), 1)
        if count > 1 and x.requires_grad and torch.is_grad_enabled():
            answer = partial(recompute, answer, use_reentrant=False)
        batches = [answer(purify(batch)) for batch in flat.tensor_split(count)]
        logits: Tensor = torch.cat(batches).unflatten(0, (len(x), n))
        return logits

    def denoise(self, x: Tensor, steps: list[Step], clip: Clip = torch.clamp) -> Tensor:
        """Images (B,C,H,W) in [0,1] after noising and the reverse `steps`.

        All noise is drawn first, so that what is recomputed sees the same.
        """
        height, width = x.shape[2:]
        framed = self.frame(2 * x - 1)
        noise = torch.randn(len(steps), *framed.shape, device=x.device, dtype=x.dtype).unbind()
        here = math.sqrt(self.kept) * framed + math.sqrt(1 - self.kept) * noise[0]
        lean = here.requires_grad and torch.is_grad_enabled()
        for step, fresh in zip(steps, (*noise[1:], None), strict=True):  # the last one adds none
            if lean:
                here = recompute(self.step_back, step, here, fresh, clip, use_reentrant=False)
            else:
                here = self.step_back(step, here, fresh, clip)
        top = (here.shape[2] - height) // 2
        left = (here.shape[3] - width) // 2
        return clip((here[:, :, top : top + height, left : left + width] + 1) / 2, 0, 1)

    def step_back(self, step: Step, here: Tensor, noise: Tensor | None, clip: Clip) -> Tensor:
        """One ancestral step from x = `here` (B,C,H,W), with the noise."""
        times = torch.full((len(here),), step.t, device=here.device)
        prediction: Tensor = self.unet(here, times, return_dict=False)[0]
        whole = math.sqrt(step.kept)
        rest = math.sqrt(1 - step.kept)
        match self.schedule.predicts:
            case "epsilon":
                image = (here - rest * prediction) / whole
            case "v_prediction":
                image = whole * here - rest * prediction
            case _:
                image = prediction
        if self.schedule.clip:
            image = clip(image, -self.schedule.clip, self.schedule.clip)
        mean = step.image * image + step.here * here
        return mean if noise is None else mean + step.std * noise

    def frame(self, x: Tensor) -> Tensor:
        """The images in the middle of the size that the UNet takes, continued by their edge."""
        # An attribute of diffusers, which nn.Module does not know.
        config: dict[str, int | list[int]] = self.unet.config  # type: ignore[assignment]
        size = config["sample_size"]
        channels = config["in_channels"]
        model_height, model_width = (size, size) if isinstance(size, int) else size
        _, x_channels, height, width = x.shape
        if x_channels != channels or height > model_height or width > model_width:
            raise BadInput(
                "defence 'diffpure': its model takes images of "
                f"{channels}x{model_height}x{model_width} at most, "
                f"not {x_channels}x{height}x{width}"
            )
        if (height, width) == (model_height, model_width):
            return x
        top = (model_height - height) // 2
        left = (model_width - width) // 2
        below = model_height - height - top
        right = model_width - width - left
        return F.pad(x, (left, right, top, below), mode="replicate")


def clip_with_identity_gradient(x: Tensor, low: float, high: float) -> Tensor:
    """`x` clipped, with the gradient of `x`."""
    return x + (x.clamp(low, high) - x).detach()


@defence("diffpure", stochastic=True, opt_in=True)
def diffpure(
    *,
    classifier: str = "@standard",
    inner: str = "",
    checkpoint: str = "@diffusion",
    t: float = 0.1,
    steps: int = 0,
    samples: int = 1,
) -> nn.Module:
    """Noise the image to a share `t` of a diffusion model's schedule, denoise it, classify.

    The answer is the mean of the logits of `samples` such. `checkpoint` is own:NAME, file:PATH of
    such a file, or file:DIR/diffusion_pytorch_model.safetensors of an unconditional model that the
    diffusers library saved with its scheduler. `steps` of the reverse steps are taken, evenly
    spaced; 0: all. The paper too takes t=0.1 for CIFAR-10. Attack it with PGD and EOT on its own
    gradient, which is exact, on `coarse`, which is cheaper, and by BPDA (`identity`). With
    `coarse`, Lee and Kim (2023), arXiv 2303.09766, found that it withstands less than was claimed.
    Nie et al. (2022), arXiv 2205.07460.
    """
    model = build_inner(classifier, inner)
    unet, schedule = load(checkpoint)
    return DiffPure(model, unet, schedule, t=t, steps=steps, samples=samples)
