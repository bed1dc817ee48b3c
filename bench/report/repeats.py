"""What a stochastic defence would get right if it were asked again and again, beside what one answer gets right. Standard library only.

Whoever may try ten times needs one wrong answer of ten; a deployment that votes needs five right ones of nine. Both fall or rise on clean images
too, so they are always told of the clean and of the attacked image. They are estimated without bias from the draws that judged, and are left out
where there were fewer of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from bench.results.leaderboard import Leaderboard, Row
from bench.results.names import family
from bench.results.statistics import all_of, majority_of
from bench.results.worst_case import worst_case

REPEATS: dict[str, tuple[int, Callable[[Sequence[int], int], float]]] = {
    "all_10": (10, partial(all_of, m=10)),
    "all_100": (100, partial(all_of, m=100)),
    "majority_9": (9, partial(majority_of, m=9)),
}
IMAGES = ("clean", "robust")
BESIDE = ("clean", "all of 10", "majority of 9", "robust", "all of 10", "majority of 9")
MEANING = (
    "The share of examples that one answer gets right, that ten answers all get right (whoever attacks may try again), and that most of nine do "
    "(a deployment may vote): on the clean image, and in the worst case. Empty where there were fewer draws."
)


def repeats(counts: Sequence[int], draws: int) -> dict[str, float | None]:
    """By name, what `counts` right answers among `draws` tell of repeated ones; None where `draws` are too few."""
    return {
        name: share(counts, draws) if draws >= m else None for name, (m, share) in REPEATS.items()
    }


def of_row(row: Row) -> dict[str, float | None]:
    """The same of a row, on its clean images and in its worst case, by names such as `clean_all_10`; None for what is not known."""
    none = next((record for record in row.records if family(record.cell) == "none"), None)
    worst = worst_case(row.records) if row.robust else None
    judged = {"clean": none.correct if none else (), "robust": worst.correct if worst else ()}
    told = {
        images: repeats(judged[images], row.cell.draws if judged[images] else 0)
        for images in IMAGES
    }
    return {f"{images}_{name}": told[images][name] for images in IMAGES for name in REPEATS}


def beside(row: Row) -> list[float | None]:
    """The row under the headings of `BESIDE`."""
    told = of_row(row)
    return [
        value
        for images, one in (("clean", row.clean), ("robust", row.robust))
        for value in (
            one.mean if one else None,
            told[f"{images}_all_10"],
            told[f"{images}_majority_9"],
        )
    ]


def several(board: Leaderboard) -> bool:
    """Whether a row of the leaderboard answers anew each time."""
    return any(row.stochastic for row in board.rows)
