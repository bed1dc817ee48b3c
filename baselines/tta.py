"""Test-time augmentation: the mean over random versions of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from baselines.ensemble import find_mean
from baselines.transform import Answer, inner_surrogates
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence
from carso.model import split_batch


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How a random version of an image (C,H,W) in [0,1] differs from it.

    A version is shifted by whole pixels, uniform in [-shift,shift] along each side. Bare pixels
    are filled by the image reflected at its edge, whose own pixels are not repeated. The version is
    mirrored left to right with probability 1/2 where `flip`. It has Gaussian noise of standard
    deviation `noise` added, and is then clipped to [0,1].
    """

    shift: int
    flip: bool
    noise: float


class Augmented(nn.Module):
    """The mean of `inner`, a classifier or a defence, over `samples` versions of each image.

    Images (B,C,H,W) in [0,1] to logits (B,K). Versions are fresh at every call. The gradient is the
    true one. BadInput for a knob out of its range, and for a shift as large as the image.
    """

    def __init__(
        self, inner: nn.Module, samples: int, augmentation: Augmentation, mean: str = "logit"
    ) -> None:
        super().__init__()
        check_at_least("samples", samples, 1)
        check_at_least("shift", augmentation.shift, 0)
        check_at_least("noise", augmentation.noise, 0)
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.samples = samples
        self.augmentation = augmentation
        self.mean = find_mean("tta", mean)
        self.surrogates: dict[str, Answer] = {"classifier": self.base}
        for name, answer in inner_surrogates(inner).items():
            self.surrogates[f"exact{name}"] = partial(self.mean_of, answer)

    def purify(self, x: Tensor) -> Tensor:
        """One random version of each image."""
        if self.augmentation.shift or self.augmentation.flip:
            x = self.move(x)
        if self.augmentation.noise:
            x = (x + self.augmentation.noise * torch.randn_like(x)).clamp(0, 1)
        return x

    def classify(self, x_hat: Tensor) -> Tensor:
        """Logits (B,K) of versions."""
        logits: Tensor = self.inner(x_hat)
        return logits

    def per_draw(self, x: Tensor) -> Tensor:
        """The logits (B,samples,K) of one draw, before the mean."""
        return self.sample_logits(self.inner, x, self.samples)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(self.per_draw(x))

    def draws(self, x: Tensor, k: int) -> Tensor:
        """`k` independent predictions (B,k,K), in one flat batch of all images and versions."""
        logits = self.sample_logits(self.inner, x, k * self.samples)
        per_draw = logits.unflatten(1, (k, self.samples)).flatten(0, 1)  # (B*k,samples,K)
        answers: Tensor = self.mean(per_draw).unflatten(0, (len(x), k))
        return answers

    def mean_of(self, answer: Answer, x: Tensor) -> Tensor:
        return self.mean(self.sample_logits(answer, x, self.samples))

    def sample_logits(self, answer: Answer, x: Tensor, n: int) -> Tensor:
        """Logits (B,n,K) of n versions of each image, in flat batches of bounded size."""
        flat = x[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)  # (B*n,C,H,W)
        batches = [answer(self.purify(batch)) for batch in split_batch(flat)]
        logits: Tensor = torch.cat(batches).unflatten(0, (len(x), n))
        return logits

    def move(self, x: Tensor) -> Tensor:
        """Each image shifted, and perhaps mirrored, by its own draw."""
        count, channels, height, width = x.shape
        shift = self.augmentation.shift
        if shift >= min(height, width):
            raise BadInput(
                f"defence 'tta': shift={shift} is not less than "
                f"the image's side, {min(height, width)}"
            )
        down, right = torch.randint(-shift, shift + 1, (2, count, 1), device=x.device)
        rows = reflect(torch.arange(height, device=x.device) - down, height)  # (B,H)
        columns = reflect(torch.arange(width, device=x.device) - right, width)  # (B,W)
        if self.augmentation.flip:
            flipped = torch.rand(count, 1, device=x.device) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        image = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
        channel = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
        return x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def check_at_least(knob: str, value: float, least: int) -> None:
    if not least <= value < math.inf:
        raise BadInput(f"defence 'tta': {knob}={value} is not {least} or more")


def reflect(index: Tensor, size: int) -> Tensor:
    """Positions up to one side outside of 0..size-1, reflected into it.

    -1 becomes 1, and `size` becomes size-2.
    """
    return (size - 1) - ((size - 1) - index.abs()).abs()


@defence("tta", stochastic=lambda knobs: bool(knobs["shift"] or knobs["flip"] or knobs["noise"]))
def tta(
    *,
    classifier: str = "@robust",
    inner: str = "",
    samples: int = 8,
    shift: int = 1,
    flip: bool = False,
    noise: float = 0.02,
    mean: str = "logit",
) -> nn.Module:
    """Classify `samples` randomly shifted and slightly noisy versions of the image, take the mean.

    `mean` is that of the logits, or (`prob`) of the probabilities. It is the control for any
    defence that classifies several samples: what of its gain the mean alone explains. `flip` is for
    photographs: digits and letters are not what their mirror images are. Guo, Rana, Cisse and van
    der Maaten (2018), arXiv 1711.00117, average over random crops; Athalye, Carlini and Wagner
    (2018), arXiv 1802.00420, broke them by EOT. Attack it with PGD and EOT, as its gradient is the
    true one, and with transfer from the bare classifier (surrogate `classifier`).
    """
    augmentation = Augmentation(shift, flip, noise)
    return Augmented(build_inner(classifier, inner), samples, augmentation, mean)
