"""Figures that others published, shown beside the measured ones and never mixed in. Standard library only."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from bench.questions.spec import Cell
from bench.results.names import classifier_of, dataset_of

FOLDER = Path(__file__).parent / "published_figures"
# A published adversarially trained model is one classifier, whichever of our names it is run under.
AS_PUBLISHED = {"undefended": "at", "at": "at", "carso": "carso"}


@dataclass(frozen=True, slots=True)
class Published:
    """One published figure; accuracies are fractions. `defence` is `at`, `carso` or `purification`; `classifier` is empty where unknown."""

    dataset: str
    norm: str
    eps: Fraction
    defence: str
    classifier: str
    attack: str
    clean: float | None
    robust: float
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """A classifier of RobustBench's zoo, as it is known without its weights, which are so many `files` (none: timm keeps them).

    Accuracies are fractions, under AutoAttack at `eps`; None where RobustBench publishes none.
    """

    architecture: str
    parameters: int
    files: int
    venue: str
    eps: str
    clean: float | None
    robust: float | None


@functools.cache
def zoo(folder: Path = FOLDER) -> dict[str, Listed]:
    """The CIFAR entries of RobustBench's zoo by the name that `--defences` takes, sorted."""
    told = {
        _named(row): row
        for name in ("corruptions.csv", "robustbench.csv")
        for row in _read(folder / name)
    }
    return {
        row["classifier"]: _listed(row, told[row["classifier"]])
        for row in _read(folder / "zoo.csv")
    }


def load(folder: Path = FOLDER) -> tuple[Published, ...]:
    """All published figures, of RobustBench (AutoAttack, as its leaderboard prints them) and on CARSO."""
    return (*_robustbench(folder / "robustbench.csv"), *_carso(folder / "carso.csv"))


def match_published(published: Iterable[Published], cell: Cell) -> Published | None:
    """What was published for the defence of `cell`: same classifier, dataset, norm and exactly the same eps. The lowest figure counts."""
    defence = AS_PUBLISHED.get(cell.defence.name)
    classifier = classifier_of(cell.defence)
    found = [
        p
        for p in published_for(published, cell)
        if p.defence == defence and p.classifier == classifier != ""
    ]
    return min(found, key=lambda p: p.robust, default=None)


def published_for(published: Iterable[Published], cell: Cell) -> list[Published]:
    """What was published for the dataset and threat model of `cell`, best first."""
    where = (str(dataset_of(cell)), cell.threat.norm, cell.threat.eps)
    return sorted(
        (p for p in published if (p.dataset, p.norm, p.eps) == where),
        key=lambda p: (-p.robust, p.classifier, p.attack),
    )


def _robustbench(path: Path) -> Iterator[Published]:
    for row in _read(path):
        clean, robust = _share(row["clean_acc"]), float(row["autoattack_acc"]) / 100
        yield Published(*_where(row), "at", _named(row), "AutoAttack", clean, robust, row["paper"])


def _carso(path: Path) -> Iterator[Published]:
    for row in _read(path):
        clean, robust, note = (
            _share(row["clean_acc"]),
            float(row["robust_acc"]) / 100,
            f"{row['described']}; {row['note']}",
        )
        yield Published(
            *_where(row),
            row["defence"],
            row["classifier"],
            row["attack"],
            clean,
            robust,
            row["source"],
            note,
        )


def _listed(row: dict[str, str], told: dict[str, str]) -> Listed:
    clean, robust = _share(told.get("clean_acc", "")), _share(told.get("autoattack_acc", ""))
    return Listed(
        told["architecture"],
        int(row["parameters"]),
        int(row["files"]),
        told["venue"],
        told.get("eps", ""),
        clean,
        robust,
    )


def _named(row: dict[str, str]) -> str:
    """What `--defences` calls the model: the bare name is that of CIFAR-10 linf, the others stand after dataset/threat."""
    split = row["dataset"], row["norm"]
    return (
        f"robustbench:{row['model']}"
        if split == ("cifar10", "Linf")
        else f"robustbench:{'/'.join(split)}/{row['model']}"
    )


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def _where(row: dict[str, str]) -> tuple[str, str, Fraction]:
    return row["dataset"], row["norm"].lower(), Fraction(row["eps"])


def _share(percent: str) -> float | None:
    return float(percent) / 100 if percent else None
