"""Test-time augmentation: the mean over random versions of an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from baselines.ensemble import mean_named
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence
from carso.model import split_batch


class Augmented(nn.Module):
    """The mean of `inner`, a classifier or a defence, over `samples` random versions of each image, fresh at every call.

    Images (B,C,H,W) in [0,1] to logits (B,K). A version is shifted by whole pixels, uniform in [-shift,shift] along each side (what the
    shift leaves bare is the image reflected at its edge, whose own pixels are not repeated), mirrored left to right with probability 1/2
    where `flip`, and has Gaussian noise of standard deviation `noise` added, after which it is clipped to [0,1]. The gradient is the true
    one. BadInput for a knob out of its range, and for a shift as large as the image.
    """

    def __init__(
        self, inner: nn.Module, samples: int, shift: int, flip: bool, noise: float, mean: str
    ) -> None:
        super().__init__()
        for knob, value, least in (
            ("samples", samples, 1),
            ("shift", shift, 0),
            ("noise", noise, 0),
        ):
            if not least <= value < math.inf:
                raise BadInput(f"defence 'tta': {knob}={value} is not {least} or more")
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.samples = samples
        self.shift = shift
        self.flip = flip
        self.noise = noise
        self.mean = mean_named("tta", mean)
        behind: dict[str, Callable[[Tensor], Tensor]] = getattr(inner, "surrogates", {})
        self.surrogates = {
            "classifier": self.base,
            **{f"exact+{name}": partial(self.mean_of, answer) for name, answer in behind.items()},
        }

    def purify(self, x: Tensor) -> Tensor:
        """One random version of each image."""
        if self.shift or self.flip:
            x = self.moved(x)
        if self.noise:
            x = (x + self.noise * torch.randn_like(x)).clamp(0, 1)
        return x

    def classify(self, x_hat: Tensor) -> Tensor:
        """Logits (B,K) of versions."""
        logits: Tensor = self.inner(x_hat)
        return logits

    def per_draw(self, x: Tensor) -> Tensor:
        """The logits (B,samples,K) of one draw, before the mean."""
        return self.several(self.inner, x, self.samples)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(self.per_draw(x))

    def draws(self, x: Tensor, k: int) -> Tensor:
        """`k` independent predictions (B,k,K), in one flat batch of all images, draws and versions."""
        logits = self.several(self.inner, x, k * self.samples)
        answers: Tensor = self.mean(logits.unflatten(1, (k, self.samples)).flatten(0, 1)).unflatten(
            0, (len(x), k)
        )
        return answers

    def mean_of(self, answer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self.mean(self.several(answer, x, self.samples))

    def several(self, answer: Callable[[Tensor], Tensor], x: Tensor, n: int) -> Tensor:
        """Logits (B,n,K) of n versions of each image; the flat batch of all of them goes through in parts of bounded size."""
        flat = x[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)
        logits: Tensor = torch.cat(
            [answer(self.purify(part)) for part in split_batch(flat)]
        ).unflatten(0, (len(x), n))
        return logits

    def moved(self, x: Tensor) -> Tensor:
        """Each image shifted, and perhaps mirrored, by its own draw."""
        count, channels, height, width = x.shape
        if self.shift >= min(height, width):
            raise BadInput(
                f"defence 'tta': shift={self.shift} is not less than the image's side, {min(height, width)}"
            )
        down, right = torch.randint(-self.shift, self.shift + 1, (2, count, 1), device=x.device)
        rows = reflected(torch.arange(height, device=x.device) - down, height)
        columns = reflected(torch.arange(width, device=x.device) - right, width)
        if self.flip:
            columns = torch.where(
                torch.rand(count, 1, device=x.device) < 0.5, columns.flip(1), columns
            )
        each = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
        channel = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
        return x[each, channel, rows[:, None, :, None], columns[:, None, None, :]]


def reflected(index: Tensor, size: int) -> Tensor:
    """Positions up to one side outside of 0..size-1, reflected into it: -1 is 1, and `size` is size-2."""
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
    """Classify `samples` randomly shifted and slightly noisy versions of the image, and take the mean of the logits (or `prob`: probabilities).

    The control for any defence that classifies several samples: what of its gain the mean alone explains. `flip` is for photographs: digits
    and letters are not what their mirror images are. Guo, Rana, Cisse and van der Maaten (2018), arXiv 1711.00117, average over random crops;
    Athalye, Carlini and Wagner (2018), arXiv 1802.00420, broke them by EOT. Attack it with PGD and EOT, as its gradient is the true one, and with
    transfer from the bare classifier (surrogate `classifier`).
    """
    return Augmented(build_inner(classifier, inner), samples, shift, flip, noise, mean)
