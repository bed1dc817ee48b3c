"""CARSO: the representation, reconstructions from the prior, the classifier on each, one answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.errors import BadInput
from carso.aggregate import AGGREGATIONS, find_aggregation
from carso.purifier import Purifier
from carso.representation import find_layers, taps

# Pixel values in one batch of reconstructions; 2**16 is 21 images of 3x32x32. On a CPU larger
# batches cost more per image, because their activations leave the cache. A GPU wants large
# batches; there the bound is one of memory.
PIXELS_PER_BATCH = {"cpu": 2**16}
PIXELS_PER_BATCH_ELSEWHERE = 2**22


def batch_limit(device: torch.device) -> int:
    """Pixel values in one batch of images on this device."""
    return PIXELS_PER_BATCH.get(device.type, PIXELS_PER_BATCH_ELSEWHERE)


def split_batch(images: Tensor) -> tuple[Tensor, ...]:
    """Images (N,C,H,W) in batches of that size, one batch at least."""
    return images.tensor_split(max(math.ceil(images.numel() / batch_limit(images.device)), 1))


class CARSO(nn.Module):
    """Purification that an image enters only through the representation of `classifier`.

    Images (B,C,H,W) in [0,1] to logits (B,K). Each of the `samples` reconstructions of a
    prediction has its own z from N(0,1), fresh at every call. 0 samples means one reconstruction
    from z=0, which is deterministic. `final` classifies the reconstructions; without it the
    classifier itself does. An unconditional purifier reads nothing of the image: its
    reconstructions are samples of all classes, a control.

    For inference: both modules are frozen, and put into evaluation mode. BadInput for an unknown
    aggregation, or a layer that the classifier does not have.
    E. Ballarin, A. Ansuini, L. Bortolussi, arXiv 2306.06081.
    """

    def __init__(
        self,
        classifier: nn.Module,
        purifier: Purifier,
        samples: int = 8,
        aggregation: str = "peel",
        *,
        final: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if samples < 0:
            raise BadInput(f"samples={samples} is negative; give 0 (z=0, deterministic) or more")
        find_layers(classifier, purifier.layers)
        self.base = classifier
        self.final = final or classifier
        self.purifier = purifier
        self.samples = samples
        self.aggregate = find_aggregation(aggregation)
        self.latent_dim = purifier.layout.latent
        self.requires_grad_(False).eval()

    def latent(self, x: Tensor) -> Tensor:
        """The condition c (B,C): all that is computed once per image, for any number of draws."""
        if not self.purifier.layers:
            return x.new_zeros(len(x), 0)
        return self.purifier.condition(taps(self.base, x, self.purifier.layers))

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        """Images (B,C,H,W) of z (B,D) and c (B,C)."""
        return self.purifier.decode(z, c)

    def classify(self, x_hat: Tensor) -> Tensor:
        """Logits (B,K) of reconstructions."""
        logits: Tensor = self.final(x_hat)
        return logits

    def purify(self, x: Tensor) -> Tensor:
        """One reconstruction (B,C,H,W) of each image."""
        c = self.latent(x)
        return self.decode(self._noise(c, 1)[:, 0], c)

    def sample_logits(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Logits (B,samples,K) of every reconstruction, before aggregation.

        `z` (B,samples,D) may have any number of samples; without it z comes from the prior.
        """
        c = self.latent(x)
        if z is None:
            z = self._noise(c, max(self.samples, 1))
        return self._logits(z, c)

    def per_draw(self, x: Tensor) -> Tensor:
        """The logits (B,samples,K) of one draw, before aggregation."""
        return self.sample_logits(x)

    def draws(self, x: Tensor, k: int) -> Tensor:
        """k independent predictions (B,k,K) that share one pass of the representation."""
        c = self.latent(x)
        if not self.samples:
            return self.aggregate(self._logits(self._noise(c, 1), c))[:, None].expand(-1, k, -1)
        logits = self._logits(self._noise(c, k * self.samples), c)  # (B,k*samples,K)
        per_draw = logits.unflatten(1, (k, self.samples)).flatten(0, 1)  # (B*k,samples,K)
        answers: Tensor = self.aggregate(per_draw).unflatten(0, (len(x), k))
        return answers

    def forward(self, x: Tensor) -> Tensor:
        return self.aggregate(self.sample_logits(x))

    @property
    def surrogates(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Differentiable surrogates for an attacker.

        `lse` has PeeL's very decisions and bounded gradients; the others approximate.
        """
        return {
            "lse": self._lse,
            "mean-logit": self._mean_logit,
            "mean-latent": self._mean_latent,
            "classifier": self.base,
        }

    def _lse(self, x: Tensor) -> Tensor:
        return AGGREGATIONS["lse"](self.sample_logits(x))

    def _mean_logit(self, x: Tensor) -> Tensor:
        return AGGREGATIONS["logit"](self.sample_logits(x))

    def _mean_latent(self, x: Tensor) -> Tensor:
        c = self.latent(x)
        return self.classify(self.decode(c.new_zeros(len(c), self.latent_dim), c))

    def _noise(self, c: Tensor, n: int) -> Tensor:
        """z (B,n,D): from the prior, or 0 where there are no samples."""
        make = torch.randn if self.samples else torch.zeros
        return make(len(c), n, self.latent_dim, device=c.device, dtype=c.dtype)

    def _logits(self, z: Tensor, c: Tensor) -> Tensor:
        """Logits (B,n,K) of z (B,n,D) and c (B,C).

        All images and samples go in flat batches: a map over the samples takes nearly twice as
        long.
        """
        n = z.shape[1]
        images = max(batch_limit(c.device) // math.prod(self.purifier.layout.image), 1)
        batches = max(math.ceil(len(c) * n / images), 1)
        z_batches = z.flatten(0, 1).tensor_split(batches)
        c_batches = c.repeat_interleave(n, 0).tensor_split(batches)
        pairs = zip(z_batches, c_batches, strict=True)
        flat = torch.cat([self.classify(self.decode(*pair)) for pair in pairs])  # (B*n,K)
        logits: Tensor = flat.unflatten(0, (len(c), n))
        return logits


class VAE(CARSO):
    """The same pipeline around an unconditional VAE, a purifier without taps.

    Each image is encoded, and z is drawn from its posterior. Samples of the prior would not
    depend on the image at all. `latent` is the posterior's mu and logvar, side by side (B,2D).
    The z of `decode` and `sample_logits` is the standard normal noise that picks a point of the
    posterior; z=0 is its mean.
    """

    def latent(self, x: Tensor) -> Tensor:
        return torch.cat(self.purifier.encode(x, x.new_zeros(len(x), 0)), 1)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        mu, logvar = c.chunk(2, 1)
        return self.purifier.decode(mu + (logvar / 2).exp() * z, c.new_zeros(len(c), 0))
