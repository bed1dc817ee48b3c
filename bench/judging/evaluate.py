"""Answer a cell: attack, project, select, judge. The attack proposes; nothing that it says is believed."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.checks.target import CheckTarget
from bench.data.sample import Dataset, load
from bench.judging.certificates import certify
from bench.judging.clock import time_prediction
from bench.judging.norms import NORMS, to_ball
from bench.judging.randomness import random_stream
from bench.judging.surrogates import build_surrogate
from bench.judging.target import Target, is_correct, margin, predict_draws, to_device_channels_last
from bench.questions import registry
from bench.questions.spec import Cell, Spec
from bench.results.names import MEASURES, family
from bench.results.record import (
    Certificate,
    Cost,
    Env,
    Flag,
    Planted,
    Record,
    Routes,
    joined,
    realigned,
    rejoined,
    replanted,
)
from bench.soundness.probes.probe import Probe, probe

JUDGING_BATCH = (
    5  # draws judged in one batch: fixed, since it decides which random number goes where
)
PROBED = 64  # examples that the probes look at
INVALID = 0.01  # above this share of examples without one finite candidate, the attack failed


class AttackFailed(RuntimeError):
    """The attack gave nothing that can be judged; this is no evidence for the defence."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What the cells of one defence on one dataset share: images, the built defence, what the probes found."""

    data: Dataset
    defence: nn.Module
    stochastic: bool
    flags: tuple[Flag, ...]
    checks: tuple[tuple[str, float], ...]


def batch_count(cell: Cell, size: int) -> int:
    """The number of batches of the cell's fixed grid over `size` examples."""
    return -(-size // cell.batch)


def rows_of(cell: Cell, index: int) -> slice:
    """The examples of one batch of the grid; a check whose figures are of all of its examples together has them all in the first."""
    if cell.attack.name in MEASURES:
        return slice(0, int(cell.attack.params["examples"]) if index == 0 else 0)
    return slice(index * cell.batch, (index + 1) * cell.batch)


def evaluate(
    cell: Cell,
    part: Sequence[int] | None = None,
    *,
    device: str = "cpu",
    data_dir: str = "data",
    env: Env | None = None,
) -> Record:
    """Answer the cell, or the batches `part` of its fixed grid: parts merge into the same record, whoever computes them.

    Raises whatever the attack or the defence raises, and `AttackFailed` where over 1% of the proposals hold nothing finite.
    """
    at = torch.device(device)
    bench = prepare(
        cell.dataset, cell.defence, float(cell.threat.eps), cell.threat.norm, device, data_dir
    )
    grid = range(batch_count(cell, len(bench.data.x)))
    columns: dict[str, list[float]] = {
        name: []
        for name in ("ids", "clean", "selected", "margin", "correct", "distance", "strayed")
    }
    target = make_target(cell, bench, at)
    spent = [0, 0, 0, 0]
    seconds = 0.0
    times: tuple[float | None, float | None] = (None, None)
    certificates: list[Certificate | None] = []
    routes: list[Routes | None] = []
    plantings: list[Planted | None] = []
    nearest: list[tuple[float, ...] | None] = []
    measured: dict[str, float] = {}
    for index in grid if part is None else part:
        rows = rows_of(cell, index)
        x, y = bench.data.x[rows].to(at), bench.data.y[rows].to(at)
        start = time.perf_counter()
        if family(cell) == "check":
            found, planting, calls, figures = run_check(cell, bench, x, y, rows.start, at)
            plantings.append(planting)
            measured |= figures
            spent = [a + b for a, b in zip(spent, calls, strict=True)]
            seconds += time.perf_counter() - start
        else:
            with random_stream(at, cell.key, index, "attack"):
                made, names = run_attack(cell, target, x, y)
                candidates, strayed = project_candidates(cell, made, x)
            seconds += time.perf_counter() - start
            with torch.no_grad():
                found = select_and_judge(cell, bench.defence, candidates, y, index, at)
                nearest.append(minimum_distances(cell, bench.defence, made, x, y, index, at))
            routes.append(routes_of(names, found.pop("chosen").tolist()))
            found["strayed"] = strayed
        found["ids"] = bench.data.ids[rows][: len(found["correct"])]
        for name, column in columns.items():
            column += found[name].tolist()
        if cell.attack.name == "none":
            with random_stream(at, cell.key, index, "certify"):
                certificates.append(certify(bench.defence, x, y))
        if cell.attack.name == "none" and index == 0:
            times = (
                time_prediction(bench.defence, x),
                time_prediction(getattr(bench.defence, "base", bench.defence), x),
            )
    forwards, backwards, nonfinite, zero = (
        a + b for a, b in zip(spent, counts(target), strict=True)
    )
    cost = Cost(
        round(seconds, 3),
        forwards,
        backwards,
        nonfinite,
        zero,
        *times,
        parameters=sum(p.numel() for p in bench.defence.parameters()),
    )
    rounded = {
        name: tuple(float(f"{v:.6g}") for v in columns[name])
        for name in ("margin", "distance", "strayed")
    }
    counted = {
        name: tuple(int(v) for v in columns[name])
        for name in ("ids", "clean", "selected", "correct")
    }
    first = part is None or 0 in part
    told_of = tuple(
        sorted(
            (*bench.checks, *((name, float(f"{value:.4g}")) for name, value in measured.items()))
        )
    )
    flags, checks = (bench.flags, told_of) if first else ((), ())
    order = range(len(counted["ids"]))
    told: dict[str, Any] = {
        "certificate": joined(certificates, order),
        "routes": rejoined(routes, order),
        "nearest": realigned(nearest, order),
    }
    told |= {"planted": replanted(plantings, order)}
    return Record(
        cell=cell,
        cost=cost,
        flags=flags,
        env=env or Env(),
        checks=checks,
        **told,
        **rounded,
        **counted,
    )  # type: ignore[arg-type]


@functools.lru_cache(maxsize=2)
def prepare(dataset: Spec, spec: Spec, eps: float, norm: str, device: str, data_dir: str) -> Setup:
    """Load the images, build the defence on `device` and probe it; kept for the next cell of the same defence."""
    data = load_cached(dataset, data_dir)
    at = torch.device(device)
    defence = to_device_channels_last(registry.build_defence(spec), at)
    x, y = data.x[:PROBED].to(at), data.y[:PROBED].to(at)
    with random_stream(at, "probe", str(dataset), str(spec)):
        found: Probe = probe(
            defence, x, y, eps if norm == "linf" else 0.0, declared=registry.is_stochastic(spec)
        )
    return Setup(data, defence, found.stochastic, found.flags, found.checks)


@functools.lru_cache(maxsize=1)
def load_cached(dataset: Spec, data_dir: str) -> Dataset:
    return load(dataset, data_dir=Path(data_dir))


def run_check(
    cell: Cell, bench: Setup, x: Tensor, y: Tensor, first: int, at: torch.device
) -> tuple[dict[str, Tensor], Planted | None, list[int], dict[str, float]]:
    """The columns of a check on images `x`, the first of which has the number `first` in the cell; what was planted; the calls; and the figures.

    One image at a time, where the check has an attack inside: each has a model of its own, and attacks drop images from a batch without a word about
    which. Images beyond the check's number of `examples` are left out.
    """
    entry = registry.attacks.get(cell.attack.name)
    limit = min(first + len(x), int(cell.attack.params.get("examples", first + len(x))))
    rows: list[dict[str, Tensor]] = []
    calls = [0, 0, 0, 0]
    figures: dict[str, float] = {}
    together = 1 if registry.inner_attack(cell.attack) else max(1, len(x))
    for number in range(first, limit, together):
        images, labels = (
            all_of_them[number - first : number - first + together] for all_of_them in (x, y)
        )
        given = (bench.defence, images, labels, cell.threat, bench.data.classes, bench.stochastic)
        with (
            random_stream(at, cell.key, number, "attack"),
            entry.make(*given, **cell.attack.params) as trial,
        ):
            row, more, found = run_inner_attack(cell, trial, images, number, at)
        rows.append(row)
        calls = [a + b for a, b in zip(calls, more, strict=True)]
        figures = {
            name: figures.get(name, 0.0) + found.get(name, 0.0) for name in {**figures, **found}
        }
    names = rows[0] if rows else ("clean", "selected", "margin", "correct", "distance", "strayed")
    columns = {name: torch.cat([x.new_zeros(0), *(row[name] for row in rows)]) for name in names}
    planted = [
        tuple(int(v) for v in columns.pop(name))
        for name in ("valid", "found", "random")
        if name in columns
    ]
    return columns, Planted(*planted) if planted else None, calls, figures


def run_inner_attack(
    cell: Cell, trial: CheckTarget | None, x: Tensor, number: int, at: torch.device
) -> tuple[dict[str, Tensor], tuple[int, int, int, int], dict[str, float]]:
    """Run the attack inside of a check on its trial and judge it there, then measure; the columns are those of no attack where there is no trial."""
    zero = torch.zeros(1, device=at)
    if trial is None:
        columns = {
            "clean": zero + cell.select,
            "selected": zero + cell.select,
            "correct": zero + cell.draws,
        }
        return (
            columns
            | dict.fromkeys(("margin", "distance", "strayed", "valid", "found", "random"), zero),
            (0, 0, 0, 0),
            {},
        )
    inside = registry.inner_attack(cell.attack)
    if inside and not trial.stochastic and "eot" in inside.params:  # all draws are the same
        inside = Spec.of(inside.name, {**inside.params, "eot": 1})
    access = registry.attacks.get((inside or cell.attack).name).facts["access"]
    target = Target(
        trial.model, access=access, stochastic=trial.stochastic, classes=trial.classes, device=at
    )
    asked = replace(cell, attack=inside or Spec("none"), threat=replace(cell.threat, access=access))
    candidates, strayed, _ = propose_candidates(asked, target, x, trial.y)
    with torch.no_grad():
        columns = {
            **select_and_judge(cell, trial.model, candidates, trial.y, number, at),
            "strayed": strayed,
        }
        best = candidates[columns.pop("chosen"), 0]
        if trial.random is not None:
            with random_stream(at, cell.key, number, "evaluate"):
                hits, _ = count_correct(
                    trial.model, best, 1 - trial.y, cell.draws
                )  # what is neither class, an abstention, is no find
            columns |= {
                "correct": cell.draws - hits,
                "valid": zero + 1,
                "found": 2 * hits > cell.draws,
                "random": zero + trial.random,
            }
    figures = trial.measure(target, 2 * columns["correct"] > cell.draws) if trial.measure else {}
    return columns, counts(target), figures


def counts(target: Target) -> tuple[int, int, int, int]:
    """Forwards, backwards, and of these those that were not finite, or zero."""
    return target.forwards, target.backwards, target.nonfinite, target.zero


def make_target(cell: Cell, bench: Setup, at: torch.device) -> Target:
    """The defence behind the access that the threat model grants; for transfer, the surrogate that the attack names."""
    if cell.threat.access == "transfer":
        return Target(
            to_device_channels_last(build_surrogate(str(cell.attack.params["source"])), at),
            classes=bench.data.classes,
            device=at,
        )
    return Target(
        bench.defence,
        access=cell.threat.access,
        stochastic=bench.stochastic,
        classes=bench.data.classes,
        device=at,
    )


def propose_candidates(
    cell: Cell, target: Target, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, list[str]]:
    """Run the attack on copies of `x` and `y`; return candidates (m,B,C,H,W), the clean image first, by how much the proposals strayed (B,), and
    the names of the m candidates where the attack gives names, else nothing.
    """
    made, names = run_attack(cell, target, x, y)
    return *project_candidates(cell, made, x), names


def run_attack(cell: Cell, target: Target, x: Tensor, y: Tensor) -> tuple[Tensor, list[str]]:
    """What the attack proposes (m,B,C,H,W), as it gave it, and the names of these behind `clean` where it gives names, else nothing."""
    entry = registry.attacks.get(cell.attack.name)
    with torch.enable_grad():
        given: Tensor | dict[str, Tensor] = entry.make(
            target, x.clone(), y.clone(), cell.threat, **cell.attack.params
        )
    several = (
        {
            name: several if several.dim() > x.dim() else several[None]
            for name, several in given.items()
        }
        if isinstance(given, dict)
        else {}
    )
    names = (
        ["clean", *(name for name, images in several.items() for _ in images)] if several else []
    )
    made = (torch.cat(list(several.values())) if isinstance(given, dict) else given).detach()
    return made.unsqueeze(0) if made.dim() == x.dim() else made, names


def project_candidates(cell: Cell, made: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates (1+m,B,C,H,W) that proposals (m,B,C,H,W) become, and by how much the proposals strayed (B,).

    The clean image comes first; all lie in the ball and the box. A proposal that is not finite becomes the clean image; strayed is -1 for it.
    """
    norm, eps = cell.threat.norm, float(cell.threat.eps)
    if made.shape[1:] != x.shape:
        raise AttackFailed(
            f"attack '{cell.attack.name}' returned shape {tuple(made.shape)} for images of shape {tuple(x.shape)}"
        )
    finite = made.flatten(2).isfinite().all(2)  # (m, B)
    if (~finite.any(0)).float().mean() > INVALID:
        raise AttackFailed(
            f"attack '{cell.attack.name}' returned images that are not finite for {int((~finite.any(0)).sum())} of {len(x)} examples"
        )
    made = torch.where(finite[:, :, None, None, None], made.to(x), x)
    reach = float("inf") if registry.attacks.get(cell.attack.name).facts["minimal"] else eps
    out = torch.stack([NORMS[norm].distance(one - x) - reach for one in made]).clamp_min(0)
    out = torch.maximum(out, (made - made.clamp(0, 1)).abs().flatten(2).amax(2))
    strayed = torch.where(out > 1e-6 + 1e-5 * eps, out, 0).amax(0)
    inside = torch.stack([to_ball(one, x, norm, eps) for one in made])
    return torch.cat([x.unsqueeze(0), inside]), torch.where(finite.all(0), strayed, -1.0)


def minimum_distances(
    cell: Cell, defence: nn.Module, made: Tensor, x: Tensor, y: Tensor, index: int, at: torch.device
) -> tuple[float, ...] | None:
    """Of an attack of minimal norm: per example the distance of the nearest of its proposals (m,B,C,H,W), in the ball or not, that at least half of
    the selection draws call wrong; -1 where none is. Else None.
    """
    if not registry.attacks.get(cell.attack.name).facts["minimal"]:
        return None
    least = torch.full((len(x),), torch.inf, device=at)
    for images in torch.where(made.isfinite(), made.to(x), x).clamp(0, 1):
        with random_stream(at, cell.question, index, "select"):
            hits, _ = count_correct(defence, images, y, cell.select)
        distance = NORMS[cell.threat.norm].distance(images - x).to(least)
        least = torch.where(2 * hits <= cell.select, torch.minimum(least, distance), least)
    return tuple(float(f"{v:.6g}") for v in least.nan_to_num(posinf=-1).tolist())


def routes_of(names: Sequence[str], chosen: Sequence[int]) -> Routes | None:
    """The routes of one batch, from the name of each candidate and the index of the one that was chosen for each example."""
    if not names:
        return None
    order = list(dict.fromkeys(names[1:]))
    return Routes(tuple(order), tuple(order.index(names[i]) if i else -1 for i in chosen))


def select_and_judge(
    cell: Cell, defence: nn.Module, candidates: Tensor, y: Tensor, index: int, at: torch.device
) -> dict[str, Tensor]:
    """Choose each example's strongest candidate on the stream `select`, then judge that one on the stream `evaluate`.

    Strongest: fewest right answers, then the largest mean margin, then the first. All candidates, of every attack on the same defence,
    meet the same selection draws (common random numbers); the evaluation draws are the cell's own and nobody has seen them.
    """
    hits, margins = [], []
    for candidate in candidates:
        with random_stream(at, cell.question, index, "select"):
            hit, gap = count_correct(defence, candidate, y, cell.select)
        hits.append(hit)
        margins.append(gap)
    right_of, margin_of = torch.stack(hits), torch.stack(margins)  # (m, B)
    tied = right_of == right_of.amin(0)
    best = torch.where(tied, margin_of, -torch.inf).argmax(0)
    rows = torch.arange(len(y), device=at)
    chosen = candidates[best, rows]
    with random_stream(at, cell.key, index, "evaluate"):
        correct, _ = count_correct(defence, chosen, y, cell.draws)
    distance = NORMS[cell.threat.norm].distance(chosen - candidates[0])
    picked = {"selected": right_of[best, rows], "margin": margin_of[best, rows], "chosen": best}
    return {"clean": right_of[0], "correct": correct, "distance": distance, **picked}


def count_correct(defence: nn.Module, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of `count` draws on each example, how many were right (B,), and the mean margin (B,)."""
    hits, margins = torch.zeros_like(y), torch.zeros(len(y), device=x.device)
    for done in range(0, count, JUDGING_BATCH):
        k = min(JUDGING_BATCH, count - done)
        logits = predict_draws(defence, x, k)
        labels = y.unsqueeze(1).expand(-1, k)
        hits += is_correct(logits, labels).sum(1)
        margins += margin(logits, labels).float().sum(1)
    return hits, margins / count
