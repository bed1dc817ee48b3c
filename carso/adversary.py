"""PGD and FGSM in linf: the adversaries of the training batches, and of a quick check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from carso.recipe import Recipe, parse_strength

Model = Callable[[Tensor], Tensor]  # images (B,C,H,W) -> logits (B,K)
Loss = Callable[[Tensor, Tensor], Tensor]  # logits (B,K), labels (B,) -> a scalar, summed


@dataclass(frozen=True, slots=True)
class Adversaries:
    """PGD and FGSM, each weak and strong, against the classifier alone.

    `share` of a batch is attacked. `weak` and `strong` are linf strengths in [0,1] units. PGD
    takes `steps` of size `step`.
    """

    share: float
    weak: float
    strong: float
    steps: int
    step: float

    @staticmethod
    def from_recipe(recipe: Recipe) -> Adversaries:
        """The adversaries of the recipe.

        With the `eps_unit` std the two strengths are those of the code that trained the released
        weights. The step of PGD stays.
        """
        weak = parse_strength("eps_weak", recipe.eps_weak)
        strong = parse_strength("eps_strong", recipe.eps_strong)
        step = parse_strength("pgd_step", recipe.pgd_step)
        unit = 1.0 if recipe.eps_unit == "pixel" else sum(recipe.std) / len(recipe.std)
        return Adversaries(recipe.adversarial, weak / unit, strong / unit, recipe.pgd_steps, step)

    def attack_batch(self, classifier: Model, x: Tensor, y: Tensor) -> Tensor:
        """x (B,C,H,W) with m = floor(B share / 4) images of each adversary at its end.

        Their order is PGD weak, PGD strong, FGSM weak, FGSM strong. The first B - 4m images stay
        clean. Both strengths of an attack run as one batch.
        """
        m = int(len(x) * self.share / 4)
        if not m:
            return x
        eps = torch.cat(
            [x.new_full((m, 1, 1, 1), self.weak), x.new_full((m, 1, 1, 1), self.strong)]
        )
        by_pgd = pgd(
            classifier,
            x[-4 * m : -2 * m],
            y[-4 * m : -2 * m],
            eps,
            steps=self.steps,
            step=self.step,
        )
        by_fgsm = fgsm(classifier, x[-2 * m :], y[-2 * m :], eps)
        return torch.cat([x[: -4 * m], by_pgd, by_fgsm])


def summed_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits, y, reduction="sum")


def summed_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest wrong logit less the right one, summed over the images."""
    right = logits.gather(1, y[:, None])[:, 0]
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return (wrong - right).sum()


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    *,
    steps: int,
    step: float,
    loss: Loss = summed_cross_entropy,
) -> Tensor:
    """Signed ascent of the loss from a uniform start in the box of eps (B,1,1,1).

    The answer (B,C,H,W) is the last iterate, within the box and within [0,1].
    """
    low = (x - eps).clamp(0, 1)
    high = (x + eps).clamp(0, 1)
    x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        direction = gradient_sign(model, x_adv, y, loss)
        x_adv = x_adv.add(direction, alpha=step).clamp_(low, high)
    return x_adv


def fgsm(model: Model, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    """One signed step of length eps (B,1,1,1), without a random start, clipped to [0,1]."""
    return (x + eps * gradient_sign(model, x, y, summed_cross_entropy)).clamp(0, 1)


def gradient_sign(model: Model, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """The sign (B,C,H,W) of the gradient of the loss at the images."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(x), y), x)
        return gradient.sign()
