"""Leaderboards: a function of records, plans, failures and published figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import sha256

from bench.questions.facts import AttackTraits
from bench.questions.pins import classifier_of
from bench.questions.spec import NORMS, Cell, Spec
from bench.results.equal_sources import EqualSources
from bench.results.evidence import AskedCells, Assess, Assessment, BoardData, Evidence, gather
from bench.results.names import SAMPLING, dataset_of
from bench.results.published import PublishedResult, published_for
from bench.results.ranks import compute_ranks
from bench.results.record import Certificate, Flag, Record
from bench.results.statistics import Estimate, estimate

# The l2 radii at which certified accuracy is reported, beside the board's own eps if that is in l2.
RADII = ("0.25", "0.5", "0.75", "1")


@dataclass(frozen=True, slots=True)
class Row:
    """One defence on one set of examples. What is not known is None.

    `cell` is one of the cells of its question. `records` are its answers in plan order, `labels`
    the short names of their attacks. Accuracies and other shares are fractions. Checks are no
    attacks on the defence: they are not among the records, and what they found is in `flags` and
    `reasons`. `exempted` names the attacks that most comparable rows met and this row did not.
    """

    rank: int | None
    defence: str
    classifier: str
    cell: Cell
    n: int | None
    stochastic: bool
    clean: Estimate | None
    robust: Estimate | None
    strongest_attack: str
    verdict: str
    reasons: tuple[str, ...]
    complete: bool
    ms_per_image: float | None
    cost_ratio: float | None
    parameters: int | None
    published: PublishedResult | None
    flags: tuple[Flag, ...]
    records: tuple[Record, ...]
    labels: tuple[str, ...]
    exempted: tuple[str, ...] = ()

    @staticmethod
    def from_evidence(evidence: Evidence, assessment: Assessment, asked: AskedCells) -> Row:
        cell = evidence.cell
        clean = evidence.clean
        reasons = list(assessment.reasons)
        reasons += dict.fromkeys(note for record in evidence.records for note in record.notes)
        first = cell.dataset.params.get("first")
        if first:
            reasons.append(f"the first {first} examples, not a stratified subset")
        reasons += describe_kept(evidence.records, asked)
        ms_per_image = clean.cost.ms_per_image if clean else None
        base_ms_per_image = clean.cost.base_ms_per_image if clean else None
        cost_ratio = None
        if ms_per_image is not None and base_ms_per_image:
            cost_ratio = ms_per_image / base_ms_per_image
        return Row(
            rank=None,
            defence=asked.defences[cell.defence],
            classifier=classifier_of(cell.defence),
            cell=cell,
            n=len(evidence.records[0].ids) if evidence.records else planned_size(cell),
            stochastic=cell.stochastic,
            clean=estimate(clean.correct, clean.cell.draws) if clean else None,
            robust=evidence.robust,
            strongest_attack=evidence.strongest_attack,
            verdict=assessment.verdict,
            reasons=tuple(reasons),
            complete=bool(clean and evidence.worst and not evidence.missing),
            ms_per_image=ms_per_image,
            cost_ratio=cost_ratio,
            parameters=clean.cost.parameters if clean else None,
            published=evidence.published,
            flags=assessment.flags,
            records=evidence.records,
            labels=tuple(asked.attacks[r.cell.attack] for r in evidence.records),
        )

    @property
    def accuracies(self) -> dict[str, float]:
        """The accuracy under each attack alone, by the attack's label."""
        return {
            label: record.accuracy for label, record in zip(self.labels, self.records, strict=True)
        }

    @property
    def certificate(self) -> Certificate | None:
        return next((record.certificate for record in self.records if record.certificate), None)

    @property
    def examples(self) -> tuple[tuple[int, ...], str]:
        """Which images, of which data, the records judge: their ids and the digest of the data."""
        return self.records[0].ids, self.records[0].env.data

    def certified(self, radius: str) -> Estimate | None:
        """The share of examples whose certified l2 radius is larger than `radius`.

        It is a lower bound of robust accuracy at that radius.
        """
        if not self.certificate:
            return None
        return estimate(self.certificate.beyond(float(Fraction(radius))), 1)


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The rows of one dataset and threat model, best first.

    `attacks` are the short names of all attacks asked of any row. `published` is what others
    published for the same dataset and threat model.
    """

    name: str
    dataset: str
    norm: str
    eps: str
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]
    published: tuple[PublishedResult, ...]

    @property
    def radii(self) -> tuple[str, ...]:
        """The l2 radii of certified accuracy, in order; none where no row certifies."""
        if not any(row.certificate for row in self.rows):
            return ()
        radii = (self.eps, *RADII) if self.norm == "l2" else RADII
        by_value = {Fraction(radius): radius for radius in radii}
        return tuple(by_value[value] for value in sorted(by_value))


Location = tuple[Spec, str, Fraction]


def build_leaderboards(
    records: Sequence[Record],
    plans: Mapping[str, Sequence[Cell]],
    failures: Mapping[str, str],
    published: Iterable[PublishedResult],
    assess: Assess,
    *,
    traits: Mapping[str, AttackTraits] | None = None,
    equal: EqualSources | None = None,
) -> list[Leaderboard]:
    """One leaderboard per dataset, norm (linf first) and exact eps, in that order.

    `traits` are those of planned attacks, by name. `equal` says which code is the same.
    """
    published = tuple(published)
    records_at: dict[Location, list[Record]] = defaultdict(list)
    for record in records:
        records_at[location_of(record.cell)].append(record)
    planned = {location_of(cell) for plan in plans.values() for cell in plan}
    locations = sorted({*records_at, *planned}, key=location_order)
    boards_of_name = Counter((dataset.name, norm, eps) for dataset, norm, eps in locations)
    boards = []
    for location in locations:
        dataset, norm, eps = location
        plans_here = {
            name: [cell for cell in plan if location_of(cell) == location]
            for name, plan in plans.items()
        }
        data = BoardData(
            AskedCells.collect(records_at[location], plans_here, traits or {}),
            {record.cell.key: record for record in records_at[location]},
            failures,
            published,
            records_at_other_eps(location, records_at),
            equal or EqualSources(),
        )
        name = dataset.name
        if boards_of_name[dataset.name, norm, eps] > 1:
            # Two folders of images are both named `folder`: a digest tells their files apart.
            name += f"-{sha256(str(dataset).encode()).hexdigest()[:8]}"
        boards.append(build_leaderboard(name, data, assess))
    return boards


def build_leaderboard(dataset_name: str, data: BoardData, assess: Assess) -> Leaderboard:
    """The leaderboard of one dataset and threat model, with at least one cell."""
    rows = tuple(build_rows(data, assess))
    cell = rows[0].cell
    checks = {cell.attack for cell in data.asked.cells if data.asked.is_check(cell)}
    labels = [label for spec, label in data.asked.attacks.items() if spec not in checks]
    return Leaderboard(
        name=f"{dataset_name}-{cell.threat.label}",
        dataset=cell.dataset.name,
        norm=cell.threat.norm,
        eps=str(cell.threat.eps),
        attacks=tuple(dict.fromkeys(labels)),
        rows=rows,
        published=tuple(published_for(data.published, cell)),
    )


def location_of(cell: Cell) -> Location:
    """The dataset less the choice of examples, the norm and the eps: they name a leaderboard."""
    return dataset_of(cell), cell.threat.norm, cell.threat.eps


def location_order(location: Location) -> tuple[str, int, Fraction]:
    dataset, norm, eps = location
    return str(dataset), NORMS.index(norm), eps


def records_at_other_eps(
    location: Location, records_at: Mapping[Location, Sequence[Record]]
) -> list[Record]:
    others: list[Record] = []
    for other, records in records_at.items():
        if other != location and other[:2] == location[:2]:
            others.extend(records)
    return others


def build_rows(data: BoardData, assess: Assess) -> list[Row]:
    """The rows of one dataset and threat model, ranked.

    One row per question: other examples, another seed or other numbers of draws never mix. A
    defence that was only planned has a row too.
    """
    questions: dict[str, list[Cell]] = defaultdict(list)
    for cell in data.asked.cells:
        questions[cell.question].append(cell)
    rows = []
    for cells in questions.values():
        evidence = gather(cells, data)
        rows.append(Row.from_evidence(evidence, assess(evidence), data.asked))
    rows = mark_exempted(name_differences(rows), data.asked)
    rows.sort(key=leaderboard_order)
    return assign_ranks(rows)


def describe_kept(records: Sequence[Record], asked: AskedCells) -> list[str]:
    """In words, the answers that `--keep-stale` kept, by what had changed."""
    attacks: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.env.stale:
            attacks[record.env.stale].append(asked.attacks[record.cell.attack])
    return [f"kept, though of {why}: {', '.join(names)}" for why, names in attacks.items()]


def planned_size(cell: Cell) -> int | None:
    """The number of examples that the dataset's knobs ask for."""
    return next(
        (int(value) for knob, value in cell.dataset.items if knob in SAMPLING and value), None
    )


def name_differences(rows: Sequence[Row]) -> list[Row]:
    """Add to the names of rows that would read the same what differs between them."""
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.defence, row.classifier, row.n, row.cell.seed].append(row)
    named: list[Row] = []
    for group in groups.values():
        named.extend(distinguish(group) if len(group) > 1 else group)
    return named


def distinguish(rows: Sequence[Row]) -> list[Row]:
    """Name the draws, the batch, the images or the pins of the weights where these differ."""
    views: list[dict[str, object]] = [
        {
            "draws": row.cell.draws,
            "select": row.cell.select,
            "batch": row.cell.batch,
            "images": row.cell.dataset,
            "defence": row.cell.defence,
        }
        for row in rows
    ]
    differing = [name for name in views[0] if len({view[name] for view in views}) > 1]
    named = []
    for row, view in zip(rows, views, strict=True):
        differences = ", ".join(f"{name}={view[name]}" for name in differing)
        named.append(replace(row, defence=f"{row.defence} ({differences})"))
    return named


def mark_exempted(rows: Sequence[Row], asked: AskedCells) -> list[Row]:
    """Note in each row the attacks that it was spared, and that its verdict is not sound then."""
    attacks_asked: dict[str, set[str]] = defaultdict(set)
    for cell in asked.cells:
        if not asked.is_check(cell):
            attacks_asked[cell.question].add(cell.attack.name)
    marked = []
    for row in rows:
        peers = [peer for peer in rows if peer.stochastic == row.stochastic and peer is not row]
        exempted = list_exempted(
            attacks_asked[row.cell.question],
            [attacks_asked[peer.cell.question] for peer in peers],
        )
        if exempted:
            reason = f"spared what most like it met: {', '.join(exempted)}"
            row = replace(
                row,
                exempted=exempted,
                reasons=(*row.reasons, reason),
                verdict="incomplete" if row.verdict == "sound" else row.verdict,
            )
        marked.append(row)
    return marked


def list_exempted(attacks: set[str], attacks_of_peers: Sequence[set[str]]) -> tuple[str, ...]:
    """The attacks that more than half of the peers were asked, and that are not among `attacks`."""
    asked = Counter(name for peer in attacks_of_peers for name in peer)
    return tuple(
        sorted(
            name
            for name, count in asked.items()
            if 2 * count > len(attacks_of_peers) and name not in attacks
        )
    )


def assign_ranks(rows: Sequence[Row]) -> list[Row]:
    """Number the rows with a robust accuracy; rows that chance may have told apart share a rank.

    A row that is incomplete, or that was exempted from an attack, ranks after those that are not.
    """
    attacked = [i for i, row in enumerate(rows) if row.robust]
    ranks = compute_ranks([(rank_class(rows[i]), rows[i].records) for i in attacked])
    ranked = list(rows)
    for i, rank in zip(attacked, ranks, strict=True):
        ranked[i] = replace(rows[i], rank=rank)
    return ranked


def rank_class(row: Row) -> tuple[bool, bool]:
    return not row.complete, bool(row.exempted)


def leaderboard_order(row: Row) -> tuple[bool, bool, bool, float, float, str, str, int, int]:
    """Complete rows first, then rows that were asked all, then the higher robust accuracy."""
    return (
        *rank_class(row),
        row.robust is None,
        -row.robust.mean if row.robust else 1.0,
        -row.clean.mean if row.clean else 1.0,
        row.defence,
        row.classifier,
        -(row.n or 0),
        row.cell.seed,
    )
