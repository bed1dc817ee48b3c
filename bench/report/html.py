"""All leaderboards as one self-contained page: it asks nothing of the network. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from bench.report.chart import chart
from bench.report.markdown import CERTIFIED, ranged
from bench.report.provenance import provenance
from bench.report.repeats import BESIDE, MEANING, beside, several
from bench.report.tables import rests_on
from bench.results.leaderboard import Leaderboard, Row
from bench.results.names import family
from bench.results.published import Published
from bench.results.record import Record
from bench.results.statistics import Estimate, estimate
from bench.soundness import verdict
from bench.soundness.audits import records as audits

TEMPLATE = Path(__file__).with_name("page.html")
KEY = (
    '<p class="faint"><span class="key clean"></span> clean <span class="key robust"></span> robust (worst case) '
    '<span class="key tick"></span> each attack alone</p>'
)


def page(boards: Sequence[Leaderboard]) -> str:
    body = "\n".join([contents(boards), *(section(board) for board in boards), codes(boards)])
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(body=body)


def contents(boards: Sequence[Leaderboard]) -> str:
    if len(boards) == 1:
        return ""
    return (
        "<p>"
        + " · ".join(
            f'<a href="#{escape(board.name)}">{escape(heading(board))}</a>' for board in boards
        )
        + "</p>"
    )


def heading(board: Leaderboard) -> str:
    return f"{board.dataset}, {board.norm}, eps {board.eps}"


def section(board: Leaderboard) -> str:
    drawn = chart(board)
    parts = [
        f'<h2 id="{escape(board.name)}">{escape(heading(board))}</h2>',
        summary(board),
        drawn and drawn + KEY,
        leaders(board),
        "<h3>Accuracy under each attack alone</h3>",
        matrix(board),
        repeated(board),
        certificates(board),
        "<h3>Why these verdicts, and every cell</h3>",
        *(drill(row) for row in board.rows),
        "<h3>Where the numbers come from</h3>",
        sources(board),
        others(board.published),
    ]
    return "\n".join(part for part in parts if part)


def summary(board: Leaderboard) -> str:
    sizes = sorted({row.n for row in board.rows if row.n})
    where = dict(provenance(board))
    facts = [
        f"n {', '.join(map(str, sizes))}",
        *(
            f"{name} {', '.join(where[name])}"
            for name in ("seed", "device", "commit")
            if name in where
        ),
    ]
    return f'<p class="faint">{escape(" · ".join(facts))}</p>'


def leaders(board: Leaderboard) -> str:
    header = ("defence", "#", "robust", "verdict", "clean", "strongest attack", "cost", "published")
    return table(header, (leader(row) for row in board.rows), numbers={1, 2, 4, 6, 7})


def leader(row: Row) -> list[str]:
    doubt = "" if row.complete else " <small>cells missing</small>"
    cost = number(row.cost_ratio, ".1f", "×")
    claim = number(row.published.robust if row.published else None, ".3f")
    badge = f'<td><span class="verdict {row.verdict}">{row.verdict}</span>{doubt}</td>'
    return [
        named(row),
        number(row.rank, "d"),
        score(row.robust, bound=True),
        badge,
        score(row.clean),
        text(row.strongest_attack),
        cost,
        claim,
    ]


def named(row: Row) -> str:
    return f"<td>{escape(row.defence)}<small>{escape(row.classifier)}</small></td>"


def matrix(board: Leaderboard) -> str:
    attacks = [label for label in board.attacks if label != "none"]
    return table(
        ("defence", *attacks),
        ([named(row), *(heat(row.accuracies.get(a)) for a in attacks)] for row in board.rows),
        set(range(1, len(attacks) + 1)),
    )


def repeated(board: Leaderboard) -> str:
    """One answer beside several of the stochastic rows; empty where there are none."""
    if not several(board):
        return ""
    rows = (
        [named(row), *(number(value, ".3f") for value in beside(row))]
        for row in board.rows
        if row.stochastic
    )
    return f"<h3>Asked again</h3><p>{escape(MEANING)}</p>{table(('defence', *BESIDE), rows, set(range(1, len(BESIDE) + 1)))}"


def certificates(board: Leaderboard) -> str:
    """Certified accuracy by l2 radius; empty where no row certifies."""
    held = [row for row in board.rows if row.certificate]
    if not held:
        return ""
    rows = (
        [named(row), *(score(row.certified(radius)) for radius in board.radii), text(rests_on(row))]
        for row in held
    )
    shown = table(("defence", *board.radii, "rests on"), rows, set(range(1, len(board.radii) + 1)))
    return f"<h3>Certified accuracy by l2 radius</h3><p>{escape(CERTIFIED)}</p>{shown}"


def heat(value: float | None) -> str:
    return (
        "<td></td>"
        if value is None
        else f'<td class="number heat" style="--share:{value:.3f}">{value:.3f}</td>'
    )


def drill(row: Row) -> str:
    header = (
        "attack",
        "family",
        "accuracy",
        "calls",
        "gradients",
        "NaN",
        "zero",
        "seconds",
        "flags",
        "key",
    )
    cells = table(header, (answer(record) for record in row.records), numbers={2, 3, 4, 5, 6, 7})
    badge = f'<span class="verdict {row.verdict}">{row.verdict}</span>'
    reasons = f'<span class="faint">{escape("; ".join(row.reasons))}</span>'
    spec = f'<p class="mono">{escape(str(row.cell.defence))}</p>'
    return f"<details><summary>{escape(row.defence)}: {badge} {reasons}</summary>{spec}{cells}</details>"


def answer(record: Record) -> list[str]:
    n, cost = len(record.ids), record.cost
    flags = " ".join(dict.fromkeys(flag.id for flag in record.flags))
    own = score(estimate(record.correct, record.cell.draws))
    calls = [
        number(cost.forwards / n, ".0f"),
        number(cost.backwards / n, ".0f"),
        number(cost.nonfinite, "d"),
        number(cost.zero, "d"),
    ]
    spec = f'<td class="wrap mono">{escape(str(record.cell.attack))}</td>'
    return [
        spec,
        text(family(record.cell)),
        own,
        *calls,
        number(cost.seconds, ".1f"),
        text(flags),
        f'<td class="mono">{record.cell.key}</td>',
    ]


def sources(board: Leaderboard) -> str:
    found = ""
    for name, values in provenance(board):
        lines = "".join(f'<div class="mono">{escape(value)}</div>' for value in values)
        found += f"<dt>{escape(name)}</dt><dd>{lines}</dd>"
    return f"<details><summary>commands, commits, data, weights, versions</summary><dl>{found}</dl></details>"


def others(beside: Sequence[Published]) -> str:
    if not beside:
        return ""
    names, values = (
        ((p.defence, p.classifier, p.attack) for p in beside),
        ((p.clean, p.robust) for p in beside),
    )
    where = (f'<td class="wrap">{escape(p.source)}</td>' for p in beside)
    rows = (
        [*map(text, a), *(number(v, ".3f") for v in b), c]
        for a, b, c in zip(names, values, where, strict=True)
    )
    shown = table(
        ("defence", "classifier", "attack", "clean", "robust", "source"), rows, numbers={3, 4}
    )
    return f"<details><summary>What others published for this threat model ({len(beside)} figures; none was measured here)</summary>{shown}</details>"


def codes(boards: Sequence[Leaderboard]) -> str:
    """What the codes mean that occur on the page."""
    said = " ".join(reason for board in boards for row in board.rows for reason in row.reasons)
    used = {
        code for reason in verdict.spelt(said).split() for code in re.findall(r"[A-Z]\d+", reason)
    }
    meaning = {**verdict.MEANING, **audits.MEANING}
    known = [code for code in sorted(meaning, key=verdict.order) if code in used]
    if not known:
        return ""
    listed = "".join(f"<dt>{code}</dt><dd>{escape(meaning[code])}</dd>" for code in known)
    return f"<h2>What the codes mean</h2><dl>{listed}</dl>"


def score(estimate: Estimate | None, bound: bool = False) -> str:
    if not estimate:
        return "<td></td>"
    mean, _, limits = ranged(estimate).partition(" ")
    shown = f"≤&nbsp;<b>{mean}</b>" if bound else mean
    return (
        f'<td class="number" data-value="{estimate.mean:.6f}">{shown} <small>{limits}</small></td>'
    )


def number(value: float | None, form: str, unit: str = "") -> str:
    return (
        "<td></td>"
        if value is None
        else f'<td class="number" data-value="{value:.6g}">{format(value, form)}{unit}</td>'
    )


def text(value: str) -> str:
    return f"<td>{escape(value)}</td>"


def breakable(label: str) -> str:
    """`transfer[source=own:x]` may break where a knob or its value begins."""
    return re.sub(r"([\[=,:])", r"\1<wbr>", escape(label))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)
    names = (
        f"<th{' class=number' if i in right else ''}><button>{breakable(name)}</button></th>"
        for i, name in enumerate(header)
    )
    lines = "".join(f"<tr>{''.join(cells)}</tr>\n" for cells in rows)
    return f'<div class="scroll stick"><table><thead><tr>{"".join(names)}</tr></thead><tbody>\n{lines}</tbody></table></div>'
