"""The command: `python -m bench.run`. The only place that prints."""

from __future__ import annotations

import argparse
import itertools
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bench import report, weights
from bench.errors import BadInput, did_you_mean
from bench.files import data_folder
from bench.questions import plan as plans
from bench.questions import registry
from bench.questions.plan import Plan, Request
from bench.questions.spec import Cell, split_commas
from bench.results import names as labels
from bench.results import published
from bench.results.record import Record
from bench.results.store import Store

LISTS = {
    "defences": "defence",
    "attacks": "attack",
    "datasets": "dataset",
    "classifiers": "classifier",
}


class Parser(argparse.ArgumentParser):
    """Bad flags end in one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        unknown = (
            [word for word in message.split() if word.startswith("--")]
            if "unrecognized" in message
            else []
        )
        flags = [flag for action in self._actions for flag in action.option_strings]
        raise BadInput(
            f"unknown flag {unknown[0]}{did_you_mean(unknown[0], flags)}" if unknown else message
        )


def parser() -> Parser:
    p = Parser(
        prog="python -m bench.run",
        description="Sweep attacks over defences and write leaderboards.",
        allow_abbrev=False,
    )
    p.add_argument("--dataset", help="a registered dataset, or folder:PATH")
    p.add_argument(
        "--defences",
        metavar="A,B",
        help="names with knobs, such as carso[samples=16]; default: all",
    )
    p.add_argument(
        "--attacks",
        metavar="A,B",
        help="names with knobs, such as pgd[steps=100]; default: the budget's",
    )
    p.add_argument("--norm", help="linf, l2, l1 or l0; default: the dataset's")
    p.add_argument(
        "--eps",
        help="a fraction such as 8/255, in pixel units of [0,1], or several: 2/255,4/255,8/255; default: the dataset's",
    )
    p.add_argument(
        "--queries",
        help="of the black-box attacks that count them, one or several: 100,1000,5000; default: the budget's",
    )
    p.add_argument(
        "--n", type=int, help="examples, from the fixed class-stratified subset of the test split"
    )
    p.add_argument(
        "--first",
        type=int,
        help="instead of --n: the first examples of the test split, as published protocols do",
    )
    p.add_argument("--seed", type=int, help="of the attacks and of the judging")
    p.add_argument("--draws", type=int, help="evaluation draws of a stochastic defence")
    p.add_argument("--select", type=int, help="selection draws of a stochastic defence")
    p.add_argument("--batch", type=int, help="examples attacked together; part of the question")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--budget", help="quick, standard or full")
    p.add_argument(
        "--plan", type=Path, metavar="FILE", help="a TOML plan, or the name of one of bench/plans"
    )
    p.add_argument(
        "--with",
        type=Path,
        action="append",
        default=[],
        dest="extra",
        metavar="FILE",
        help="a Python file with plug-ins of yours",
    )
    p.add_argument(
        "--out", type=Path, default=Path("results"), help="the folder of records and leaderboards"
    )
    p.add_argument(
        "--data-dir", type=Path, help="where data sets lie; default: BENCH_DATA, or data/"
    )
    p.add_argument("--rerun", action="store_true", help="answer again what the store already holds")
    p.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the batches on a Ray cluster ('local' starts one here)",
    )
    p.add_argument(
        "--list", choices=sorted(LISTS), dest="what", help="show what is registered, with its knobs"
    )
    p.add_argument(
        "--dry-run", action="store_true", help="show the cells and what they would cost, and stop"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 all answered, 1 a cell failed, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command(
            parser().parse_args(words), shlex.join(["python", "-m", "bench.run", *words])
        )
    except BadInput as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"bench: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "bench: interrupted; every finished batch is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130


def command(args: argparse.Namespace, line: str) -> int:
    registry.discover(tuple(args.extra))
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    if args.what:
        show_list(out, LISTS[args.what])
        return 0
    plan = read_plan(args)
    for note in plan.notes:
        out.print(f"note: {escape(note)}", soft_wrap=True)
    store = Store(args.out)
    pending = plan.cells if args.rerun else plan.pending(store)
    data_dir = data_folder(args.data_dir)
    if args.dry_run:
        show_dry(out, plan, pending, data_dir, args.device)
        return 0
    failed = 0
    if pending:
        from bench.judging import execute

        device = execute.pick_device(args.device)
        plans.fetch_missing(plan)
        plan = read_plan(args)  # again: now the digest of what was fetched is part of the question
        pending = plan.cells if args.rerun else plan.pending(store)
        failed = sweep(out, args, plan, pending, store, data_dir, line, device)
    if not pending:
        out.print(
            f"all {len(plan.cells)} cells are in {args.out} already: nothing to do (--rerun answers them again)",
            soft_wrap=True,
        )
    elif not failed:
        out.print(
            f"{len(pending)} cells answered, {len(plan.cells) - len(pending)} were in {args.out} already",
            soft_wrap=True,
        )
    show_leaderboards(out, args, plan, store)
    if failed:
        print(
            f"bench: {failed} of {len(pending)} cells failed; see the .failed.json files under {args.out / 'records'}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def read_plan(args: argparse.Namespace) -> Plan:
    single = (
        "dataset",
        "norm",
        "eps",
        "queries",
        "n",
        "first",
        "seed",
        "draws",
        "select",
        "batch",
        "budget",
    )
    asked: dict[str, Any] = {name: getattr(args, name) for name in single}
    asked |= {
        name: tuple(split_commas(text))
        for name in ("defences", "attacks")
        if (text := getattr(args, name))
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    if not args.plan:
        return plans.plan([Request(**asked)])
    if clash := sorted(asked):
        raise BadInput(
            f"--{clash[0]} and --plan exclude each other: write it into the plan '{args.plan}'"
        )
    name, requests = plans.read_plan_file(args.plan)
    return plans.plan(requests, name)


def sweep(
    out: Console,
    args: argparse.Namespace,
    plan: Plan,
    pending: Sequence[Cell],
    store: Store,
    data_dir: Path,
    line: str,
    device: str,
) -> int:
    from bench.judging import execute

    execute.make_deterministic()
    execute.preflight(pending, data_dir)
    if args.ray:
        from bench.judging import ray

        ray.connect(args.ray)
    store.put_plan(plan.name, plan.cells)
    for cell in pending if args.rerun else ():
        store.drop_parts(cell)
    with Live(out, pending) as watch:
        how: dict[str, Any] = {
            "device": device,
            "data_dir": data_dir,
            "command": line,
            "watch": watch,
        }
        if args.ray:
            return ray.execute(pending, store, extra=tuple(args.extra), **how)
        return execute.execute(pending, store, **how)


def named(cells: Sequence[Cell]) -> dict[Cell, str]:
    """`carso / pgd`, with the knobs that tell a cell from the others."""
    attacks, lines = (
        labels.short_names(cell.attack for cell in cells),
        labels.short_names(cell.defence for cell in cells),
    )
    return {cell: f"{lines[cell.defence]} / {attacks[cell.attack]}" for cell in cells}


def place(cell: Cell) -> str:
    return f"({cell.threat.norm} {cell.threat.eps})"


class Live:
    """Bars on a terminal (cells, batches, time left), plain lines elsewhere."""

    def __init__(self, out: Console, cells: Sequence[Cell]) -> None:
        self.cells, self.done, self.start = len(cells), 0, time.monotonic()
        self.names = named(cells)
        left = (TextColumn("left"), TimeRemainingColumn())
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *left,
        )
        self.bars = Progress(
            *columns,
            console=out,
            disable=not out.is_terminal,
            transient=True,
            speed_estimate_period=600,
        )
        self.all = self.bars.add_task("cells", total=self.cells)
        self.one = self.bars.add_task("batches", total=None)

    def __enter__(self) -> Live:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def batch(self, cell: Cell, done: int, count: int) -> None:
        self.bars.update(self.one, description=self.names[cell], completed=done, total=count)
        self.bars.update(self.all, completed=self.done + done / count)

    def answered(self, cell: Cell, record: Record) -> None:
        self.line(
            cell,
            f"accuracy {record.accuracy:.3f}  (n {len(record.ids)}, {record.cost.seconds:.1f} s)",
        )

    def failed(self, cell: Cell, message: str) -> None:
        self.line(cell, f"FAILED: {escape(message)}")

    def line(self, cell: Cell, text: str) -> None:
        self.done += 1
        self.bars.update(self.all, completed=self.done)
        width = len(str(self.cells))
        name = f"{self.names[cell]} {place(cell)}"
        so_far = f"{self.done:{width}}/{self.cells}  {time.monotonic() - self.start:5.0f} s"
        self.bars.console.print(f"{so_far}  {escape(name.ljust(56))} {text}", soft_wrap=True)


def show_list(out: Console, kind: str) -> None:
    if kind == "classifier":
        show_classifiers(out)
        return
    table = Table("name", "knobs", "what it is", box=None, pad_edge=False)
    for entry in sorted(registry.registries[kind], key=lambda entry: entry.name):
        knobs = ", ".join(f"{knob}={value}" for knob, value in entry.knobs.items())
        table.add_row(entry.name, escape(knobs), escape(entry.summary))
    out.print(table)


def show_classifiers(out: Console) -> None:
    """A table for each scheme, or for each dataset and threat model of one. No name is folded: it is there to be copied."""
    out.width = max(out.width, 150)
    for entry in sorted(registry.classifiers, key=lambda entry: entry.name):
        out.print(f"{entry.name}:...  {escape(entry.summary)}")
        names = [f"{entry.name}:{name}" for name in (entry.facts["names"] or list)()]
        for _, group in itertools.groupby(names, key=lambda name: name.rpartition("/")[0]):
            table = Table("name", "architecture", box=None, pad_edge=False, padding=(0, 1, 0, 0))
            for title in ("param.", "clean", "AA", "eps"):
                table.add_column(title, justify="right", no_wrap=True)
            table.add_column("venue")
            for name in group:
                table.add_row(name, *about(name))
            out.print(table)
    out.print(
        "RN: ResNet; WRN: WideResNet; param.: millions; clean, AA: published accuracy in percent, without an attack and under AutoAttack at eps"
    )


def about(name: str) -> tuple[str, ...]:
    """What is known of a classifier without building it: a cell for each column of the list after the name."""
    if name.startswith("own:"):
        card = weights.card(name)
        return str(card["arch"]["name"]), f"{card['parameters'] / 1e6:.2f}"
    if not (found := published.zoo().get(name)):
        return ()
    architecture = (
        found.architecture.replace("WideResNet", "WRN").replace("ResNet", "RN").replace(" + ", "+")
    )
    clean, robust = (
        "" if share is None else f"{100 * share:.2f}" for share in (found.clean, found.robust)
    )
    return architecture, f"{found.parameters / 1e6:.2f}", clean, robust, found.eps, found.venue


def show_dry(
    out: Console, plan: Plan, pending: Sequence[Cell], data_dir: Path, device: str
) -> None:
    """A line per cell: its name, the most calls per example, and the time that they would take."""
    from bench.judging.cost import forecast_costs, format_duration
    from bench.judging.execute import make_deterministic, pick_device

    make_deterministic()
    at = pick_device(device)
    costs = forecast_costs(plan.cells, data_dir, at)
    names = {cell: f"{name} {place(cell)}" for cell, name in named(plan.cells).items()}
    width = max(map(len, names.values()))
    out.print(f"{'defence / attack':{width}} {'calls':>11} {'time':>9}", soft_wrap=True)
    total, unknown, waiting = 0.0, 0, {cell.key for cell in pending}
    for cell, cost in zip(plan.cells, costs, strict=True):
        kept = "" if cell.key in waiting else "  (in the store)"
        out.print(
            f"{escape(names[cell].ljust(width))} {cost.calls:>11,} {format_duration(cost.seconds):>9}{kept}",
            soft_wrap=True,
        )
        total += (cost.seconds or 0.0) * (cell.key in waiting)
        unknown += cost.seconds is None and cell.key in waiting
    where = "one thread of this machine's CPU" if at == "cpu" else f"this machine's {at}"
    out.print(
        f"calls: the most forward passes per example, a backward counting as two; time: from trial predictions on {where}",
        soft_wrap=True,
    )
    ahead = f"at most about {format_duration(total)}"
    if unknown:
        ahead += (
            f"; {unknown} of unknown time are not counted in: their data or weights are not there"
        )
    out.print(f"{len(plan.cells)} cells, {len(waiting)} to answer, {ahead}", soft_wrap=True)


def show_leaderboards(out: Console, args: argparse.Namespace, plan: Plan, store: Store) -> None:
    written = report.write(args.out)
    wanted = {(cell.dataset.name, cell.threat.norm, str(cell.threat.eps)) for cell in plan.cells}
    for board in report.load_boards(store):
        if (board.dataset, board.norm, board.eps) not in wanted:
            continue
        table = Table(
            title=f"{board.dataset} {board.norm} {board.eps}",
            box=None,
            title_justify="left",
            title_style="bold",
        )
        for name in report.BRIEF:
            table.add_column(name, no_wrap=name != "strongest attack", overflow="fold")
        for row in board.rows:
            table.add_row(*(escape(cell) for cell in report.brief(row)))
        out.print(table)
    for text in report.against_reference(args.out):
        out.print(escape(text), soft_wrap=True)
    for path in written:
        if path.suffix in (".csv", ".html"):
            out.print(f"wrote {path}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
