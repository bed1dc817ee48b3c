"""What is registered: names, knobs, and what each is."""

from __future__ import annotations

import itertools
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import weights
from bench.questions import registry
from bench.results import published

KINDS = {
    "attacks": "attack",
    "classifiers": "classifier",
    "datasets": "dataset",
    "defences": "defence",
}
CLASSIFIERS_WIDTH = 150
LEGEND = (
    "RN: ResNet; WRN: WideResNet; param.: millions; clean, AA: published accuracy in percent, "
    "without an attack and under AutoAttack at eps"
)


def show_list(console: Console, what: str, plugins: tuple[Path, ...]) -> None:
    """The names of one kind, as a table."""
    from bench.judging.plugins import load_plugins

    for note in load_plugins(plugins):
        console.print(f"note: {escape(note)}", soft_wrap=True)
    if what == "classifiers":
        show_classifiers(console)
        return
    table = Table("name", "knobs", "what it is", box=None, pad_edge=False)
    kind = KINDS[what]
    entries = registry.questions() if kind == "attack" else registry.registries[kind]
    for entry in sorted(entries, key=lambda entry: entry.name):
        knobs = ", ".join(f"{name}={knob.default}" for name, knob in entry.knobs.items())
        table.add_row(entry.name, escape(knobs), escape(entry.summary))
    console.print(table)


def show_classifiers(console: Console) -> None:
    """A table for each scheme, or for each dataset and threat model of a scheme.

    No name is folded: names are there to be copied.
    """
    console.width = max(console.width, CLASSIFIERS_WIDTH)
    for entry in sorted(registry.classifiers, key=lambda entry: entry.name):
        console.print(f"{entry.name}:...  {escape(entry.summary)}")
        names = [f"{entry.name}:{name}" for name in registry.names_of(entry) or ()]
        for _, group in itertools.groupby(names, key=lambda name: name.rpartition("/")[0]):
            console.print(make_table(list(group)))
    console.print(LEGEND)


def make_table(names: list[str]) -> Table:
    table = Table("name", "architecture", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("param.", "clean", "AA", "eps"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("venue")
    for name in names:
        table.add_row(name, *describe_classifier(name))
    return table


def describe_classifier(name: str) -> tuple[str, ...]:
    """What is known of a classifier without building it, one text for each column."""
    if name.startswith("own:"):
        card = weights.card(name)
        return str(card["arch"]["name"]), f"{card['parameters'] / 1e6:.2f}"
    entry = published.zoo().get(name)
    if entry is None:
        return ()
    architecture = entry.architecture.replace("WideResNet", "WRN").replace("ResNet", "RN")
    return (
        architecture.replace(" + ", "+"),
        f"{entry.parameters / 1e6:.2f}",
        format_percent(entry.clean),
        format_percent(entry.robust),
        entry.eps,
        entry.venue,
    )


def format_percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
