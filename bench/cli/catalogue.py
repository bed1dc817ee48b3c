"""`python -m bench.catalogue`: write docs/attacks.md, the page of all attacks, from what is registered."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.cli.main import run_main
from bench.questions.facts import QuestionFacts
from bench.questions.plan import read_budget, resolve_inner_attack
from bench.questions.registry import ROOT, Entry, discover, questions
from bench.questions.spec import NORMS, format_value

PAGE = ROOT / "docs" / "attacks.md"
BUDGETS = ("quick", "standard", "full")
HEAD = """# The attacks

Written by `python -m bench.catalogue` from the registry: edit the docstrings, not this page. Every attack proposes; the harness projects its
candidates into ball and box, chooses among them on draws that the attack did not see, and judges on further ones
([how it judges](../README.md#how-it-judges)).

- *Access* is enforced: `white-box` sees gradients and declared parts, `score` logits, `decision` labels, `transfer` another model.
- *Calls* are the most forward passes per example, a backward counting as two: on a deterministic defence / on a stochastic one, where every draw
  counts. Where an example falls early, it is less. A dash: not in that budget's list; it can always be named.
- *Knobs* stand with their defaults, which are the published settings; a budget sets some of them ([budgets.toml](../bench/questions/plans/budgets.toml)).
"""


def page() -> str:
    """The whole page."""
    rows = [
        row(entry)
        for entry in sorted(questions(), key=lambda entry: (entry.facts.family, entry.name))
        if ours(entry)
    ]
    names = (
        "attack",
        "family",
        "access",
        "norms",
        "deterministic defences",
        *(f"calls at {name}" for name in BUDGETS),
        "paper",
    )
    lines = ["| " + " | ".join(cells) + " |" for cells in (names, ("---",) * len(names), *rows)]
    return "\n".join(
        [
            HEAD,
            *lines,
            "",
            *(
                text
                for entry in sorted(questions(), key=lambda one: one.name)
                if ours(entry)
                for text in section(entry)
            ),
        ]
    )


def ours(entry: Entry[QuestionFacts]) -> bool:
    return entry.make.__module__.startswith(("bench.attacks.", "bench.checks."))


def row(entry: Entry[QuestionFacts]) -> tuple[str, ...]:
    facts = entry.facts
    norms = ", ".join(norm for norm in NORMS if norm in facts.norms)
    fits = "stochastic only" if facts.stochastic_only else "yes"
    return (
        f"[`{entry.name}`](#{entry.name})",
        facts.family,
        facts.access,
        norms,
        fits,
        *(calls(entry, name) for name in BUDGETS),
        papers(entry),
    )


def calls(entry: Entry[QuestionFacts], name: str) -> str:
    """The most calls per example with this budget's knobs, on deterministic and stochastic defences; a dash where its list lacks the attack."""
    budget = read_budget(name)
    listed = {text.partition("[")[0] for text in budget["attacks"]} | {"none"}
    if entry.name not in listed or not entry.facts.calls:
        return "-"
    knobs: Mapping[str, Any] = entry.resolve(budget.get(entry.name, {}))
    if "attack" in knobs:
        knobs = {**knobs, "attack": resolve_inner_attack(entry, str(knobs["attack"]), budget, {})}
    counts = [f"{entry.facts.calls(knobs, stochastic):,.0f}" for stochastic in (False, True)]
    return (
        counts[1]
        if entry.facts.stochastic_only
        else counts[0]
        if counts[0] == counts[1]
        else " / ".join(counts)
    )


def papers(entry: Entry[QuestionFacts]) -> str:
    found = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", text_of(entry)))
    return ", ".join(f"[{one}](https://arxiv.org/abs/{one})" for one in found)


def text_of(entry: Entry[QuestionFacts]) -> str:
    return inspect.getdoc(entry.make) or ""


def section(entry: Entry[QuestionFacts]) -> list[str]:
    knobs = ", ".join(
        f"`{knob}={format_value(value.default)}`" for knob, value in entry.knobs.items()
    )
    choices = "; ".join(
        f"`{knob.name}` is {', '.join(sorted(knob.choices))}"
        for knob in entry.knobs.values()
        if knob.choices
    )
    return [
        f"## {entry.name}",
        "",
        text_of(entry),
        "",
        f"Knobs: {knobs or 'none'}{f' ({choices})' if choices else ''}.",
        "",
    ]


def main() -> int:
    return run_main(write_page, "bench.catalogue")


def write_page(path: Path = PAGE) -> None:
    discover()
    path.write_text(page())
