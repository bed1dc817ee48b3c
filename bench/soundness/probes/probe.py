"""The probes of one live defence before any attack: what would make a gradient unbelievable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.judging.border import Border
from bench.judging.hooks import ProbeResult, register_probe
from bench.results.record import Flag
from bench.soundness.probes.gradients import (
    has_surrogate,
    probe_differences,
    probe_gradients,
    probe_repeated_gradient,
)
from bench.soundness.probes.numerics import (
    probe_optimisation,
    probe_precision,
    probe_saturation,
)
from bench.soundness.probes.outputs import probe_finite_logits, probe_outputs
from bench.soundness.probes.state import (
    is_deterministic,
    probe_company,
    probe_determinism,
    probe_randomness,
    probe_side_effects,
    probe_training_mode,
)


@register_probe
def probe(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, declared: bool) -> ProbeResult:
    """Run every probe on images x (n,C,H,W) in [0,1] with labels y (n,).

    `declared` is whether the plug-in calls the defence stochastic. The order of the probes is
    fixed, since each draws from the same random stream.
    """
    defence = model if isinstance(model, Border) else Border(model)
    with torch.no_grad():
        stochastic = not is_deterministic(defence, x)
    flags = probe_determinism(stochastic, declared)
    if not stochastic:
        flags += probe_repeated_gradient(defence, x, y)
    flags += probe_training_mode(defence)
    flags += probe_side_effects(defence, x)
    flags += probe_finite_logits(defence, x)
    flags += probe_gradients(defence, x, y, eps)
    unseeded, randomness_flags = probe_randomness(defence, x)
    flags += randomness_flags
    error = None
    if not unseeded:
        error, difference_flags = probe_differences(defence, x, y, eps)
        flags += difference_flags
    flags += probe_company(defence, x, y, stochastic)
    flags += probe_outputs(defence, x, eps, has_surrogate(defence))
    if "D1" not in codes_of(flags):  # which says the same as P8, and more
        flags += probe_saturation(defence, x, eps)
    if not stochastic and "P2" not in codes_of(flags):
        flags += probe_precision(defence, x, y)
    optimises, optimisation_flags = probe_optimisation(defence, x)
    if not unseeded:  # else two answers differ whatever the gradients do
        flags += optimisation_flags
    figures = []
    if error is not None:
        figures.append(("D12", round(error, 4)))
    if optimises:
        figures.append(("P14", 1.0))
    return ProbeResult(stochastic or declared, tuple(flags), tuple(figures))


def codes_of(flags: list[Flag]) -> set[str]:
    return {flag.id for flag in flags}
