"""Figures that others published, shown beside the measured ones and never mixed in."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from bench.questions.pins import classifier_of
from bench.questions.spec import Cell
from bench.results.names import dataset_of

FOLDER = Path(__file__).parent / "published_figures"
# A published adversarially trained model is one classifier, whichever of our names it is run under.
PUBLISHED_AS = {"undefended": "at", "at": "at", "carso": "carso"}


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """One published figure; accuracies are fractions.

    `defence` is `at`, `carso` or `purification`. `classifier` is empty where it is unknown.
    """

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
class ZooEntry:
    """A classifier of RobustBench's zoo, as it is known without its weights.

    `files` is the number of its weights files (0: timm keeps them). Accuracies are fractions, under
    AutoAttack at `eps`; None where RobustBench publishes none.
    """

    architecture: str
    parameters: int
    files: int
    venue: str
    eps: str
    clean: float | None
    robust: float | None


@functools.cache
def zoo(folder: Path = FOLDER) -> dict[str, ZooEntry]:
    """The CIFAR entries of RobustBench's zoo by the name that `--defences` takes, sorted."""
    facts = {
        zoo_name(row): row
        for file in ("corruptions.csv", "robustbench.csv")
        for row in read_csv(folder / file)
    }
    entries = {}
    for row in read_csv(folder / "zoo.csv"):
        name = row["classifier"]
        entries[name] = zoo_entry(row, facts[name])
    return entries


def load(folder: Path = FOLDER) -> tuple[PublishedResult, ...]:
    """All published figures, of RobustBench under AutoAttack and of CARSO."""
    robustbench = load_robustbench(folder / "robustbench.csv")
    return (*robustbench, *load_carso(folder / "carso.csv"))


def match_published(published: Iterable[PublishedResult], cell: Cell) -> PublishedResult | None:
    """What was published for the defence of `cell`; of several figures the lowest.

    Classifier, dataset, norm and exact eps must be the same.
    """
    defence = PUBLISHED_AS.get(cell.defence.name)
    classifier = classifier_of(cell.defence)
    if not classifier:
        return None
    matches = [
        result
        for result in published_for(published, cell)
        if result.defence == defence and result.classifier == classifier
    ]
    return min(matches, key=lambda result: result.robust, default=None)


def published_for(published: Iterable[PublishedResult], cell: Cell) -> list[PublishedResult]:
    """What was published for the dataset and threat model of `cell`, best first."""
    location = (str(dataset_of(cell)), cell.threat.norm, cell.threat.eps)
    return sorted(
        (result for result in published if (result.dataset, result.norm, result.eps) == location),
        key=lambda result: (-result.robust, result.classifier, result.attack),
    )


def load_robustbench(path: Path) -> Iterator[PublishedResult]:
    for row in read_csv(path):
        yield PublishedResult(
            dataset=row["dataset"],
            norm=row["norm"].lower(),
            eps=Fraction(row["eps"]),
            defence="at",
            classifier=zoo_name(row),
            attack="AutoAttack",
            clean=read_percent(row["clean_acc"]),
            robust=float(row["autoattack_acc"]) / 100,
            source=row["paper"],
        )


def load_carso(path: Path) -> Iterator[PublishedResult]:
    for row in read_csv(path):
        yield PublishedResult(
            dataset=row["dataset"],
            norm=row["norm"].lower(),
            eps=Fraction(row["eps"]),
            defence=row["defence"],
            classifier=row["classifier"],
            attack=row["attack"],
            clean=read_percent(row["clean_acc"]),
            robust=float(row["robust_acc"]) / 100,
            source=row["source"],
            note=f"{row['described']}; {row['note']}",
        )


def zoo_entry(row: dict[str, str], facts: dict[str, str]) -> ZooEntry:
    return ZooEntry(
        architecture=facts["architecture"],
        parameters=int(row["parameters"]),
        files=int(row["files"]),
        venue=facts["venue"],
        eps=facts.get("eps", ""),
        clean=read_percent(facts.get("clean_acc", "")),
        robust=read_percent(facts.get("autoattack_acc", "")),
    )


def zoo_name(row: dict[str, str]) -> str:
    """What `--defences` calls the model.

    The bare name is that of CIFAR-10 in linf; the others stand after their dataset and threat.
    """
    if row["dataset"] == "cifar10" and row["norm"] == "Linf":
        return f"robustbench:{row['model']}"
    return f"robustbench:{row['dataset']}/{row['norm']}/{row['model']}"


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of the file, without its comments."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def read_percent(text: str) -> float | None:
    """A share in [0,1]; None for an empty text."""
    return float(text) / 100 if text else None
