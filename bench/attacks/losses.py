"""What attacks maximise, and how they ask for it: losses over draws, batched margins, gradients without NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.errors import BadInput, did_you_mean
from bench.judging.target import Target, margin
from bench.questions.spec import format_value

# Images in one query of a gradient-free attack: what fits a CPU's cache, a GPU's memory. Fixed, since it decides which random number goes where.
ROWS = {"cpu": 256, "cuda": 4096}
# Values of images, draws included, that are differentiated at once: 512 images of 3x32x32, since a graph takes a network's memory for each of them.
VALUES = 512 * 3 * 32 * 32


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, for logits (...,K) and labels (...)."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(
        y.shape
    )


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Margin over the gap between the largest and the third largest logit (Croce & Hein 2020); the margin itself for two classes."""
    if logits.shape[-1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=-1)[0]
    return margin(logits, y) / (top[..., 0] - top[..., 2] + 1e-12)


def dlr_targeted(logits: Tensor, pairs: Tensor) -> Tensor:
    """For `pairs` (...,2) of label and target the target's logit less the true one, over the gap between the largest and the mean of the third and
    fourth largest logit.

    Without the denominator for less than four classes. Croce & Hein 2020.
    """
    true, goal = logits.gather(-1, pairs).unbind(-1)
    gap = goal - true
    if logits.shape[-1] < 4:
        return gap
    top = logits.topk(4, dim=-1)[0]
    return gap / (top[..., 0] - (top[..., 2] + top[..., 3]) / 2 + 1e-12)


def likely(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The `count` wrong classes with the largest logits, the largest first, (count,B) for logits (B,K): fewer where there are fewer."""
    least = torch.finfo(logits.dtype).min
    wrong = logits.nan_to_num(least, neginf=least).scatter(1, y.unsqueeze(1), -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1)[1].T


Loss = Callable[[Tensor, Tensor], Tensor]
StandIns = (
    Callable[[], Sequence[Target]] | None
)  # models whose gradients take the place of one that is not finite; made when first asked for
LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr}
TARGETED: dict[str, Loss] = {
    **LOSSES,
    "targeted": dlr_targeted,
}  # whose labels are pairs of label and target


def loss_named(name: str) -> Loss:
    if name not in TARGETED:
        raise BadInput(f"loss '{name}' is unknown{did_you_mean(name, TARGETED)}")
    return TARGETED[name]


@torch.no_grad()
def mean_logits(model: Target, x: Tensor, eot: int) -> Tensor:
    """The mean (B,K) over `eot` draws."""
    return torch.cat([model.draws(some, eot).mean(1) for some in x.split(at_once(x, eot))])


def scale_of(text: str) -> str:
    """`gap`, or a positive number as it is written shortest (`1e-2` -> `0.01`); BadInput for anything else."""
    if text == "gap":
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise BadInput(f"scale='{text}' is neither a positive number nor gap")
    return format_value(number)


def scaled(loss: Loss, scale: str) -> Loss:
    """`loss` of the logits (...,K) times the number `scale`, or for `gap` divided by their own `gap`; `loss` itself for 1.

    The cross-entropy of large logits has no gradient in float32, and that of small ones hardly prefers a class; DLR has its denominator for this
    (Croce & Hein 2020). The gap is detached: it says how sharp the loss is, and an attack has nothing to gain from it.
    """
    scale = scale_of(scale)
    if scale == "gap":
        return lambda logits, y: loss(logits / gap(logits.detach()), y)
    return loss if scale == "1" else lambda logits, y: loss(float(scale) * logits, y)


def gap(logits: Tensor) -> Tensor:
    """The largest less the third largest of the logits (...,K), for two classes less the smaller one, (...,1); 1 where that is 0 or not finite."""
    top = logits.topk(min(3, logits.shape[-1]), dim=-1)[0]
    wide = top[..., :1] - top[..., -1:]
    return torch.where((wide > 0) & wide.isfinite(), wide, 1.0)


def gradient(
    model: Target, x_adv: Tensor, y: Tensor, loss: Loss, eot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient (B,C,H,W) of the mean loss over `eot` draws, that loss (B,) and the mean margin (B,).

    A loss that is NaN counts as -inf. The gradient is zero where the graph does not reach the image.
    """
    slope, value, logits = answers(model, x_adv, y, loss, eot)
    return slope, value, margin(logits, y.unsqueeze(1).expand(-1, logits.shape[1])).mean(1)


def answers(
    model: Target, x_adv: Tensor, y: Tensor, loss: Loss, eot: int, stand_ins: StandIns = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient and loss as `gradient` gives them, and the logits (B,eot,K) that they come from; asked in parts of fixed size.

    `y` is (B,), or (B,2) for a loss of label and target. Where the model's own gradient is not finite, that of the first of the `stand_ins` with one
    that is takes its place.
    """
    size = gradients_at_once(x_adv, eot)
    if len(x_adv) > size:
        pairs = zip(x_adv.split(size), y.split(size), strict=True)
        grads, values, parts = zip(
            *(answers(model, some, names, loss, eot, stand_ins) for some, names in pairs),
            strict=True,
        )
        return torch.cat(grads), torch.cat(values), torch.cat(parts)
    slope, value, logits = slopes(model, x_adv, y, loss, eot)
    bad = ~finite_rows(slope)
    for stand_in in stand_ins() if stand_ins and bad.any() else ():
        rows = bad.nonzero().squeeze(1)
        slope[rows] = slopes(
            stand_in, x_adv[rows], y[rows], loss, eot if stand_in.stochastic else 1
        )[0]
        bad = ~finite_rows(slope)
        if not bad.any():
            break
    return finite(slope), value.nan_to_num(-torch.inf, torch.inf, -torch.inf), logits


def slopes(
    model: Target, x_adv: Tensor, y: Tensor, loss: Loss, eot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient, loss and logits as they come, NaN and all; the gradient is zero where the graph does not reach the image."""
    leaf = x_adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.draws(leaf, eot) if eot > 1 else model(leaf).unsqueeze(1)
        labels = y.unsqueeze(1).expand(-1, logits.shape[1], *y.shape[1:])
        value = loss(logits, labels).mean(1)
        slope = (
            torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0]
            if value.requires_grad
            else None
        )
    return torch.zeros_like(x_adv) if slope is None else slope, value.detach(), logits.detach()


def finite(grad: Tensor) -> Tensor:
    """The gradient, zeroed for each example that has a NaN or an infinity in it: no step is ever taken on those."""
    return torch.where(finite_rows(grad).view(-1, *[1] * (grad.dim() - 1)), grad, 0.0)


def finite_rows(grad: Tensor) -> Tensor:
    return grad.flatten(1).isfinite().all(1)


def gradients_at_once(x: Tensor, eot: int) -> int:
    """Images, of `eot` draws each, that are differentiated at once."""
    return max(1, VALUES // (x[0].numel() * eot))


def rows_at_once(x: Tensor) -> int:
    return ROWS.get(x.device.type, ROWS["cpu"])


def at_once(x: Tensor, eot: int) -> int:
    """Images in one query of `eot` draws each."""
    return max(1, rows_at_once(x) // eot)


@torch.no_grad()
def margins(model: Target, images: Tensor, y: Tensor) -> Tensor:
    """The margin (B,P) of each of `P` images (B,P,C,H,W) per example, one query each; positive is misclassified."""
    flat, labels = images.flatten(0, 1), y.repeat_interleave(images.shape[1])
    parts = [
        margin(model(some), names)
        for some, names in zip(
            torch.split(flat, rows_at_once(images)),
            torch.split(labels, rows_at_once(images)),
            strict=True,
        )
    ]
    return torch.cat(parts).view(images.shape[:2])
