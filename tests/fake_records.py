"""Small records made by hand, for the parts that only read records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from bench.questions.facts import AttackTraits
from bench.questions.spec import Cell, Spec, ThreatModel
from bench.report import build_leaderboards
from bench.results import legacy
from bench.results.evidence import Evidence
from bench.results.leaderboard import Row
from bench.results.published import PublishedResult
from bench.results.record import Certificate, Cost, Env, Flag, Record
from bench.results.worst_case import WorstCase, worst_case

ACCESS = {
    "square": "score",
    "spsa": "score",
    "boundary": "decision",
    "hopskipjump": "decision",
    "transfer": "transfer",
}


def cell(
    attack: str = "none",
    defence: str = "at[classifier=own:digits-at@1a2b3c4d]",
    *,
    dataset: str = "digits[n=4]",
    norm: str = "linf",
    eps: str = "1/5",
    seed: int = 0,
    select: int = 1,
    draws: int = 1,
) -> Cell:
    spec = Spec.parse(attack)
    threat = ThreatModel(norm, Fraction(eps), ACCESS.get(spec.name, "white-box"))
    return Cell(Spec.parse(dataset), Spec.parse(defence), spec, threat, seed, select, draws, 50)


def record(
    cell: Cell,
    correct: Sequence[int],
    *,
    selected: Sequence[int] | None = None,
    clean: Sequence[int] | None = None,
    margin: Sequence[float] | None = None,
    distance: Sequence[float] | None = None,
    strayed: Sequence[float] | None = None,
    cost: Cost | None = None,
    flags: Sequence[Flag] = (),
    env: Env | None = None,
    certificate: Certificate | None = None,
    traits: AttackTraits | None = None,
) -> Record:
    """The answer to `cell` with the evaluation counts `correct`.

    What is not given is as on an example that is right when it is clean, that the attack moved by
    eps, and of which selection and evaluation draws say the same.
    """
    n = len(correct)
    if selected is None:
        selected = [round(count * cell.select / cell.draws) for count in correct]
    moved = 0.0 if cell.attack.name == "none" else float(cell.threat.eps)
    return Record(
        cell=cell,
        **legacy.traits_of(cell) | ({"attack_traits": traits} if traits else {}),
        ids=tuple(range(n)),
        clean=tuple(clean or (cell.select,) * n),
        selected=tuple(selected),
        margin=tuple(margin or (0.0,) * n),
        correct=tuple(correct),
        distance=tuple(distance or (moved,) * n),
        strayed=tuple(strayed or (0.0,) * n),
        cost=cost or Cost(),
        flags=tuple(flags),
        env=env or Env(),
        certificate=certificate,
    )


def build_rows(
    records: Sequence[Record], plans: Mapping[str, Sequence[Cell]], failures: Mapping[str, str]
) -> tuple[Row, ...]:
    """The rows of the one leaderboard that the cells are of."""
    (board,) = build_leaderboards(records, plans, failures)
    return board.rows


def evidence(
    records: Sequence[Record],
    *,
    checks: Sequence[Record] = (),
    other_eps: Sequence[Record] = (),
    controls: Sequence[Record] = (),
    missing: Sequence[str] = (),
    worst: WorstCase | None = None,
    strongest_attack: str = "pgd",
    published: PublishedResult | None = None,
) -> Evidence:
    """The evidence on the row of these records."""
    if worst is None and any(r.family != "none" for r in records):
        worst = worst_case(records)
    return Evidence(
        cell=records[0].cell if records else cell(),
        records=tuple(records),
        checks=tuple(checks),
        missing=tuple(missing),
        missing_checks=(),
        other_eps=tuple(other_eps),
        controls=tuple(controls),
        worst=worst,
        strongest_attack=strongest_attack,
        published=published,
    )


def stands(share: float, n: int = 100) -> list[int]:
    """One right answer for this share of `n` examples, and none for the rest."""
    right = round(share * n)
    return [1] * right + [0] * (n - right)
