"""Run a check: the attack inside it against what the check has put up, and what it measures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bench.checks.target import CheckTarget
from bench.judging.evaluate import assemble, count_calls
from bench.judging.hooks import register_check_runner
from bench.judging.proposals import project_candidates, run_attack
from bench.judging.randomness import judging_stream, random_stream
from bench.judging.scoring import choose_strongest, count_correct, score
from bench.judging.setup import Setup
from bench.judging.target import Target
from bench.questions import registry
from bench.questions.spec import Cell, Spec
from bench.results.record import PER_EXAMPLE, Cost, Env, Planted, Record, add_costs

PLANTED = ("valid", "found", "random")


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """What a check gave on some images: columns (B,) of a record, and figures by name.

    `planted` has the columns (B,) of `Planted`; it is empty where the check plants nothing.
    """

    columns: dict[str, Tensor]
    planted: dict[str, Tensor] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    figures: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def skipped(cell: Cell, device: torch.device) -> CheckOutcome:
        """Of one image on which there is nothing to attack: the columns of no attack."""
        zero = torch.zeros(1, device=device)
        columns = dict.fromkeys(PER_EXAMPLE, zero)
        columns["clean"] = zero + cell.select
        columns["selected"] = zero + cell.select
        columns["correct"] = zero + cell.draws
        return CheckOutcome(columns, planted=dict.fromkeys(PLANTED, zero))

    @staticmethod
    def joined(outcomes: Sequence[CheckOutcome], x: Tensor) -> CheckOutcome:
        """Several outcomes as one: columns joined, calls and figures added up."""
        planted = {}
        if outcomes and all(outcome.planted for outcome in outcomes):
            planted = join_columns([outcome.planted for outcome in outcomes], PLANTED, x)
        figures: dict[str, float] = {}
        for outcome in outcomes:
            for name, value in outcome.figures.items():
                figures[name] = figures.get(name, 0.0) + value
        return CheckOutcome(
            columns=join_columns([outcome.columns for outcome in outcomes], PER_EXAMPLE, x),
            planted=planted,
            cost=add_costs([Cost(), *(outcome.cost for outcome in outcomes)]),
            figures=figures,
        )


def join_columns(
    parts: Sequence[dict[str, Tensor]], names: Iterable[str], x: Tensor
) -> dict[str, Tensor]:
    """The columns of all parts, one after the other, on the device of `x`."""
    return {name: torch.cat([x.new_zeros(0), *(part[name] for part in parts)]) for name in names}


@register_check_runner
def run_check(cell: Cell, setup: Setup, index: int, env: Env) -> Record:
    """Answer one batch of a check; images beyond its number of `examples` are left out."""
    rows = rows_of(cell, index)
    x, y, ids = setup.take(rows)
    group = 1 if registry.inner_attack(cell.attack) else max(1, len(x))
    count = min(len(x), int(cell.attack.params.get("examples", len(x) + rows.start)) - rows.start)
    start = time.perf_counter()
    outcomes = []
    for first in range(0, count, group):
        images = x[first : first + group]
        labels = y[first : first + group]
        outcomes.append(run_on_images(cell, setup, images, labels, rows.start + first))
    outcome = CheckOutcome.joined(outcomes, x)
    seconds = time.perf_counter() - start
    planted = {name: tuple(map(int, v.tolist())) for name, v in outcome.planted.items()}
    return assemble(
        cell,
        setup,
        index,
        columns=outcome.columns,
        cost=outcome.cost,
        seconds=seconds,
        figures=outcome.figures,
        ids=ids[: len(outcome.columns["correct"])],
        planted=Planted(**planted) if planted else None,
        env=env,
    )


def rows_of(cell: Cell, index: int) -> slice:
    """The examples of one batch; the first has all where a check's figures are of all together."""
    if registry.checks.get(cell.attack.name).facts.together:
        return slice(0, int(cell.attack.params["examples"]) if index == 0 else 0)
    return slice(index * cell.batch, (index + 1) * cell.batch)


def run_on_images(cell: Cell, setup: Setup, x: Tensor, y: Tensor, number: int) -> CheckOutcome:
    """Run a check on images (B,C,H,W), the first of which is the cell's example `number`.

    B is 1 where the check has an attack inside. Each image has a model of its own then, and attacks
    drop images from a batch without a word about which.
    """
    check = registry.checks.get(cell.attack.name).make
    classes = setup.data.classes
    with (
        random_stream(setup.device, cell.key, number, "attack"),
        check(
            setup.defence,
            x.clone(),
            y.clone(),
            replace(cell.threat),
            classes,
            setup.stochastic,
            **cell.attack.params,
        ) as check_target,
    ):
        if check_target is None:
            return CheckOutcome.skipped(cell, setup.device)
        return run_inner_attack(cell, check_target, x, number)


def run_inner_attack(cell: Cell, check_target: CheckTarget, x: Tensor, number: int) -> CheckOutcome:
    """Run the attack inside a check on its target and judge it there, then measure."""
    model = check_target.model
    y = check_target.y
    inner_cell = inner_question(cell, check_target)
    target = Target(
        model,
        access=inner_cell.threat.access,
        stochastic=check_target.stochastic,
        classes=check_target.classes,
        device=x.device,
    )
    candidates = project_candidates(inner_cell, run_attack(inner_cell, target, x, y), x)
    chosen = choose_strongest(cell, model, candidates.images, y, number)
    planted = {}
    if check_target.random is None:
        correct = score(cell, model, chosen.images, y, number)
    else:
        hits = count_hits(cell, check_target, chosen.images, number)
        correct = cell.draws - hits
        planted = {
            "valid": torch.ones_like(y),
            "found": in_majority(hits, cell.draws),
            "random": torch.full_like(y, int(check_target.random)),
        }
    figures = {}
    if check_target.measure:
        figures = check_target.measure(target, in_majority(correct, cell.draws))
    columns = chosen.columns | {"correct": correct, "strayed": candidates.strayed}
    return CheckOutcome(columns, planted, count_calls(target), figures)


def inner_question(cell: Cell, check_target: CheckTarget) -> Cell:
    """The cell whose attack is the one inside the check, or no attack where the check has none.

    All draws of a model that is not stochastic are the same: the attack takes one.
    """
    inner = registry.inner_attack(cell.attack)
    if inner is None:
        return replace(cell, attack=Spec("none"))
    if not check_target.stochastic and "eot" in inner.params:
        inner = Spec.of(inner.name, {**inner.params, "eot": 1})
    access = registry.find_question(inner.name).facts.access
    return replace(cell, attack=inner, threat=replace(cell.threat, access=access))


@torch.no_grad()
def count_hits(cell: Cell, check_target: CheckTarget, images: Tensor, number: int) -> Tensor:
    """The evaluation draws (B,) that name the planted class: an abstention finds nothing."""
    with judging_stream(images.device, cell.key, number, "evaluate"):
        hits, _ = count_correct(check_target.model, images, 1 - check_target.y, cell.draws)
    return hits


def in_majority(hits: Tensor, draws: int) -> Tensor:
    """Whether more than half of the draws are hits (B,)."""
    return 2 * hits > draws
