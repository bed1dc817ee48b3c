"""Diffusion purification: noise the image, let a diffusion model remove the noise, classify (Nie et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from baselines.unet import Schedule, load
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence

Answer = Callable[[Tensor], Tensor]
Clip = Callable[[Tensor, float, float], Tensor]

COARSE = 5  # reverse steps of the surrogate process
FLAT = {"cpu": 2**16}  # pixel values that go through the UNet at once
FLAT_ELSEWHERE = 2**18


@dataclass(frozen=True, slots=True)
class Step:
    """One ancestral step from x at timestep `t` to an earlier x: mean `image` x_0 + `here` x, standard deviation `std`; `kept` as in Schedule."""

    t: int
    kept: float
    image: float
    here: float
    std: float


def descent(schedule: Schedule, top: int, steps: int) -> list[Step]:
    """`steps` ancestral steps, evenly spaced, from `top` steps of noising down to the image. Ho, Jain and Abbeel (2020), arXiv 2006.11239, eq. 7."""
    found = []
    for high, low in pairwise(round(top * (1 - done / steps)) for done in range(steps + 1)):
        kept, after = schedule.kept[high], schedule.kept[low]
        fresh = 1 - kept / after  # beta of the step
        variance = fresh if schedule.wide else fresh * (1 - after) / (1 - kept)
        image, here = (
            math.sqrt(after) * fresh / (1 - kept),
            math.sqrt(kept / after) * (1 - after) / (1 - kept),
        )
        found.append(Step(high - 1, kept, image, here, math.sqrt(variance) if low else 0.0))
    return found


class DiffPure(nn.Module):
    """`inner`, a classifier or a defence, on images that were noised to a share `t` of the schedule and denoised: its mean logits over `samples`.

    Images (B,C,H,W) in [0,1] to logits (B,K). `t` is rounded to steps of the schedule, at least one; `steps` of these are taken back, evenly
    spaced (0: all). Every image, call and sample has its own noise. Images smaller than those of the model are continued by their edge for it.
    BadInput for a knob out of its range, and for images that are larger or have other channels.

    The gradient of `forward` is the true one, through all steps. Only the image and the noise of each step are kept for it; the rest is
    recomputed on the way back. Surrogates: `coarse`, the same purification in 5 reverse steps at most, on both ways, whose clipping is not seen
    on the way back (the surrogate process of Lee and Kim 2023); `identity` purifies, and takes that for the identity on the way back (BPDA).
    Where `inner` has surrogates, they are behind each: `identity+lse`.
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
                f"defence 'diffpure': steps={steps} is not between 0 (all) and {top}, the steps of t={t}"
            )
        if samples < 1:
            raise BadInput(f"defence 'diffpure': samples={samples} is too small; the least is 1")
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.unet = unet
        self.schedule = schedule
        self.kept = schedule.kept[top]
        self.steps = descent(schedule, top, steps or top)
        self.few = descent(schedule, top, min(COARSE, len(self.steps)))
        self.samples = samples
        behind: dict[str, Answer] = {
            "": inner,
            **{f"+{name}": answer for name, answer in getattr(inner, "surrogates", {}).items()},
        }
        ways = {"identity": self.identity, "coarse": self.coarse}
        self.surrogates: dict[str, Answer] = {
            way + name: partial(self.mean, ways[way], answer)
            for way in ways
            for name, answer in behind.items()
        }

    def purify(self, x: Tensor) -> Tensor:
        """One purification of each image."""
        return self.denoised(x, self.steps)

    def classify(self, x_hat: Tensor) -> Tensor:
        """Logits (B,K) of purified images."""
        logits: Tensor = self.inner(x_hat)
        return logits

    def per_draw(self, x: Tensor) -> Tensor:
        """The logits (B,samples,K) of one draw, before their mean."""
        return self.several(self.purify, self.inner, x, self.samples)

    def forward(self, x: Tensor) -> Tensor:
        return self.per_draw(x).mean(1)

    def draws(self, x: Tensor, k: int) -> Tensor:
        """`k` independent predictions (B,k,K); all images, draws and samples go through in flat batches of bounded size."""
        answers: Tensor = (
            self.several(self.purify, self.inner, x, k * self.samples)
            .unflatten(1, (k, self.samples))
            .mean(2)
        )
        return answers

    def identity(self, x: Tensor) -> Tensor:
        """The purified images, whose gradient is that of `x`."""
        with torch.no_grad():
            change = self.purify(x) - x
        return x + change

    def coarse(self, x: Tensor) -> Tensor:
        """The images purified in fewer steps, with the gradient of that as if nothing had been clipped."""
        return self.denoised(x, self.few, clip=through)

    def mean(self, way: Answer, answer: Answer, x: Tensor) -> Tensor:
        return self.several(way, answer, x, self.samples).mean(1)

    def several(self, way: Answer, answer: Answer, x: Tensor, n: int) -> Tensor:
        """Logits (B,n,K) of n purifications of each image. The classifier's activations too are recomputed, so that none are kept of any part."""
        flat = x[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)
        parts = max(math.ceil(flat.numel() / FLAT.get(x.device.type, FLAT_ELSEWHERE)), 1)
        lean = parts > 1 and x.requires_grad and torch.is_grad_enabled()
        last: Answer = partial(recomputed, answer, use_reentrant=False) if lean else answer
        logits: Tensor = torch.cat(
            [last(way(part)) for part in flat.tensor_split(parts)]
        ).unflatten(0, (len(x), n))
        return logits

    def denoised(self, x: Tensor, steps: list[Step], clip: Clip = torch.clamp) -> Tensor:
        """Images (B,C,H,W) in [0,1] after noising and the reverse `steps`; all noise is drawn first, so that what is recomputed sees the same."""
        height, width = x.shape[2:]
        framed = self.framed(2 * x - 1)
        noise = torch.randn(len(steps), *framed.shape, device=x.device, dtype=x.dtype).unbind()
        here = math.sqrt(self.kept) * framed + math.sqrt(1 - self.kept) * noise[0]
        lean = here.requires_grad and torch.is_grad_enabled()
        for step, fresh in zip(steps, (*noise[1:], None), strict=True):  # the last one adds none
            here = (
                recomputed(self.earlier, step, here, fresh, clip, use_reentrant=False)
                if lean
                else self.earlier(step, here, fresh, clip)
            )
        top, left = (here.shape[2] - height) // 2, (here.shape[3] - width) // 2
        return clip((here[:, :, top : top + height, left : left + width] + 1) / 2, 0, 1)

    def earlier(self, step: Step, here: Tensor, fresh: Tensor | None, clip: Clip) -> Tensor:
        """One ancestral step, with the noise `fresh`."""
        times = torch.full((len(here),), step.t, device=here.device)
        told: Tensor = self.unet(here, times, return_dict=False)[0]
        whole, rest = math.sqrt(step.kept), math.sqrt(1 - step.kept)
        match self.schedule.predicts:
            case "epsilon":
                image = (here - rest * told) / whole
            case "v_prediction":
                image = whole * here - rest * told
            case _:
                image = told
        if self.schedule.clip:
            image = clip(image, -self.schedule.clip, self.schedule.clip)
        mean = step.image * image + step.here * here
        return mean if fresh is None else mean + step.std * fresh

    def framed(self, x: Tensor) -> Tensor:
        """The images in the middle of the size that the UNet takes, continued by their edge pixels."""
        config: dict[str, int | list[int]] = self.unet.config  # type: ignore[assignment]  # an attribute of diffusers, which nn.Module does not know
        size, channels = config["sample_size"], config["in_channels"]
        tall, wide = (size, size) if isinstance(size, int) else size
        _, have, height, width = x.shape
        if have != channels or height > tall or width > wide:
            raise BadInput(
                f"defence 'diffpure': its model takes images of {channels}x{tall}x{wide} at most, not {have}x{height}x{width}"
            )
        if (height, width) == (tall, wide):
            return x
        top, left = (tall - height) // 2, (wide - width) // 2
        return F.pad(x, (left, wide - width - left, top, tall - height - top), mode="replicate")


def through(x: Tensor, low: float, high: float) -> Tensor:
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
    """Noise the image to a share `t` of a diffusion model's schedule, denoise it by ancestral steps, classify; the mean logits of `samples` such.

    `checkpoint` is own:NAME, file:PATH of such a file, or file:DIR/diffusion_pytorch_model.safetensors of an unconditional model that the
    diffusers library saved with its scheduler. `steps` of the reverse steps are taken, evenly spaced; 0: all. t=0.1 is also what the paper takes
    for CIFAR-10. Attack it with PGD and EOT on its own gradient, which is exact, on `coarse`, which is cheaper (Lee and Kim 2023, arXiv
    2303.09766, who found so that it withstands less than was claimed), and by BPDA (`identity`). Nie et al. (2022), arXiv 2205.07460.
    """
    return DiffPure(
        build_inner(classifier, inner), *load(checkpoint), t=t, steps=steps, samples=samples
    )
