"""Answer a cell: an attack proposes, the harness projects, selects and scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from bench.judging import hooks
from bench.judging.certificates import certify
from bench.judging.containment import Containment
from bench.judging.cost import time_prediction
from bench.judging.proposals import project_candidates, routes_of, run_attack
from bench.judging.randomness import judging_stream, random_stream
from bench.judging.scoring import choose_strongest, minimum_distances, score
from bench.judging.setup import Setup, batch_count, make_target, prepare
from bench.judging.target import Target
from bench.questions import registry
from bench.questions.facts import CheckFacts
from bench.questions.spec import Cell
from bench.results.record import Cost, Env, Record, merge

COUNTS = ("clean", "selected", "correct")  # columns of whole numbers
SIZES = ("margin", "distance", "strayed")  # columns of numbers, kept to six digits


def evaluate(
    cell: Cell,
    batches: Sequence[int] | None = None,
    *,
    device: str = "cpu",
    data_dir: str = "data",
    env: Env | None = None,
) -> Record:
    """Answer the cell, or only some batches of its fixed grid: their records merge into the same.

    Raises whatever the attack or the defence raises, and `AttackFailed`.
    """
    setup = prepare(cell, device, data_dir)
    indices = range(batch_count(cell, len(setup.data))) if batches is None else batches
    parts = [evaluate_batch(cell, setup, index, env or Env()) for index in indices]
    return merge(parts) if batches is not None else merge_whole(parts)


def merge_whole(parts: Sequence[Record]) -> Record:
    """The whole answer from the batches of its grid, with the flags of a check's own audit."""
    record = merge(parts)
    facts = registry.find_question(record.cell.attack.name).facts
    if not isinstance(facts, CheckFacts) or not facts.audit:
        return record
    return replace(record, flags=(*record.flags, *facts.audit(record)))


def evaluate_batch(cell: Cell, setup: Setup, index: int, env: Env) -> Record:
    """Answer one batch of the cell's grid, and note how other people's code behaved meanwhile."""
    setup.defence.take_conduct()
    with Containment() as row:
        record = answer_batch(cell, setup, index, env)
    conduct = row.conduct + setup.defence.take_conduct()
    flags = record.flags
    if index == 0:
        conduct = setup.conduct + conduct
        flags = (*setup.probe.flags, *flags)
    return replace(record, flags=(*flags, *conduct.flags), notes=conduct.notes)


def answer_batch(cell: Cell, setup: Setup, index: int, env: Env) -> Record:
    """The record of one batch: of a check, or of an attack."""
    entry = registry.find_question(cell.attack.name)
    if entry.facts.family == "check":
        return hooks.run_check(cell, setup, index, env)
    x, y, ids = setup.take(slice(index * cell.batch, (index + 1) * cell.batch))
    target = make_target(cell, setup)
    start = time.perf_counter()
    with random_stream(setup.device, cell.key, index, "attack"):
        proposals = run_attack(cell, target, x, y)
        candidates = project_candidates(cell, proposals, x)
    seconds = time.perf_counter() - start
    chosen = choose_strongest(cell, setup.defence, candidates.images, y, index)
    correct = score(cell, setup.defence, chosen.images, y, index)
    record = assemble(
        cell,
        setup,
        index,
        ids=ids,
        columns=chosen.columns | {"correct": correct, "strayed": candidates.strayed},
        cost=count_calls(target),
        seconds=seconds,
        routes=routes_of(proposals.names, chosen.index.tolist()),
        env=env,
    )
    if entry.facts.minimum_norm:
        nearest = minimum_distances(cell, setup.defence, proposals.images, x, y, index)
        record = replace(record, nearest=nearest)
    return with_clean_facts(record, setup, index, x, y) if cell.attack.name == "none" else record


def with_clean_facts(record: Record, setup: Setup, index: int, x: Tensor, y: Tensor) -> Record:
    """The record of a batch of clean images, with the certificates and the time of a prediction."""
    defence = setup.defence
    with judging_stream(setup.device, record.cell.key, index, "certify"):
        record = replace(record, certificate=certify(defence, x, y))
    if index > 0:
        return record
    cost = replace(
        record.cost,
        ms_per_image=time_prediction(defence, x),
        base_ms_per_image=time_prediction(getattr(defence, "base", defence), x),
    )
    return replace(record, cost=cost)


def assemble(
    cell: Cell,
    setup: Setup,
    index: int,
    *,
    columns: Mapping[str, Tensor],
    cost: Cost,
    seconds: float,
    figures: Mapping[str, float] | None = None,
    **parts: Any,
) -> Record:
    """The record of one batch; that of the first batch says what the probe measured.

    `columns` (B,) each, rounded here; `figures` of a check, by name; `parts` as `Record` has them.
    """
    values: dict[str, Any] = {}
    for name in COUNTS:
        values[name] = tuple(int(v) for v in columns[name].tolist())
    for name in SIZES:
        values[name] = tuple(float(f"{v:.6g}") for v in columns[name].tolist())
    if index == 0:
        measured = [(name, float(f"{v:.4g}")) for name, v in (figures or {}).items()]
        values["checks"] = tuple(sorted((*setup.probe.checks, *measured)))
    parameters = sum(p.numel() for p in setup.defence.parameters())
    cost = replace(cost, seconds=round(seconds, 3), parameters=parameters)
    return Record(cell=cell, cost=cost, **registry.traits_of(cell), **values, **parts)


def count_calls(target: Target) -> Cost:
    """What the target counted of the calls that the attacker made."""
    return Cost(
        forwards=target.forwards,
        backwards=target.backwards,
        nonfinite=target.nonfinite,
        zero=target.zero,
    )
