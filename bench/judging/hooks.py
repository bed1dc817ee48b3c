"""What later rooms give to judging, which imports neither: the probe and the runner of checks.

`bench.soundness.probes` and `bench.checks` register their functions here when they are imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from bench.questions.spec import Cell
from bench.results.record import Env, Flag, Record

if TYPE_CHECKING:
    from bench.judging.setup import Setup


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a look at a live defence found.

    `stochastic`: two calls on the same images differ, or are declared to. `checks` has the figures
    of the checks that give one, by the code of the check.
    """

    stochastic: bool
    flags: tuple[Flag, ...] = ()
    checks: tuple[tuple[str, float], ...] = ()


class Probe(Protocol):
    """Look at a defence on images x (B,C,H,W) of labels y (B,).

    `eps` is the radius in linf, or 0. `declared` is whether its plug-in says that it is stochastic.
    """

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, eps: float, *, declared: bool
    ) -> ProbeResult: ...


# (cell, setup, index of the batch, env) -> Record
CheckRunner = Callable[[Cell, "Setup", int, Env], Record]

_probes: list[Probe] = []
_check_runners: list[CheckRunner] = []


def register_probe(probe: Probe) -> Probe:
    """Make `probe` the one that `probe_defence` calls."""
    _probes[:] = [probe]
    return probe


def register_check_runner(runner: CheckRunner) -> CheckRunner:
    """Make `runner` the one that `run_check` calls."""
    _check_runners[:] = [runner]
    return runner


def probe_defence(
    defence: nn.Module, x: Tensor, y: Tensor, eps: float, *, declared: bool
) -> ProbeResult:
    """Probe a defence; RuntimeError where no probe is registered, for no defence goes unprobed."""
    if not _probes:
        raise RuntimeError("no probe is registered: import the plug-ins first (registry.discover)")
    return _probes[0](defence, x, y, eps, declared=declared)


def run_check(cell: Cell, setup: Setup, index: int, env: Env) -> Record:
    """Answer one batch of a cell that asks a check."""
    if not _check_runners:
        raise RuntimeError("checks have no runner: import the plug-ins first (registry.discover)")
    return _check_runners[0](cell, setup, index, env)
