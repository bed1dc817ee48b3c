"""FAB through pyautoattack, as an attack of its own: within AutoAttack it sees what the attacks before it have left, and tells no distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.attacks.decision import reach
from bench.attacks.minimal import HALVINGS, both
from bench.attacks.via_autoattack import NAMES, Seen, quiet
from bench.judging.norms import NORMS
from bench.judging.target import Target, is_correct
from bench.questions.registry import attack
from bench.questions.spec import ThreatModel


def passes(knobs: Mapping[str, Any], stochastic: bool) -> int:
    """Per run a forward, a backward and a check for each step, two forwards before and one after."""
    runs = int(knobs["targets"]) * int(knobs["restarts"])
    return (1 + runs * (4 * int(knobs["steps"]) + 3)) * (
        int(knobs["eot"]) if stochastic else 1
    ) + HALVINGS


@attack(
    "fab",
    norms={"linf", "l2", "l1"},
    access="white-box",
    family="gradient",
    minimum_norm=True,
    calls=passes,
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
    """Projections onto the linearised boundary, biased towards the image, for each of the `targets` wrong classes with the highest logits.

    `restarts` runs for each class, all but the first from a random point at half of eps. On a deterministic defence an example leaves when
    a point inside the ball is found. Returns the nearest point found, and the one in its direction at distance eps (2,B,C,H,W). On a
    stochastic defence each query is the mean logits of `eot` draws, and as the nearest point is the luckiest one, what every run found
    follows, at distance eps (2+runs,B,C,H,W). Croce and Hein 2020, arXiv:1907.02044.
    """
    from pyautoattack.fab_pt import FABAttack_PT

    quiet()
    x = x.contiguous()
    eps, distance = float(threat.eps), NORMS[threat.norm].distance
    seen = Seen(model, eot if model.stochastic else 1)
    run = FABAttack_PT(seen, norm=NAMES[threat.norm], n_iter=steps, eps=eps, device=model.device)
    with torch.no_grad():
        best, ahead = x.clone(), []
        radius = torch.where(is_correct(seen(x), y) | model.stochastic, torch.inf, 0.0)
        for target in range(min(targets, model.classes - 1)):
            for restart in range(restarts):
                rows = (
                    (radius > eps).nonzero().squeeze(1)
                    if not model.stochastic
                    else torch.arange(len(x), device=x.device)
                )
                if not len(rows):
                    break
                run.target_class = (
                    target + 2
                )  # counted from the highest logit, which is the label's
                made = run.attack_single_run(
                    x[rows], y[rows], use_rand_start=restart > 0, is_targeted=True
                ).detach()
                if model.stochastic:
                    ahead.append(reach(made, x, threat.norm, eps))
                length = distance(made - x[rows])
                nearer = ~is_correct(seen(made), y[rows]) & (length < radius[rows])
                best[rows[nearer]], radius[rows[nearer]] = made[nearer], length[nearer]
    found = both(model, x, y, best, threat, radius.isfinite())
    return torch.cat([found, torch.stack(ahead)]) if ahead else found
