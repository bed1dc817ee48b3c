"""All leaderboards as one self-contained page: it asks nothing of the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report.markdown import CERTIFIED_MEANING, format_interval
from bench.report.provenance import collect_provenance
from bench.report.repeats import HEADINGS, MEANING, shares_under_headings
from bench.report.tables import describe_certificate
from bench.results.leaderboard import Leaderboard
from bench.results.statistics import estimate
from bench.soundness.codes import code_order, code_questions
from bench.soundness.verdict import expand_ranges

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
CHART_LEFT = 14  # of the 480 units that the drawing is wide
CHART_RIGHT = 466


def render_page(boards: Sequence[Leaderboard]) -> str:
    """The text of report.html. Jinja escapes all that the records say."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "breakable": mark_breaks,
        "interval": format_interval,
        "x": chart_position,
    }
    environment.globals |= {
        "certified_meaning": CERTIFIED_MEANING,
        "estimate": estimate,
        "collect_provenance": collect_provenance,
        "repeats_headings": HEADINGS,
        "repeats_meaning": MEANING,
        "shares_under_headings": shares_under_headings,
        "describe_certificate": describe_certificate,
        "summary": summarise,
    }
    template = environment.get_template("page.html.j2")
    page = template.render(boards=boards, codes=explain_codes(boards))
    # The same entities as those of `html.escape`, of which the published pages are made.
    return page.replace("&#39;", "&#x27;").replace("&#34;", "&quot;")


def summarise(board: Leaderboard) -> list[str]:
    """The sizes of the rows, and the seeds, devices and commits of their records."""
    sizes = sorted({row.n for row in board.rows if row.n})
    facts = [f"n {', '.join(map(str, sizes))}"]
    sources = dict(collect_provenance(board))
    names = [name for name in ("seed", "device", "commit") if name in sources]
    return facts + [f"{name} {', '.join(sources[name])}" for name in names]


def explain_codes(boards: Sequence[Leaderboard]) -> list[tuple[str, str]]:
    """The codes that occur in the reasons of the rows, and what they mean."""
    reasons = " ".join(reason for board in boards for row in board.rows for reason in row.reasons)
    used = set(re.findall(r"[A-Z]\d+", expand_ranges(reasons)))
    questions = code_questions()
    return [(code, questions[code]) for code in sorted(questions, key=code_order) if code in used]


def mark_breaks(label: str) -> Markup:
    """`transfer[source=own:x]` may break where a knob or its value begins."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([\[=,:])", r"\1<wbr>", str(escape(label))))


def chart_position(share: float) -> str:
    """Where a share in [0,1] lies in the drawing, from left to right."""
    return f"{CHART_LEFT + share * (CHART_RIGHT - CHART_LEFT):.1f}"
