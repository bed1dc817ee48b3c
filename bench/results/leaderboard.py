"""Leaderboards: a function of records, plans, failures and published figures. Standard library only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import sha256

from bench.questions.spec import NORMS, Cell, Spec
from bench.results.names import CHECKS, SAMPLING, classifier_of, dataset_of, family, short_names
from bench.results.published import Published, match_published, published_for
from bench.results.ranks import ranks
from bench.results.record import Certificate, Flag, Record
from bench.results.statistics import Estimate, estimate
from bench.results.worst_case import WorstCase, worst_case
from bench.soundness.audits import check_results as checks
from bench.soundness.audits import positive_control as control
from bench.soundness.audits.curves import elsewhere
from bench.soundness.audits.records import audit
from bench.soundness.verdict import decide_verdict, missing_codes

RADII = (
    "0.25",
    "0.5",
    "0.75",
    "1",
)  # in l2: at which certified accuracy is reported, beside the leaderboard's own eps where that is in l2


@dataclass(frozen=True, slots=True)
class Row:
    """One defence on one set of examples. `cell` is its question (any of its cells, under attack `none`); None is what is not known.

    `records` are its answers in plan order, `labels` their attacks' short names, `accuracies` and the other shares fractions. Checks are no attacks
    on the defence: they are not among the records, and what they found is in `flags` and `reasons`.
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
    published: Published | None
    flags: tuple[Flag, ...]
    records: tuple[Record, ...]
    labels: tuple[str, ...]

    @property
    def accuracies(self) -> dict[str, float]:
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
        """The share of examples whose certified l2 radius is larger than `radius`: a lower bound of robust accuracy there."""
        return (
            estimate(self.certificate.beyond(float(Fraction(radius))), 1)
            if self.certificate
            else None
        )


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The rows of one dataset and threat model, best first; `attacks` are the short names of all attacks asked of any of them."""

    name: str
    dataset: str
    norm: str
    eps: str
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]
    beside: tuple[Published, ...]

    @property
    def radii(self) -> tuple[str, ...]:
        """The l2 radii at which certified accuracy is reported, in order; none where no row certifies."""
        if not any(row.certificate for row in self.rows):
            return ()
        asked = {
            Fraction(radius): radius
            for radius in ((self.eps, *RADII) if self.norm == "l2" else RADII)
        }
        return tuple(asked[radius] for radius in sorted(asked))


@dataclass(frozen=True, slots=True)
class Asked:
    """What one dataset and threat model was asked: every planned cell once, the largest plan first, then what only the records tell."""

    cells: tuple[Cell, ...]
    attacks: Mapping[Spec, str]
    defences: Mapping[Spec, str]

    @staticmethod
    def of(records: Sequence[Record], plans: Mapping[str, Sequence[Cell]]) -> Asked:
        ordered = sorted(plans.items(), key=lambda item: (-len(item[1]), item[0]))
        cells = {cell.key: cell for _, plan in ordered for cell in plan} | {
            record.cell.key: record.cell for record in records
        }
        specs = cells.values()
        return Asked(
            tuple(specs),
            short_names(c.attack for c in specs),
            short_names((c.defence for c in specs), hide=("classifier", "classifiers")),
        )


def leaderboards(
    records: Sequence[Record],
    plans: Mapping[str, Sequence[Cell]],
    failures: Mapping[str, str],
    published: Iterable[Published] = (),
) -> list[Leaderboard]:
    """One leaderboard per dataset, norm (linf first) and exact eps, in that order."""
    published = tuple(published)
    held: dict[tuple[Spec, str, Fraction], list[Record]] = defaultdict(list)
    for record in records:
        held[place(record.cell)].append(record)
    places = sorted(
        {*held, *(place(cell) for plan in plans.values() for cell in plan)},
        key=lambda p: (str(p[0]), NORMS.index(p[1]), p[2]),
    )
    names = Counter((dataset.name, norm, eps) for dataset, norm, eps in places)
    boards = []
    for here in places:
        dataset, norm, eps = here
        asked = {
            name: [cell for cell in plan if place(cell) == here] for name, plan in plans.items()
        }
        others = [
            record
            for there, several in held.items()
            if there != here and there[:2] == here[:2]
            for record in several
        ]
        found = rows(held[here], asked, failures, published, others)
        # Two folders of images are both named `folder`: their files are told apart by a digest.
        mark = (
            f"-{sha256(str(dataset).encode()).hexdigest()[:8]}"
            if names[dataset.name, norm, eps] > 1
            else ""
        )
        attacks = tuple(
            dict.fromkeys(
                label
                for spec, label in Asked.of(held[here], asked).attacks.items()
                if spec.name not in CHECKS
            )
        )
        name = f"{dataset.name}{mark}-{found[0].cell.threat.label}"
        boards.append(
            Leaderboard(
                name,
                dataset.name,
                norm,
                str(eps),
                attacks,
                tuple(found),
                tuple(published_for(published, found[0].cell)),
            )
        )
    return boards


def place(cell: Cell) -> tuple[Spec, str, Fraction]:
    return dataset_of(cell), cell.threat.norm, cell.threat.eps


def rows(
    records: Sequence[Record],
    plans: Mapping[str, Sequence[Cell]],
    failures: Mapping[str, str],
    published: Iterable[Published] = (),
    others: Sequence[Record] = (),
) -> list[Row]:
    """The rows of one dataset and threat model, ranked; a defence that was only planned has a row too.

    One row per question: other examples, another seed or other numbers of draws never mix. `others` are records of the same dataset and norm at
    another eps.
    """
    published = tuple(published)
    asked = Asked.of(records, plans)
    questions: dict[str, list[Cell]] = defaultdict(list)
    for cell in asked.cells:
        questions[cell.question].append(cell)
    answers = {record.cell.key: record for record in records}
    found = [
        row(cells, answers, failures, published, asked, others) for cells in questions.values()
    ]
    return ranked(tell_apart(found), asked)


def row(
    cells: Sequence[Cell],
    answers: Mapping[str, Record],
    failures: Mapping[str, str],
    published: Sequence[Published],
    asked: Asked,
    others: Sequence[Record] = (),
) -> Row:
    """The row of the cells of one question, in plan order."""
    tested = [cell for cell in cells if family(cell) != "check"]
    held = [answers[cell.key] for cell in tested if cell.key in answers]
    base = next((r for r in held if r.cell.attack.name == "none"), held[0] if held else None)
    # Other images under the same name (an edited folder, say) cannot be compared example by example.
    same = [r for r in held if base and (r.ids, r.env.data) == (base.ids, base.env.data)]
    attacks = [r for r in same if family(r.cell) != "none"]
    none = base if base and family(base.cell) == "none" else None
    worst: WorstCase | None = worst_case(same) if attacks else None
    weakest = min(attacks, key=lambda r: r.accuracy, default=None)
    strongest = asked.attacks[weakest.cell.attack] if weakest else ""
    claim = match_published(published, cells[0])
    related = elsewhere(same, others)
    examined = [cell for cell in cells if family(cell) == "check"]
    found = [answers[cell.key] for cell in examined if cell.key in answers]
    found = [
        r for r in found if base and set(r.ids) <= set(base.ids) and r.env.data == base.env.data
    ]
    doubts, told = checks.audit(found, worst, same, answers.values())
    told += unanswered(examined, answers, failures, asked)
    controls = list(answers.values())
    flags = audit(same, worst, claim, related, [*doubts, *control.audit(same, controls)])
    missing = unanswered(tested, answers, failures, asked) + [
        f"{asked.attacks[r.cell.attack]}: on other images" for r in held if r not in same
    ]
    robust = worst.robust if worst else None
    verdict, reasons = decide_verdict(
        flags, missing, missing_codes(same, related, found, controls), robust, strongest, claim
    )
    ms, base_ms = (none.cost.ms_per_image, none.cost.base_ms_per_image) if none else (None, None)
    first = cells[0].dataset.params.get("first")
    return Row(
        rank=None,
        defence=asked.defences[cells[0].defence],
        classifier=classifier_of(cells[0].defence),
        cell=cells[0],
        n=len(base.ids)
        if base
        else next((int(v) for k, v in cells[0].dataset.items if k in SAMPLING and v), None),
        stochastic=cells[0].select > 1 or cells[0].draws > 1,
        clean=estimate(none.correct, none.cell.draws) if none else None,
        robust=robust,
        strongest_attack=strongest,
        verdict=verdict,
        reasons=(
            *reasons,
            *told,
            *([f"the first {first} examples, not a stratified subset"] if first else []),
        ),
        complete=bool(none and worst and not missing),
        ms_per_image=ms,
        cost_ratio=ms / base_ms if ms is not None and base_ms else None,
        parameters=none.cost.parameters if none else None,
        published=claim,
        flags=tuple(flags),
        records=tuple(same),
        labels=tuple(asked.attacks[r.cell.attack] for r in same),
    )


def unanswered(
    cells: Sequence[Cell], answers: Mapping[str, Record], failures: Mapping[str, str], asked: Asked
) -> list[str]:
    """In words: the cells that failed, and those that were planned and not run."""
    waiting = [cell for cell in cells if cell.key not in answers]
    failed = [
        f"{asked.attacks[c.attack]} failed: {' '.join(failures[c.key].split())[:100]}"
        for c in waiting
        if c.key in failures
    ]
    pending = [asked.attacks[cell.attack] for cell in waiting if cell.key not in failures]
    return failed + ([f"not yet run: {', '.join(pending)}"] if pending else [])


def tell_apart(found: Sequence[Row]) -> list[Row]:
    """Name what differs between rows that would otherwise read the same: the draws, the batch, or the pins of the weights."""
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for one in found:
        groups[one.defence, one.classifier, one.n, one.cell.seed].append(one)
    for group in groups.values():
        if len(group) > 1:
            views = [
                {
                    "draws": c.draws,
                    "select": c.select,
                    "batch": c.batch,
                    "images": c.dataset,
                    "defence": c.defence,
                }
                for c in (r.cell for r in group)
            ]
            differ = [name for name in views[0] if len({view[name] for view in views}) > 1]
            for i, (one, view) in enumerate(zip(group, views, strict=True)):
                group[i] = replace(
                    one,
                    defence=f"{one.defence} ({', '.join(f'{name}={view[name]}' for name in differ)})",
                )
    return [one for group in groups.values() for one in group]


def ranked(found: Sequence[Row], asked: Asked) -> list[Row]:
    """Best first; those that chance may have told apart share a rank.

    A row whose cells are not all answered, or that was spared what most rows of its kind met, ranks after those that were not.
    """
    met = {cell.question: set[str]() for cell in asked.cells}
    for cell in asked.cells:
        if family(cell) != "check":
            met[cell.question].add(cell.attack.name)

    def spared(one: Row) -> list[str]:
        peers = [r for r in found if r.stochastic == one.stochastic and r is not one]
        seen = Counter(name for peer in peers for name in met[peer.cell.question])
        return sorted(
            name
            for name, count in seen.items()
            if 2 * count > len(peers) and name not in met[one.cell.question]
        )

    marked = []
    for one in found:
        less = spared(one)
        if less:
            reason = f"spared what most like it met: {', '.join(less)}"
            one = replace(
                one,
                reasons=(*one.reasons, reason),
                verdict="incomplete" if one.verdict == "sound" else one.verdict,
            )
        marked.append((bool(less), one))
    marked.sort(key=lambda pair: (not pair[1].complete, pair[0], *best_first(pair[1])))
    numbers = iter(
        ranks([((not one.complete, less), one.records) for less, one in marked if one.robust])
    )
    return [replace(one, rank=next(numbers) if one.robust else None) for _, one in marked]


def best_first(one: Row) -> tuple[bool, float, float, str, str, int, int]:
    robust, clean = (-e.mean if e else 1.0 for e in (one.robust, one.clean))
    return (
        one.robust is None,
        robust,
        clean,
        one.defence,
        one.classifier,
        -(one.n or 0),
        one.cell.seed,
    )
