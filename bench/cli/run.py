"""`carso-bench run`: the sweep, and what it says."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bench.api import (
    Settings,
    answer,
    find_pending,
    look_into,
    look_up_today,
    make_plan,
    mark_kept,
    prepare,
    with_device,
)
from bench.cli.boards import show_leaderboards
from bench.cli.progress import Live
from bench.errors import BadInput
from bench.questions import plan as plans
from bench.questions.plan import Plan
from bench.questions.request import Request
from bench.questions.spec import split_commas

WIDTH = 140  # of what is printed where there is no terminal


def run_sweep(
    file: Path | None, flags: Mapping[str, Any], settings: Settings, *, dry_run: bool
) -> int:
    """Answer the plan of the file, or of the flags; exit code 1 where a cell failed."""
    from bench.judging.plugins import load_plugins

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = new_console()
    show_notes(console, load_plugins(settings.plugins))
    request = read_request(file, flags)
    look = look_into(settings.data_dir)
    plan = make_plan(file, request, look)
    show_notes(console, plan.notes)
    today = look_up_today(settings)
    pending = find_pending(plan, settings, today)
    show_notes(console, pending.notes)
    if dry_run:
        from bench.cli.dry_run import show_costs

        show_costs(console, plan, pending.cells, settings)
        return 0
    failed = 0
    if pending.cells:
        settings = with_device(settings)
        plans.fetch_missing(plan)
        # again: the digest of what was fetched is in the question
        plan = make_plan(file, request, look)
        pending = find_pending(plan, settings, today)
        show_notes(console, prepare(plan, pending, settings))
        with Live(console, pending.cells) as watch:
            failed = answer(pending.cells, settings, watch)
    mark_kept(plan, pending, settings)
    if not failed:
        console.print(describe_end(plan, len(pending.cells), settings.out), soft_wrap=True)
    show_leaderboards(console, plan, settings.out)
    if failed:
        print(
            f"bench: {failed} of {len(pending.cells)} cells failed; "
            f"see the .failed.json files under {settings.out / 'records'}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def show_notes(console: Console, notes: Iterable[str]) -> None:
    for note in notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)


def new_console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def read_request(file: Path | None, flags: Mapping[str, Any]) -> Request:
    """What the flags ask; BadInput where a plan file is to say it."""
    asked = {
        field.name: flags[field.name]
        for field in fields(Request)
        if flags.get(field.name) is not None
    }
    if file and asked:
        raise BadInput(
            f"--{min(asked)} and --plan exclude each other: write it into the plan '{file}'"
        )
    for name in ("defences", "attacks"):
        if name in asked:
            asked[name] = tuple(split_commas(asked[name]))
    return Request(**asked)


def describe_end(plan: Plan, answered: int, out: Path) -> str:
    if not answered:
        return (
            f"all {len(plan.cells)} cells are in {out} already: "
            "nothing to do (--rerun answers them again)"
        )
    return f"{answered} cells answered, {len(plan.cells) - answered} were in {out} already"
