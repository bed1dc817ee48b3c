"""The one application: the flags of every command, from words to an exit code.

`carso-bench run`, `python -m bench run` and `python -m bench.run` are the same. What a command
does is imported when it is asked for: `--help` and `--version` load nothing of the bench.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from bench.cli.flags import (
    LISTS,
    Attacks,
    Batch,
    Budget,
    DataDir,
    Dataset,
    Defences,
    Device,
    Draws,
    Eps,
    First,
    Folder,
    Norm,
    Number,
    Out,
    PlanFile,
    Plugins,
    Queries,
    Seed,
    Select,
    kind_of_list,
    text_flag,
)
from bench.cli.main import run_main
from bench.entry_points import NAME, declared, version
from bench.errors import BadInput, did_you_mean

KEPT = "interrupted; every finished batch is kept, and the same command goes on from there"
INTERRUPTED = 130


class Command(TyperCommand):
    """A command that refuses a flag that it does not have with the nearest of those that it has."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = {flag for parameter in self.get_params(ctx) for flag in parameter.opts}
        for word in args:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in {*flags, "--"}:
                raise BadInput(f"unknown flag {flag}{did_you_mean(flag, flags)}")
        return super().parse_args(ctx, args)


class Application(TyperGroup):
    """Commands, of which one that is not there is refused with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            raise BadInput(f"unknown command '{args[0]}'{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name=NAME,
    cls=Application,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


RESULTS = Path("results")


def show_version(value: bool) -> None:
    if value:
        print(f"{NAME} {version()}")
        raise typer.Exit


@app.callback(
    epilog="For example: carso-bench run --dataset digits --defences at,carso --attacks pgd,square"
)
def application(
    *,
    show: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=show_version, help="Show the version."),
    ] = False,
) -> None:
    """Is this adversarial defence really robust?"""


@app.command(
    cls=Command,
    epilog="For example: carso-bench run --dataset mnist --defences at --attacks apgd --n 100",
)
def run(
    context: typer.Context,
    *,
    dataset: Dataset = None,
    defences: Defences = None,
    attacks: Attacks = None,
    norm: Norm = None,
    eps: Eps = None,
    queries: Queries = None,
    n: Number = None,
    first: First = None,
    seed: Seed = None,
    draws: Draws = None,
    select: Select = None,
    batch: Batch = None,
    device: Device = "auto",
    budget: Budget = None,
    plan: PlanFile = None,
    plugins: Plugins = None,
    out: Out = RESULTS,
    data_dir: DataDir = None,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Answer again what the store already holds.")
    ] = False,
    keep_stale: Annotated[
        bool,
        typer.Option(
            "--keep-stale",
            help="Keep answers of other code, images or weights than today's, with a mark.",
        ),
    ] = False,
    ray: Annotated[
        str | None,
        text_flag("Run the batches on a Ray cluster ('local' starts one here).", "ADDRESS"),
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(
            "--list",
            parser=kind_of_list,
            metavar="WHAT",
            help=f"Show what is registered, with its knobs: {', '.join(LISTS)}.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and their cost, and stop.")
    ] = False,
) -> int:
    """Sweep attacks over defences and write leaderboards.

    Exit code: 0 all answered, 1 a cell failed, 2 bad input, 130 interrupted.
    """
    from bench.api import Settings
    from bench.cli.run import run_sweep
    from bench.files import data_folder

    if what:
        list_names(what, plugins=plugins)
        return 0
    settings = Settings(
        out=out,
        data_dir=data_folder(data_dir),
        device=device,
        rerun=rerun,
        keep_stale=keep_stale,
        ray=ray,
        plugins=tuple(plugins or ()),
        command=context.obj,
    )
    return run_sweep(plan, context.params, settings, dry_run=dry_run)


@app.command(
    "list", cls=Command, epilog="For example: carso-bench list attacks --with my_attack.py"
)
def list_names(
    what: Annotated[
        str, typer.Argument(parser=kind_of_list, metavar="WHAT", help=f"{', '.join(LISTS)}.")
    ],
    *,
    plugins: Plugins = None,
) -> None:
    """Show what is registered, with its knobs."""
    from bench.cli.listing import show_list
    from bench.cli.run import new_console

    show_list(new_console(), what, tuple(plugins or ()))


@app.command(cls=Command, epilog="For example: carso-bench compare carso tta --dataset digits")
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B...",
            help="Defences, as the leaderboard names them, or with knobs: "
            "tta[classifier=own:digits-at]. The first is compared with each of the others.",
        ),
    ] = None,
    *,
    out: Folder = RESULTS,
    dataset: Annotated[
        str | None, text_flag("One data set only; default: every one that has both.")
    ] = None,
    norm: Annotated[str | None, text_flag("One norm only.")] = None,
    eps: Annotated[str | None, text_flag("One eps only.")] = None,
) -> None:
    """Is defence A really better than B on the same examples?"""
    from bench.cli.compare import compare

    compare(names or [], out, dataset=dataset, norm=norm, eps=eps)


@app.command(cls=Command, epilog="For example: carso-bench report --out results")
def report(*, out: Folder = RESULTS) -> None:
    """Rebuild leaderboards, page and figures from the stored records."""
    from bench.cli.report import rebuild

    rebuild(out)


@app.command(cls=Command, epilog="For example: carso-bench status --out results")
def status(*, out: Folder = RESULTS) -> None:
    """Count the cells of each plan of a folder: answered, failed, waiting."""
    from bench.cli.status import show_status

    show_status(out)


@app.command(
    cls=Command, epilog="For example: carso-bench fetch --dataset cifar10 --defences carso"
)
def fetch(
    context: typer.Context,
    *,
    dataset: Dataset = None,
    defences: Defences = None,
    attacks: Attacks = None,
    plan: PlanFile = None,
    plugins: Plugins = None,
    data_dir: DataDir = None,
) -> None:
    """Download the data and weights that a sweep needs, and run nothing."""
    from bench.cli.fetch import fetch
    from bench.files import data_folder

    fetch(plan, context.params, data_folder(data_dir), tuple(plugins or ()))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="For example: carso-bench train purifier --dataset digits",
)
def train(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="purifier, classifiers or diffusion.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="FLAGS", help="Its flags; --help shows them."),
    ] = None,
) -> None:
    """Train a defence, or the classifiers of a dataset, and write the weights."""
    mains = {point.name: point for point in declared("bench.train")}
    if what not in mains:
        raise BadInput(f"'{what}' cannot be trained{did_you_mean(what, mains)}")
    sys.exit(mains[what].load()(words or []))  # it says itself what went wrong


def invoke(command: Any, words: Sequence[str], program: str) -> int | None:
    """Parse the words and run; what Typer has to say of them is BadInput, one line."""
    line = shlex.join([*program.split(), *words])
    try:
        code: int | None = command.main(
            list(words), prog_name=program, standalone_mode=False, obj=line
        )
    except typer.BadParameter as error:
        flag = "/".join(error.param.opts) if error.param else ""
        raise BadInput(f"argument {flag}: {error.message or 'is missing'}") from None
    except typer.TyperException as error:
        raise BadInput(error.format_message().partition("\n")[0]) from None
    if code == INTERRUPTED:  # Typer's answer to KeyboardInterrupt
        raise KeyboardInterrupt
    return code


def main(words: Sequence[str] | None = None, program: str = NAME) -> int:
    """The installed command, and `python -m bench`; returns the exit code."""
    words = (sys.argv[1:] if words is None else words) or ["--help"]
    command = typer.main.get_command(app)
    kept = KEPT if list(words[:1]) == ["run"] else "interrupted"
    return run_main(lambda: invoke(command, words, program), "bench", interrupted=kept)


def module_main(name: str, words: Sequence[str] | None = None) -> int:
    """`python -m bench.NAME`: one command of the application."""
    words = sys.argv[1:] if words is None else words
    application: Any = typer.main.get_command(app)
    command, program = application.commands[name], f"python -m bench.{name}"
    if name == "run":
        return run_main(lambda: invoke(command, words, program), "bench", interrupted=KEPT)
    return run_main(lambda: invoke(command, words, program), f"bench.{name}")
