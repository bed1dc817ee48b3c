"""What the cells of one defence on one dataset share: the images, the built defence, its probe."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.data.sample import Dataset, load
from bench.judging import hooks
from bench.judging.border import Border, Conduct, build_behind_border
from bench.judging.containment import Containment
from bench.judging.randomness import random_stream
from bench.judging.surrogates import build_surrogate
from bench.judging.target import Target
from bench.questions import registry
from bench.questions.spec import Cell, Spec

PROBED = 64  # examples that the probe looks at
TRIED = 2  # examples on which a memory layout is tried


@dataclass(frozen=True, slots=True)
class Setup:
    """The images on the CPU, the defence on `device`, what the probe found, and its conduct."""

    data: Dataset
    defence: Border
    device: torch.device
    probe: hooks.ProbeResult
    conduct: Conduct

    @property
    def stochastic(self) -> bool:
        return self.probe.stochastic

    def take(self, rows: slice) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Images (B,C,H,W) and labels (B,) on the device, and the ids, of some rows of the data."""
        x = self.data.x[rows].to(self.device)
        y = self.data.y[rows].to(self.device)
        return x, y, tuple(self.data.ids[rows].tolist())


def prepare(cell: Cell, device: str, data_dir: str) -> Setup:
    """The setup of a cell; kept for the next cell of the same defence, images and eps."""
    eps = float(cell.threat.eps) if cell.threat.norm == "linf" else 0.0
    return _prepare(cell.dataset, cell.defence, eps, device, data_dir)


@functools.lru_cache(maxsize=2)
def _prepare(dataset: Spec, spec: Spec, eps: float, device: str, data_dir: str) -> Setup:
    data = load_cached(dataset, data_dir)
    place = torch.device(device)
    x = data.x[:PROBED].to(place)
    y = data.y[:PROBED].to(place)
    declared = registry.is_stochastic(spec)
    with Containment() as row:
        defence = build_behind_border(partial(registry.build_defence, spec), x[:TRIED])
        with random_stream(place, "probe", str(dataset), str(spec)):
            probe = hooks.probe_defence(defence, x, y, eps, declared=declared)
    return Setup(data, defence, place, probe, row.conduct + defence.take_conduct())


@functools.lru_cache(maxsize=4)
def load_cached(dataset: Spec, data_dir: str) -> Dataset:
    """The images of a dataset; those of the last four asked for are kept.

    What its factory changes in the process is put back.
    """
    with Containment(spared=("sys.path",)):
        return load(dataset, data_dir=Path(data_dir))


def forget() -> None:
    """Load and build anew: files may have changed since the last run of this process."""
    load_cached.cache_clear()
    _prepare.cache_clear()


def make_target(cell: Cell, setup: Setup) -> Target:
    """The defence behind the access of the threat model; the surrogate for a transfer attack."""
    if cell.threat.access == "transfer":
        x, _, _ = setup.take(slice(0, TRIED))
        build = partial(build_surrogate, str(cell.attack.params["source"]))
        surrogate = build_behind_border(build, x)
        surrogate.report_to(setup.defence)
        return Target(surrogate, classes=setup.data.classes, device=setup.device)
    return Target(
        setup.defence,
        access=cell.threat.access,
        stochastic=setup.stochastic,
        classes=setup.data.classes,
        device=setup.device,
    )


def batch_count(cell: Cell, size: int) -> int:
    """The number of batches of the cell's fixed grid over `size` examples."""
    return -(-size // cell.batch)
