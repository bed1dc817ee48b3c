"""The four norms as a table: distance, projection, random start, steepest direction, ascent step.

Attacks, harness and tests share the table. Perturbations are tensors (B,C,H,W); distances are (B,).
`linf`, `l2` and `l1` are in pixel units of [0,1]. `l0` counts pixels, and a pixel is changed if any
of its channels is. Gradients must be finite: the caller zeroes the examples where they are not. A
zero gradient gives a zero step, never a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Norm:
    """What an attack needs to know of a norm.

    - `distance(delta)` -> (B,).
    - `project(delta, eps)`: the nearest point of the ball; for l0 the `floor(eps)` largest pixels
      are kept.
    - `random_start(x, eps)`: a perturbation uniform in the ball, from the global generator, not
      clipped to the box. For l0 the pixels and their new values are uniform.
    - `steepest(grad)`: the direction of unit norm along which a loss with this gradient rises
      fastest.
    - `ascend(x_adv, grad, x, eps, size)`: the image after one such step of length `size`, back in
      the ball around `x` and in the box. Coordinates that the box blocks take no part in it. For l1
      the step fills the steepest coordinates one after the other up to the box. For l0 it moves
      `size` pixels (at least one) to the corner of the box, each in the place of the least useful
      changed one.
    """

    distance: Callable[[Tensor], Tensor]
    project: Callable[[Tensor, float], Tensor]
    random_start: Callable[[Tensor, float], Tensor]
    steepest: Callable[[Tensor], Tensor]
    ascend: Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


def to_ball(x_adv: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """The image in the `norm` ball of radius `eps` around `x` and in [0,1].

    Images inside come back as they are. The image is clipped to the box first, and projected then.
    A projection moves every pixel towards `x`, which lies in the box: so the image stays there.
    Nothing of the ball is spent on what the box would cut. The result is rounded to float32 towards
    `x`: so the distance, taken exactly, is at most eps.
    """
    kind = NORMS[norm]
    centre = x.double()
    clipped = x_adv.double().clamp(0, 1)
    delta = clipped - centre  # (B,C,H,W)
    outside = per_example(kind.distance(delta) > eps, x)
    exact = torch.where(outside, centre + kind.project(delta, eps), clipped).clamp(0, 1)
    rounded = exact.to(x.dtype)
    farther = (rounded.double() - centre).abs() > (exact - centre).abs()
    return torch.where(farther, torch.nextafter(rounded, x), rounded)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B,1,1,1)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def free(grad: Tensor, x_adv: Tensor) -> Tensor:
    """The gradient without the coordinates that the box [0,1] blocks."""
    blocked = ((x_adv <= 0) & (grad < 0)) | ((x_adv >= 1) & (grad > 0))
    return grad.masked_fill(blocked, 0)


def _linf_distance(delta: Tensor) -> Tensor:
    return delta.abs().flatten(1).amax(1)


def _l2_distance(delta: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return length


def _l1_distance(delta: Tensor) -> Tensor:
    return delta.abs().flatten(1).sum(1)


def _l0_distance(delta: Tensor) -> Tensor:
    return (delta != 0).any(1).flatten(1).sum(1).to(delta.dtype)


def _linf_project(delta: Tensor, eps: float) -> Tensor:
    return delta.clamp(-eps, eps)


def _l2_project(delta: Tensor, eps: float) -> Tensor:
    length = _l2_distance(delta)
    shrinking = eps / length.clamp_min(torch.finfo(delta.dtype).tiny)
    return delta * per_example(torch.where(length > eps, shrinking, 1.0), delta)


def _l1_project(delta: Tensor, eps: float) -> Tensor:
    """Soft threshold at the level that leaves the sum at `eps` (Duchi et al. 2008)."""
    sizes = delta.abs().flatten(1)  # (B,D)
    ordered = sizes.sort(dim=1, descending=True)[0]  # (B,D)
    over = ordered.cumsum(1) - eps  # (B,D)
    count = torch.arange(1, sizes.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    kept = (ordered * count > over).sum(1, keepdim=True).clamp_min(1)  # (B,1)
    level = over.gather(1, kept - 1) / kept  # (B,1)
    shrunk = (sizes - level.clamp_min(0)).clamp_min(0)  # (B,D)
    return (delta.sign().flatten(1) * shrunk).view_as(delta)


def _l0_project(delta: Tensor, eps: float) -> Tensor:
    kept = largest((delta**2).sum(1), math.floor(eps))  # (B,H,W)
    return delta * kept.unsqueeze(1)


def largest(scores: Tensor, k: int) -> Tensor:
    """A mask (B,H,W) of the `k` pixels with the highest scores (B,H,W)."""
    flat = scores.flatten(1)  # (B,H*W)
    top = flat.topk(min(k, flat.shape[1]), dim=1)[1]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top, True).view_as(scores)


def _linf_start(x: Tensor, eps: float) -> Tensor:
    return (2 * torch.rand_like(x) - 1) * eps


def _l2_start(x: Tensor, eps: float) -> Tensor:
    radius = torch.rand(len(x), device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
    return _l2_steepest(torch.randn_like(x)) * per_example(radius * eps, x)


def _l1_start(x: Tensor, eps: float) -> Tensor:
    """Exponential shares of D+1 coordinates, of which one is dropped, are uniform in the simplex.

    The signs are free.
    """
    uniform = torch.rand(len(x), x[0].numel() + 1, device=x.device, dtype=x.dtype)  # (B,D+1)
    shares = -uniform.clamp_min(1e-30).log()
    shares = (shares / shares.sum(1, keepdim=True))[:, 1:].view_as(x)
    return shares * torch.where(torch.rand_like(x) < 0.5, -eps, eps)


def _l0_start(x: Tensor, eps: float) -> Tensor:
    delta = torch.rand_like(x) - x  # to a uniform value
    pixels = largest(torch.rand_like(x[:, 0]), math.floor(eps))  # (B,H,W)
    return delta * pixels.unsqueeze(1)


def _linf_steepest(grad: Tensor) -> Tensor:
    return grad.sign()


def _l2_steepest(grad: Tensor) -> Tensor:
    # Scaled by the largest entry first: else the squares of small gradients underflow in float32.
    scaled = grad / per_example(_linf_distance(grad), grad).clamp_min(torch.finfo(grad.dtype).tiny)
    return scaled / per_example(_l2_distance(scaled), grad).clamp_min(1e-12)


def _l1_steepest(grad: Tensor) -> Tensor:
    flat = grad.flatten(1)
    top = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top).sign()).view_as(grad)


def _l0_steepest(grad: Tensor) -> Tensor:
    return grad.sign() * largest(grad.abs().sum(1), 1).unsqueeze(1)


def _linf_ascend(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, size: float) -> Tensor:
    return to_ball(x_adv + size * _linf_steepest(grad), x, "linf", eps)


def _l2_ascend(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, size: float) -> Tensor:
    return to_ball(x_adv + size * _l2_steepest(free(grad, x_adv)), x, "l2", eps)


def _l1_ascend(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, size: float) -> Tensor:
    gradient = free(grad, x_adv)  # (B,C,H,W)
    room = torch.where(gradient > 0, 1 - x_adv, x_adv).flatten(1)  # (B,D), up to the box
    steepness, order = gradient.abs().flatten(1).sort(dim=1, descending=True)  # (B,D)
    offered = room.gather(1, order) * (steepness > 0)
    spent_before = offered.cumsum(1) - offered
    taken = torch.minimum(offered, (size - spent_before).clamp_min(0))
    step = torch.zeros_like(room).scatter_(1, order, taken).view_as(x) * gradient.sign()
    return to_ball(x_adv + step, x, "l1", eps)


def _l0_ascend(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, size: float) -> Tensor:
    corner = torch.where(grad > 0, 1.0, torch.where(grad < 0, 0.0, x_adv))  # (B,C,H,W)
    gain = (grad * (corner - x)).sum(1)  # (B,H,W), what the pixel is worth at its best value
    changed = (x_adv != x).any(1)  # (B,H,W)
    pixels = math.floor(eps)
    swaps = min(max(1, round(size)), pixels)
    pool = changed
    if swaps:
        pool = changed | largest(gain.masked_fill(changed, -torch.inf), swaps)
    kept = largest(gain.masked_fill(~pool, -torch.inf), pixels) & pool
    moved = torch.where(kept.unsqueeze(1), corner, x)
    is_flat = per_example((grad == 0).flatten(1).all(1), grad)
    return torch.where(is_flat, x_adv, moved)


NORMS = {
    "linf": Norm(_linf_distance, _linf_project, _linf_start, _linf_steepest, _linf_ascend),
    "l2": Norm(_l2_distance, _l2_project, _l2_start, _l2_steepest, _l2_ascend),
    "l1": Norm(_l1_distance, _l1_project, _l1_start, _l1_steepest, _l1_ascend),
    "l0": Norm(_l0_distance, _l0_project, _l0_start, _l0_steepest, _l0_ascend),
}
