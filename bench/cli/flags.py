"""The flags that commands share, as types of the arguments of a Typer command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

LISTS = ("attacks", "classifiers", "datasets", "defences")


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"invalid int value: {text!r}") from None


def kind_of_list(text: str) -> str:
    if text not in LISTS:
        names = ", ".join(map(repr, LISTS))
        raise typer.BadParameter(f"invalid choice: {text!r} (choose from {names})")
    return text


def text_flag(help: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help, metavar=metavar)


def number_flag(help: str) -> Any:
    return typer.Option(help=help, parser=whole_number, metavar="INTEGER")


Dataset = Annotated[str | None, text_flag("A registered dataset, or folder:PATH.")]
Defences = Annotated[
    str | None, text_flag("Names with knobs, such as carso[samples=16]; default: all.", "A,B")
]
Attacks = Annotated[
    str | None,
    text_flag("Names with knobs, such as pgd[steps=100]; default: the budget's.", "A,B"),
]
Norm = Annotated[str | None, text_flag("linf, l2, l1 or l0; default: the dataset's.")]
Eps = Annotated[
    str | None,
    text_flag(
        "A fraction such as 8/255, in pixel units of [0,1], or several: 2/255,4/255,8/255; "
        "default: the dataset's."
    ),
]
Queries = Annotated[
    str | None,
    text_flag(
        "Of the black-box attacks that count them, one or several: 100,1000,5000; "
        "default: the budget's."
    ),
]
Number = Annotated[
    int | None,
    number_flag("Examples, from the fixed class-stratified subset of the test split."),
]
First = Annotated[
    int | None,
    number_flag("Instead of --n: the first examples of the test split, as published protocols do."),
]
Seed = Annotated[int | None, number_flag("Of the attacks and of the judging.")]
Draws = Annotated[int | None, number_flag("Evaluation draws of a stochastic defence.")]
Select = Annotated[int | None, number_flag("Selection draws of a stochastic defence.")]
Batch = Annotated[int | None, number_flag("Examples attacked together; part of the question.")]
Budget = Annotated[str | None, text_flag("quick, standard or full.")]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan", metavar="FILE", help="A TOML plan, or the name of one in bench/questions/plans."
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="FILE", help="A Python file with plug-ins of yours."),
]
Out = Annotated[Path, typer.Option(help="The folder of records and leaderboards.")]
Folder = Annotated[Path, typer.Option(help="The folder that a sweep wrote.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Where data sets lie; default: BENCH_DATA, or data/.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
