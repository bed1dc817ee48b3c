"""FAB through pyautoattack, as an attack of its own.

Within AutoAttack it sees what the attacks before it have left, and tells no distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.attacks.decision import move_to_eps
from bench.attacks.minimal import HALVINGS, nearest_and_at_eps
from bench.attacks.via_autoattack import NAMES, LibraryModel, silence_library
from bench.judging.norms import NORMS
from bench.judging.target import Target, is_correct
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel


def fab_calls(knobs: Mapping[str, Any], stochastic: bool) -> int:
    """Per run a forward, a backward and a check a step, two forwards before and one after."""
    runs = int(knobs["targets"]) * int(knobs["restarts"])
    draws = int(knobs["eot"]) if stochastic else 1
    return (1 + runs * (4 * int(knobs["steps"]) + 3)) * draws + HALVINGS


@attack(
    "fab",
    norms={"linf", "l2", "l1"},
    access="white-box",
    family="gradient",
    minimum_norm=True,
    calls=fab_calls,
)
def fab(
    model: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    eot: int = 4,
) -> Tensor:
    """Projections onto the linearised boundary, biased towards the image.

    There are `restarts` runs for each of the `targets` wrong classes with the highest logits. All
    but the first run of a class start from a random point at half of eps. On a deterministic
    defence an example leaves when a point inside the ball is found. On a stochastic one each query
    is the mean logits of `eot` draws.

    Returns the nearest point found, and the one in its direction at distance eps (2,B,C,H,W). On a
    stochastic defence the nearest point is the luckiest one. There, what every run found follows,
    at distance eps (2+runs,B,C,H,W).

    Croce and Hein 2020, arXiv:1907.02044.
    """
    from pyautoattack.fab_pt import FABAttack_PT

    silence_library()
    x = x.contiguous()
    eps = float(threat.eps)
    library_model = LibraryModel(model, eot if model.stochastic else 1)
    library = FABAttack_PT(
        library_model, norm=NAMES[threat.norm], n_iter=steps, eps=eps, device=model.device
    )
    with torch.no_grad():
        best = x.clone()  # (B,C,H,W), the nearest misclassified points
        unsolved = is_correct(library_model(x), y) | model.stochastic
        radius = torch.where(unsolved, torch.inf, 0.0)  # (B,), of the best points
        at_eps = []
        for run in range(min(targets, model.classes - 1) * restarts):
            rows = ((radius > eps) | model.stochastic).nonzero().squeeze(1)  # (R,)
            if not len(rows):
                break
            # counted from the highest logit, which is the label's
            library.target_class = run // restarts + 2
            points = library.attack_single_run(
                x[rows], y[rows], use_rand_start=run % restarts > 0, is_targeted=True
            ).detach()
            if model.stochastic:
                at_eps.append(move_to_eps(points, x, threat.norm, eps))
            distance = NORMS[threat.norm].distance(points - x[rows])
            wrong = ~is_correct(library_model(points), y[rows])
            nearer = wrong & (distance < radius[rows])
            best[rows[nearer]] = points[nearer]
            radius[rows[nearer]] = distance[nearer]
    candidates = nearest_and_at_eps(model, x, y, best, threat, radius.isfinite())
    if at_eps:
        return torch.cat([candidates, torch.stack(at_eps)])
    return candidates
