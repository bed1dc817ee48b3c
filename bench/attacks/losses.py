"""What attacks maximise and how they query it: losses, margins in batches, finite gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.errors import BadInput, did_you_mean
from bench.judging.target import Target, margin
from bench.questions.spec import format_value

# Images in one query of a gradient-free attack: what fits a CPU's cache, a GPU's memory.
# The number is fixed, since it decides which random number goes where.
ROWS = {"cpu": 256, "cuda": 4096}
# Values of images, draws included, that are differentiated at once: 512 images of 3x32x32.
# A graph takes a network's memory for each of them.
VALUES = 512 * 3 * 32 * 32


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, for logits (...,K) and labels (...)."""
    loss = nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
    return loss.view(y.shape)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Margin over the gap between the largest and the third largest logit.

    For two classes it is the margin itself. Croce & Hein 2020, arXiv:2003.01690.
    """
    if logits.shape[-1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=-1)[0]
    return margin(logits, y) / (top[..., 0] - top[..., 2] + 1e-12)


def dlr_targeted(logits: Tensor, pairs: Tensor) -> Tensor:
    """The target's logit less the true one, over a gap, for `pairs` (...,2) of label and target.

    The gap is the largest logit less the mean of the third and fourth largest. Fewer than four
    classes have no gap. Croce & Hein 2020, arXiv:2003.01690.
    """
    true, goal = logits.gather(-1, pairs).unbind(-1)
    difference = goal - true
    if logits.shape[-1] < 4:
        return difference
    top = logits.topk(4, dim=-1)[0]
    return difference / (top[..., 0] - (top[..., 2] + top[..., 3]) / 2 + 1e-12)


def likeliest_wrong(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The `count` wrong classes with the largest logits (count,B), for logits (B,K).

    The largest stands first. There are fewer where there are fewer classes.
    """
    least = torch.finfo(logits.dtype).min
    wrong = logits.nan_to_num(least, neginf=least).scatter(1, y.unsqueeze(1), -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1)[1].T


Loss = Callable[[Tensor, Tensor], Tensor]
# Models whose gradients take the place of one that is not finite: they are made at the first call.
SurrogateModels = Callable[[], Sequence[Target]] | None
LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr}
# `targeted` takes pairs of label and target for labels.
ALL_LOSSES: dict[str, Loss] = {**LOSSES, "targeted": dlr_targeted}


def find_loss(name: str) -> Loss:
    if name not in ALL_LOSSES:
        raise BadInput(f"loss '{name}' is unknown{did_you_mean(name, ALL_LOSSES)}")
    return ALL_LOSSES[name]


@torch.no_grad()
def mean_logits(model: Target, x: Tensor, eot: int) -> Tensor:
    """The mean (B,K) over `eot` draws."""
    parts = x.split(images_per_query(x, eot))
    return torch.cat([model.draws(images, eot).mean(1) for images in parts])


def parse_scale(text: str) -> str:
    """`gap`, or a positive number as it is written shortest: `1e-2` -> `0.01`.

    Raises BadInput for anything else.
    """
    if text == "gap":
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise BadInput(f"scale='{text}' is neither a positive number nor gap")
    return format_value(number)


def scale_logits(loss: Loss, scale: str) -> Loss:
    """`loss` of the logits (...,K) times the number `scale`; `loss` itself for 1.

    `gap` divides the logits by their own `logit_spread`. The spread is detached: it says how sharp
    the loss is, and an attack has nothing to gain from it. The cross-entropy of large logits has
    no gradient in float32, and that of small ones hardly prefers a class. DLR has its denominator
    for this (Croce & Hein 2020).
    """
    scale = parse_scale(scale)
    if scale == "gap":
        return lambda logits, y: loss(logits / logit_spread(logits.detach()), y)
    if scale == "1":
        return loss
    return lambda logits, y: loss(float(scale) * logits, y)


def logit_spread(logits: Tensor) -> Tensor:
    """The largest less the third largest of the logits (...,K), as (...,1).

    For two classes it is the larger less the smaller. It is 1 where it would be 0 or not finite.
    """
    top = logits.topk(min(3, logits.shape[-1]), dim=-1)[0]
    spread = top[..., :1] - top[..., -1:]
    return torch.where((spread > 0) & spread.isfinite(), spread, 1.0)


def mean_gradient(
    model: Target, x_adv: Tensor, y: Tensor, loss: Loss, eot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient (B,C,H,W) of the mean loss over `eot` draws, that loss (B,), the mean margin (B,).

    A loss that is NaN counts as -inf. The gradient is zero where the graph does not reach the
    image.
    """
    grad, value, logits = query_gradient(model, x_adv, y, loss, eot)
    return grad, value, mean_margin(logits, y)


def mean_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The mean margin (B,) of the draws (B,eot,K)."""
    return margin(logits, y.unsqueeze(1).expand(-1, logits.shape[1])).mean(1)


def query_gradient(
    model: Target,
    x_adv: Tensor,
    y: Tensor,
    loss: Loss,
    eot: int,
    *,
    surrogate_models: SurrogateModels = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient (B,C,H,W) and loss (B,) as `mean_gradient` gives them, and the logits (B,eot,K).

    `y` is (B,), or (B,2) for a loss of label and target. The images are queried in parts of fixed
    size. Where the model's own gradient is not finite, that of the first surrogate model with a
    finite one takes its place.
    """
    size = images_per_gradient(x_adv, eot)
    if len(x_adv) > size:
        parts = [
            query_gradient(model, images, labels, loss, eot, surrogate_models=surrogate_models)
            for images, labels in zip(x_adv.split(size), y.split(size), strict=True)
        ]
        grads, values, answers = zip(*parts, strict=True)
        return torch.cat(grads), torch.cat(values), torch.cat(answers)
    grad, value, logits = raw_gradient(model, x_adv, y, loss, eot)
    bad = ~rows_are_finite(grad)
    if surrogate_models and bad.any():
        for surrogate in surrogate_models():
            rows = bad.nonzero().squeeze(1)
            draws = eot if surrogate.stochastic else 1
            grad[rows] = raw_gradient(surrogate, x_adv[rows], y[rows], loss, draws)[0]
            bad = ~rows_are_finite(grad)
            if not bad.any():
                break
    return zero_nonfinite(grad), value.nan_to_num(-torch.inf, torch.inf, -torch.inf), logits


def raw_gradient(
    model: Target, x_adv: Tensor, y: Tensor, loss: Loss, eot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient (B,C,H,W), loss (B,) and logits (B,eot,K) as they come, NaN and all.

    The gradient is zero where the graph does not reach the image.
    """
    leaf = x_adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.draws(leaf, eot) if eot > 1 else model(leaf).unsqueeze(1)  # (B,eot,K)
        labels = y.unsqueeze(1).expand(-1, logits.shape[1], *y.shape[1:])
        value = loss(logits, labels).mean(1)
        grad = None
        if value.requires_grad:
            grad = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0]
    if grad is None:
        grad = torch.zeros_like(x_adv)
    return grad, value.detach(), logits.detach()


def zero_nonfinite(grad: Tensor) -> Tensor:
    """The gradient, zero for each example in which it holds a NaN or an infinity.

    No step is ever taken on those.
    """
    return torch.where(rows_are_finite(grad).view(-1, *[1] * (grad.dim() - 1)), grad, 0.0)


def rows_are_finite(grad: Tensor) -> Tensor:
    return grad.flatten(1).isfinite().all(1)


def images_per_gradient(x: Tensor, eot: int) -> int:
    """Images, of `eot` draws each, that are differentiated at once."""
    return max(1, VALUES // (x[0].numel() * eot))


def rows_per_query(x: Tensor) -> int:
    return ROWS.get(x.device.type, ROWS["cpu"])


def images_per_query(x: Tensor, eot: int) -> int:
    """Images in one query of `eot` draws each."""
    return max(1, rows_per_query(x) // eot)


@torch.no_grad()
def margins(model: Target, images: Tensor, y: Tensor) -> Tensor:
    """The margin (B,P) of each of `P` images (B,P,C,H,W) per example, one query each.

    Positive is misclassified.
    """
    flat = images.flatten(0, 1)  # (B*P,C,H,W)
    labels = y.repeat_interleave(images.shape[1])  # (B*P,)
    size = rows_per_query(images)
    parts = zip(flat.split(size), labels.split(size), strict=True)
    return torch.cat([margin(model(part), names) for part, names in parts]).view(images.shape[:2])
