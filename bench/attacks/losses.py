"""What attacks maximise, and how they ask for it: losses over draws, batched margins, gradients without NaN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.spec import BadInput, nearest
from bench.target import Target, margin

# Images in one query of a gradient-free attack: what fits a CPU's cache, a GPU's memory. Fixed, since it decides which random number goes where.
ROWS = {"cpu": 256, "cuda": 4096}


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, for logits (...,K) and labels (...)."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Margin over the gap between the largest and the third largest logit (Croce & Hein 2020); the margin itself for two classes."""
    if logits.shape[-1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=-1)[0]
    return margin(logits, y) / (top[..., 0] - top[..., 2] + 1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": ce, "margin": margin, "dlr": dlr}


def loss_named(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name not in LOSSES:
        raise BadInput(f"loss '{name}' is unknown{nearest(name, LOSSES)}")
    return LOSSES[name]


def gradient(model: Target, x_adv: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], eot: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient (B,C,H,W) of the mean loss over `eot` draws, that loss (B,) and the mean margin (B,).

    A loss that is NaN counts as -inf. The gradient is zero where the graph does not reach the image.
    """
    leaf = x_adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.draws(leaf, eot) if eot > 1 else model(leaf).unsqueeze(1)
        labels = y.unsqueeze(1).expand(-1, logits.shape[1])
        value = loss(logits, labels).mean(1)
        slope = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    gap = margin(logits.detach(), labels).mean(1)
    return finite(torch.zeros_like(x_adv) if slope is None else slope), value.detach().nan_to_num(-torch.inf, torch.inf, -torch.inf), gap


def finite(grad: Tensor) -> Tensor:
    """The gradient, zeroed for each example that has a NaN or an infinity in it: no step is ever taken on those."""
    good = grad.flatten(1).isfinite().all(1)
    return torch.where(good.view(-1, *[1] * (grad.dim() - 1)), grad, 0.0)


def rows_at_once(x: Tensor) -> int:
    return ROWS.get(x.device.type, ROWS["cpu"])


@torch.no_grad()
def margins(model: Target, images: Tensor, y: Tensor) -> Tensor:
    """The margin (B,P) of each of `P` images (B,P,C,H,W) per example, one query each; positive is misclassified."""
    flat, labels = images.flatten(0, 1), y.repeat_interleave(images.shape[1])
    parts = [
        margin(model(some), names)
        for some, names in zip(torch.split(flat, rows_at_once(images)), torch.split(labels, rows_at_once(images)), strict=True)
    ]
    return torch.cat(parts).view(images.shape[:2])
