"""`python -m bench.catalogue`: write docs/attacks.md, and the table of codes in docs/soundness.md.

Both come from what is registered and from `bench.soundness.codes`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bench.cli.main import run_main
from bench.entry_points import ROOT
from bench.questions.budgets import read_budget
from bench.questions.discover import discover
from bench.questions.facts import QuestionFacts
from bench.questions.registry import Entry, attacks, questions
from bench.questions.resolve import Context, resolve_inner_attack
from bench.questions.spec import NORMS, format_value
from bench.soundness.codes import all_codes

PAGE = ROOT / "docs" / "attacks.md"
CODES_PAGE = ROOT / "docs" / "soundness.md"
CODES_BEGIN = "<!-- codes: written by `python -m bench.catalogue` from bench/soundness/codes.py -->"
CODES_END = "<!-- end of codes -->"
OURS = ("bench.attacks.", "bench.checks.")
BUDGETS = ("quick", "standard", "full")
COLUMNS = (
    "attack",
    "family",
    "access",
    "norms",
    "deterministic defences",
    *(f"calls at {budget}" for budget in BUDGETS),
    "paper",
)
HEAD = """# The attacks

Written by `python -m bench.catalogue` from the registry: edit the docstrings, not this page.
Every attack proposes. The harness projects its candidates into ball and box, chooses among them
on draws that the attack did not see, and judges on further ones
([how it judges](../README.md#how-it-judges)).

- *Access* is enforced: `white-box` sees gradients and declared parts, `score` logits, `decision`
  labels, `transfer` another model.
- *Calls* are the most forward passes per example, a backward counting as two: on a deterministic
  defence / on a stochastic one, where every draw counts. Where an example falls early, it is less.
  A dash: not in that budget's list; it can always be named.
- *Knobs* stand with their defaults, which are the published settings; a budget sets some of them
  ([budgets.toml](../bench/questions/plans/budgets.toml)).
"""


def make_page() -> str:
    """The whole page: a table of all attacks and checks, then a section for each."""
    entries = [entry for entry in questions() if entry.make.__module__.startswith(OURS)]
    by_family = sorted(entries, key=lambda entry: (entry.facts.family, entry.name))
    lines = [HEAD, format_row(COLUMNS), format_row(["---"] * len(COLUMNS))]
    lines += [format_row(describe_entry(entry)) for entry in by_family]
    lines.append("")
    for entry in sorted(entries, key=lambda entry: entry.name):
        lines += make_section(entry)
    return "\n".join(lines)


def format_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def describe_entry(entry: Entry[QuestionFacts]) -> list[str]:
    """A text for each of the columns."""
    facts = entry.facts
    return [
        f"[`{entry.name}`](#{entry.name})",
        facts.family,
        facts.access,
        ", ".join(norm for norm in NORMS if norm in facts.norms),
        "stochastic only" if facts.stochastic_only else "yes",
        *(count_calls(entry, budget) for budget in BUDGETS),
        list_papers(entry),
    ]


def count_calls(entry: Entry[QuestionFacts], budget_name: str) -> str:
    """The most calls per example with the budget's knobs; a dash where its list lacks the attack.

    On deterministic defences / on stochastic ones, where the two differ.
    """
    budget = read_budget(budget_name)
    listed = {text.partition("[")[0] for text in budget["attacks"]} | {"none"}
    if entry.name not in listed or not entry.facts.calls:
        return "-"
    knobs: Mapping[str, Any] = entry.resolve(budget.get(entry.name, {}))
    if "attack" in knobs:
        inner = resolve_inner_attack(entry, str(knobs["attack"]), Context({}, budget))
        knobs = {**knobs, "attack": inner}
    deterministic = f"{entry.facts.calls(knobs, False):,.0f}"
    stochastic = f"{entry.facts.calls(knobs, True):,.0f}"
    if entry.facts.stochastic_only or deterministic == stochastic:
        return stochastic
    return f"{deterministic} / {stochastic}"


def list_papers(entry: Entry[QuestionFacts]) -> str:
    numbers = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", docstring_of(entry)))
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in numbers)


def docstring_of(entry: Entry[QuestionFacts]) -> str:
    return inspect.getdoc(entry.make) or ""


def make_section(entry: Entry[QuestionFacts]) -> list[str]:
    knobs = [f"`{name}={format_value(knob.default)}`" for name, knob in entry.knobs.items()]
    choices = [
        f"`{knob.name}` is {', '.join(sorted(knob.choices))}"
        for knob in entry.knobs.values()
        if knob.choices
    ]
    line = f"Knobs: {', '.join(knobs) or 'none'}"
    if choices:
        line += f" ({'; '.join(choices)})"
    return [f"## {entry.name}", "", describe(entry), "", f"{line}.", ""]


def describe(entry: Entry[QuestionFacts]) -> str:
    """The docstring; a pointer to it where the function has its own section under its own name."""
    own_name = entry.make.__name__.replace("_", "-")
    if entry.name != own_name and own_name in attacks:
        return f"The function of [`{own_name}`](#{own_name}) with the knobs below: see there."
    return docstring_of(entry)


def make_codes_page(text: str) -> str:
    """The text of docs/soundness.md with the table of codes as it is today."""
    before, _, rest = text.partition(CODES_BEGIN)
    _, _, after = rest.partition(CODES_END)
    return f"{before}{CODES_BEGIN}\n{make_codes_table()}\n{CODES_END}{after}"


def make_codes_table() -> str:
    """Every code of ours: what it asks, when its flag is hard or soft, and who looks."""
    rows = [("code", "asks", "hard", "soft", "looked at by"), ("---",) * 5]
    rows += [(code.id, code.question, code.hard, code.soft, code.looks) for code in all_codes()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    return run_main(write_pages, "bench.catalogue")


def write_pages() -> None:
    discover()
    PAGE.write_text(make_page())
    CODES_PAGE.write_text(make_codes_page(CODES_PAGE.read_text()))
