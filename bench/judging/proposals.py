"""What an attack proposes, and what of it the harness accepts. The harness believes no attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.judging.norms import NORMS, to_ball
from bench.judging.target import Target
from bench.questions import registry
from bench.questions.spec import Cell
from bench.results.record import Routes

INVALID = 0.01  # above this share of examples without one finite proposal, the attack failed


class AttackFailed(RuntimeError):
    """The attack gave nothing that can be judged; this is no evidence for the defence."""


@dataclass(frozen=True, slots=True)
class Proposals:
    """The images (M,B,C,H,W) that an attack returned, and their M names where it gave names."""

    images: Tensor
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Images (1+M,B,C,H,W) in ball and box, the clean image first.

    `strayed` (B,) says by how much the proposals left ball or box. It is -1 where a proposal was
    not finite.
    """

    images: Tensor
    strayed: Tensor


def run_attack(cell: Cell, target: Target, x: Tensor, y: Tensor) -> Proposals:
    """Run the attack on copies of `x` (B,C,H,W), of `y` (B,) and of the threat model."""
    attack = registry.find_question(cell.attack.name).make
    with torch.enable_grad():
        threat = replace(cell.threat)
        returned = attack(target, x.clone(), y.clone(), threat, **cell.attack.params)
    if not isinstance(returned, dict):
        return Proposals(stacked(returned, x).detach())
    routes = {name: stacked(images, x) for name, images in returned.items()}
    names = tuple(name for name, images in routes.items() for _ in images)
    return Proposals(torch.cat(list(routes.values())).detach(), names)


def stacked(images: Tensor, x: Tensor) -> Tensor:
    """One proposal (B,C,H,W) as (1,B,C,H,W); several (M,B,C,H,W) as they are."""
    return images if images.dim() > x.dim() else images[None]


def project_candidates(cell: Cell, proposals: Proposals, x: Tensor) -> Candidates:
    """The candidates that the proposals become for the clean images `x` (B,C,H,W).

    A proposal that is not finite becomes the clean image. Raises `AttackFailed` where the proposals
    have another shape than `x`, or where over 1% of the examples have no finite proposal.
    """
    finite = find_finite(cell, proposals, x)  # (M,B)
    images = torch.where(finite[:, :, None, None, None], proposals.images.to(x), x)
    strayed = measure_straying(cell, images, x)
    norm = cell.threat.norm
    eps = float(cell.threat.eps)
    projected = torch.stack([to_ball(proposal, x, norm, eps) for proposal in images])
    return Candidates(
        images=torch.cat([x.unsqueeze(0), projected]),
        strayed=torch.where(finite.all(0), strayed, -1.0),
    )


def find_finite(cell: Cell, proposals: Proposals, x: Tensor) -> Tensor:
    """Whether each proposal (M,B) is finite; AttackFailed where there is nothing to judge."""
    shape = proposals.images.shape
    if shape[1:] != x.shape:
        raise AttackFailed(
            f"attack '{cell.attack.name}' returned shape {tuple(shape)} "
            f"for images of shape {tuple(x.shape)}"
        )
    finite = proposals.images.flatten(2).isfinite().all(2)  # (M,B)
    invalid = ~finite.any(0)  # (B,)
    if invalid.float().mean() > INVALID:
        raise AttackFailed(
            f"attack '{cell.attack.name}' returned images that are not finite "
            f"for {int(invalid.sum())} of {len(x)} examples"
        )
    return finite


def measure_straying(cell: Cell, images: Tensor, x: Tensor) -> Tensor:
    """By how much the worst of the proposals (M,B,C,H,W) left ball or box (B,); 0 is rounding.

    An attack of minimum norm may leave the ball: it looks for the nearest wrong image.
    """
    eps = float(cell.threat.eps)
    minimum_norm = registry.find_question(cell.attack.name).facts.minimum_norm
    radius = float("inf") if minimum_norm else eps
    distance = NORMS[cell.threat.norm].distance
    beyond_ball = torch.stack([distance(proposal - x) - radius for proposal in images])  # (M,B)
    beyond_box = (images - images.clamp(0, 1)).abs().flatten(2).amax(2)  # (M,B)
    beyond = torch.maximum(beyond_ball.clamp_min(0), beyond_box)
    return torch.where(beyond > 1e-6 + 1e-5 * eps, beyond, 0).amax(0)


def routes_of(names: Sequence[str], chosen: Sequence[int]) -> Routes | None:
    """The routes of one batch; None where the attack names none.

    `names` has a name for each proposal. `chosen` has the index of each example's candidate: 0 is
    the clean image, and i is proposal i-1.
    """
    if not names:
        return None
    routes = tuple(dict.fromkeys(names))
    indices = tuple(routes.index(names[i - 1]) if i else -1 for i in chosen)
    return Routes(routes, indices)
