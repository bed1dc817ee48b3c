"""A sweep from Python, and the steps that it shares with the command. Nothing here prints."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import report
from bench.errors import BadInput
from bench.files import data_folder
from bench.questions import plan as plans
from bench.questions.facts import ImageFacts
from bench.questions.plan import Plan
from bench.questions.request import Request, parse_request, read_plan_file
from bench.questions.spec import Cell, Spec
from bench.report.tables import cells_csv, leaderboard_csv
from bench.results.leaderboard import Leaderboard
from bench.results.record import Record
from bench.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from bench.judging.execute import Watch
    from bench.judging.stale import Change, Today


@dataclass(frozen=True, slots=True)
class Settings:
    """How a plan is answered, and where the answers go; `command` is kept in the records."""

    out: Path = Path("results")
    data_dir: Path = Path("data")
    device: str = "auto"
    rerun: bool = False
    keep_stale: bool = False
    ray: str | None = None
    plugins: tuple[Path, ...] = ()
    command: str = "bench.run(...)"


@dataclass(frozen=True, slots=True)
class Results:
    """What a folder of results says, as pandas frames with the columns of the CSV files."""

    leaderboard: pd.DataFrame
    cells: pd.DataFrame


class Silent:
    """A watch that tells nobody."""

    def batch(self, cell: Cell, done: int, count: int) -> None: ...

    def answered(self, cell: Cell, record: Record) -> None: ...

    def failed(self, cell: Cell, message: str) -> None: ...


def run(
    plan: str | Path | None = None,
    *,
    out: str | Path = "results",
    data_dir: str | Path | None = None,
    device: str = "auto",
    rerun: bool = False,
    keep_stale: bool = False,
    plugins: Iterable[str | Path] = (),
    **question: Any,
) -> list[Leaderboard]:
    """Run a sweep into the folder `out` and return its leaderboards.

    `plan` is a TOML file, or the name of one of ours. Without a plan, `question` has the keys of
    such a file: dataset, defences, attacks, norm, eps, n, first, seed, draws, select, batch,
    budget, queries. `plugins` are Python files. An answer of other code, images or weights than
    today's is asked again; `keep_stale` keeps it, and marks its row. A cell that fails leaves its
    row incomplete. Raises BadInput.
    """
    if plan and question:
        raise BadInput(f"plan and {next(iter(question))} exclude each other: give one of them")
    from bench.judging.plugins import load_plugins

    settings = Settings(
        Path(out),
        data_folder(Path(data_dir) if data_dir else None),
        device,
        rerun,
        keep_stale,
        plugins=tuple(map(Path, plugins)),
    )
    load_plugins(settings.plugins)
    file = Path(plan) if plan else None
    request = parse_request(question, Path("bench.run"))
    look = look_into(settings.data_dir)
    asked = make_plan(file, request, look)
    today = look_up_today(settings)
    pending = find_pending(asked, settings, today)
    if pending.cells:
        settings = with_device(settings)
        plans.fetch_missing(asked)
        # again: the digest of what was fetched is in the question
        asked = make_plan(file, request, look)
        pending = find_pending(asked, settings, today)
        prepare(asked, pending, settings)
        answer(pending.cells, settings, Silent())
    mark_kept(asked, pending, settings)
    report.write(settings.out)
    return boards_of(asked, Store(settings.out))


def load_results(folder: str | Path = "results") -> Results:
    """The rows of all leaderboards, and all cells, of the folder that a sweep wrote.

    `eps` is text, as it was asked for: 8/255. Raises BadInput where there are no records.
    """
    import pandas as pd

    boards = report.load_boards(Store(Path(folder)))
    if not boards:
        raise no_records(Path(folder))
    rows = pd.concat([read_csv(leaderboard_csv(board)) for board in boards], ignore_index=True)
    return Results(rows, read_csv(cells_csv(boards)))


def read_csv(text: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(io.StringIO(text), dtype={"eps": str})


def no_records(folder: Path) -> BadInput:
    return BadInput(
        f"there are no records in '{folder}'; "
        "run 'make bench' first, or give --out the folder of another run"
    )


def make_plan(file: Path | None, request: Request, look: plans.Look | None = None) -> Plan:
    """The plan of the file, or, without one, of the request; for `look` see `look_into`."""
    if file is None:
        return plans.plan([request], look=look)
    name, requests = read_plan_file(file)
    return plans.plan(requests, name, look)


def look_into(data_dir: Path) -> plans.Look:
    """How a plan learns of images that a dataset's facts say nothing of: they are loaded once."""

    @functools.cache
    def look(dataset: Spec) -> ImageFacts:
        from bench.data.sample import load

        images = load(dataset, data_dir=data_dir)
        _, channels, height, width = images.x.shape
        return ImageFacts(len(images), (channels, height, width), images.notes)

    return look


@dataclass(frozen=True, slots=True)
class Pending:
    """The cells that are to be answered, and those whose stored answer is stale.

    `notes` say in words how many are stale, and why.
    """

    cells: tuple[Cell, ...]
    stale: Mapping[Cell, Change]
    notes: tuple[str, ...]


def look_up_today(settings: Settings) -> Today:
    """What answers of this run rest on; what an earlier run of this process loaded is dropped."""
    from bench.judging.stale import Today

    return Today(settings.data_dir)


def find_pending(plan: Plan, settings: Settings, today: Today) -> Pending:
    """The cells without an answer, and those whose answer is stale unless it is to be kept."""
    from bench.judging.stale import describe_stale, find_stale

    store = Store(settings.out)
    stale = find_stale(plan.cells, store, today)
    keep = settings.keep_stale and not settings.rerun
    pending = plan.cells if settings.rerun else plan.pending(store, () if keep else stale)
    return Pending(pending, stale, tuple(describe_stale(stale, kept=keep)))


def mark_kept(plan: Plan, pending: Pending, settings: Settings) -> None:
    """Write into each answer that is kept though it is stale what has changed."""
    store = Store(settings.out)
    for cell in plan.cells:
        record = store.get(cell)
        if record and cell not in pending.cells:
            store.mark(record, str(pending.stale.get(cell, "")))


def with_device(settings: Settings) -> Settings:
    """The settings with the device that is there; BadInput where it is not."""
    from bench.judging.execute import pick_device

    return replace(settings, device=pick_device(settings.device))


def prepare(plan: Plan, pending: Pending, settings: Settings) -> list[str]:
    """See that every cell can be answered, then keep the plan; BadInput leaves nothing written.

    Returns notes on the form in which defences answer.
    """
    from bench.judging.execute import make_deterministic
    from bench.judging.preflight import preflight

    make_deterministic()
    device = "cpu" if settings.ray else settings.device
    notes = preflight(pending.cells, settings.data_dir, device)
    if settings.ray:
        from bench.judging import ray

        ray.connect(settings.ray)
    store = Store(settings.out)
    store.put_plan(plan.name, plan.cells, plan.attack_traits)
    for cell in pending.cells:
        if cell in pending.stale:
            store.set_aside(cell)
        if settings.rerun:
            store.drop_parts(cell)
    return notes


def answer(pending: Sequence[Cell], settings: Settings, watch: Watch) -> int:
    """Answer the cells into the folder of the settings; returns how many failed."""
    how: dict[str, Any] = {
        "device": settings.device,
        "data_dir": settings.data_dir,
        "command": settings.command,
        "watch": watch,
    }
    if settings.ray:
        from bench.judging import ray

        return ray.execute(pending, Store(settings.out), extra=settings.plugins, **how)
    from bench.judging import execute

    return execute.execute(pending, Store(settings.out), **how)


def boards_of(plan: Plan, store: Store) -> list[Leaderboard]:
    """The leaderboards of the store that the plan has cells on."""
    asked = {(cell.dataset.name, cell.threat.norm, str(cell.threat.eps)) for cell in plan.cells}
    boards = report.load_boards(store)
    return [board for board in boards if (board.dataset, board.norm, board.eps) in asked]
