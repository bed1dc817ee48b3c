"""The four adversaries of the training batches: PGD and FGSM, weak and strong, linf, against the classifier alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from carso.recipe import Recipe, strength


@dataclass(frozen=True, slots=True)
class Adversaries:
    """Strengths in [0,1] units; `share` of a batch is attacked, `steps` of size `step` are PGD's."""

    share: float
    weak: float
    strong: float
    steps: int
    step: float

    @staticmethod
    def of(recipe: Recipe) -> Adversaries:
        """As the recipe says; with `eps_unit` std the two strengths, not the step, are those of the code that trained the released weights."""
        weak, strong, step = (
            strength(key, getattr(recipe, key)) for key in ("eps_weak", "eps_strong", "pgd_step")
        )
        unit = 1.0 if recipe.eps_unit == "pixel" else sum(recipe.std) / len(recipe.std)
        return Adversaries(recipe.adversarial, weak / unit, strong / unit, recipe.pgd_steps, step)

    def deal(self, classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x (B,C,H,W) with m = floor(B share / 4) images for each adversary at its end, in the order PGD weak, PGD strong, FGSM weak, FGSM strong.

        The first B - 4m stay clean. Both strengths of an attack run as one batch.
        """
        m = int(len(x) * self.share / 4)
        if not m:
            return x
        eps = torch.cat([x.new_full((m, 1, 1, 1), e) for e in (self.weak, self.strong)])
        clean, for_pgd, for_fgsm = x[: -4 * m], x[-4 * m : -2 * m], x[-2 * m :]
        by_pgd = pgd(classifier, for_pgd, y[-4 * m : -2 * m], eps, steps=self.steps, step=self.step)
        return torch.cat([clean, by_pgd, fgsm(classifier, for_fgsm, y[-2 * m :], eps)])


def pgd(
    classifier: nn.Module, x: Tensor, y: Tensor, eps: Tensor, *, steps: int, step: float
) -> Tensor:
    """Signed ascent of the cross-entropy from a uniform start in the box; eps (B,1,1,1); the last iterate, in the box and in [0,1]."""
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        adv = adv.add(_ascent(classifier, adv, y), alpha=step).clamp_(low, high)
    return adv


def fgsm(classifier: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    """One signed step of length eps (B,1,1,1), without a random start, clipped to [0,1]."""
    return (x + eps * _ascent(classifier, x, y)).clamp(0, 1)


def _ascent(classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(cross_entropy(classifier(x), y, reduction="sum"), x)[0].sign()
