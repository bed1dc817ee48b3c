"""Train a purifier around a frozen classifier: reconstruct the clean image from the perturbed one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from carso.adversary import Adversaries
from carso.loss import beta_at, elbo
from carso.model import CARSO, VAE
from carso.optimiser import PLAIN, Lookahead, learning_rate
from carso.purifier import Purifier
from carso.recipe import Recipe
from carso.representation import shapes, taps


@dataclass(frozen=True, slots=True)
class Epoch:
    """Losses are means per image: `reconstruction` (binary cross-entropy, nats per image) and `kl` (nats), unweighted."""

    epoch: int
    lr: float
    beta: float
    reconstruction: float
    kl: float


def new_purifier(classifier: nn.Module, image: tuple[int, int, int], recipe: Recipe) -> Purifier:
    """An untrained purifier for the classifier; ValueError for a layer that does not exist, or is too small for the recipe's compressors."""
    found = shapes(classifier, image, recipe.layers)
    return Purifier(recipe.layout(image, found), recipe.layers)


def fit(
    purifier: Purifier, classifier: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, report: Callable[[Epoch], None] = lambda _: None
) -> list[Epoch]:
    """Train in place, and return the losses of every epoch; purifier in evaluation mode at the end, with the slow weights.

    x (N,C,H,W) in [0,1], y (N,) int64, on the device of both modules. The classifier's parameters are frozen for good. No augmentation;
    the first steps, which RAdam takes unscaled along the summed loss, keep `lr_start` also where an epoch is shorter than they;
    the last, partial batch is kept unless it is a single image, of which there are no batch statistics. Randomness: torch's global
    generator. ValueError where the data are not finite; FloatingPointError where training diverges.
    """
    if not bool(torch.isfinite(x).all()) or float(x.min()) < 0 or float(x.max()) > 1:
        raise ValueError("the training images hold values that are not finite, or outside of [0,1]")
    classifier.requires_grad_(False).eval()
    purifier.train()
    adversaries = Adversaries.of(recipe)
    optimiser = Lookahead(purifier.parameters(), recipe.lr)
    history = []
    for epoch in range(recipe.epochs):
        lr = learning_rate(epoch, recipe.epochs, start=recipe.lr_start, base=recipe.lr, final=recipe.lr_final, warmup=recipe.warmup)
        beta = recipe.beta * beta_at(epoch, recipe.epochs, recipe.lag)
        sums = x.new_zeros(2)
        for chosen in torch.split(torch.randperm(len(x), device=x.device), recipe.batch):
            if len(chosen) == 1:
                continue
            clean = x[chosen]
            mixed = adversaries.deal(classifier, clean, y[chosen])
            with torch.no_grad():
                representation = taps(classifier, mixed, purifier.layers)
            rec, mu, logvar = purifier(mixed, representation)
            if not bool(rec.isfinite().all()):
                raise FloatingPointError(f"training diverged in epoch {epoch}: the reconstruction is not finite; lower lr (now {recipe.lr:g})")
            total, reconstruction, kl = elbo(rec, clean, mu, logvar, beta)
            optimiser.set_lr(recipe.lr_start if optimiser.steps < PLAIN else lr)
            optimiser.zero_grad()
            torch.autograd.backward(total)
            optimiser.step()
            sums += torch.stack([reconstruction, kl]).detach()
        history.append(Epoch(epoch, lr, beta, *(sums / len(x)).tolist()))
        report(history[-1])
    optimiser.finish()
    purifier.eval()
    return history


def wrap(classifier: nn.Module, purifier: Purifier, samples: int = 8, aggregation: str = "peel") -> CARSO:
    """The defence that a purifier is for: CARSO, or the unconditional VAE where it has no taps."""
    return (CARSO if purifier.layers else VAE)(classifier, purifier, samples, aggregation)


def validate(defence: CARSO, x: Tensor, y: Tensor, eps: float, *, steps: int = 20, draws: int = 4, batch: int = 256) -> tuple[float, float]:
    """(clean, attacked) accuracy of the whole defence, in [0,1]: a quick check, not the bench's number.

    The attack is linf PGD on the margin of the `lse` surrogate, with fresh samples at every step; accuracies are means of `draws` fresh draws.
    """
    right = x.new_zeros(2)
    for xs, ys in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
        for i, tried in enumerate((xs, _margin_pgd(defence, xs, ys, eps, steps) if eps else xs)):
            with torch.no_grad():
                right[i] += (defence.draws(tried, draws).argmax(2) == ys[:, None]).sum() / draws
    clean, attacked = (right / len(x)).tolist()
    return clean, attacked


def _margin_pgd(defence: CARSO, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        adv.requires_grad_()
        logits = defence.surrogates["lse"](adv)
        true = logits.gather(1, y[:, None])[:, 0]
        wrong = logits.scatter(1, y[:, None], -math.inf).amax(1)
        (ascent,) = torch.autograd.grad((wrong - true).sum(), adv)
        adv = (adv.detach() + 2.5 * eps / steps * ascent.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return adv
