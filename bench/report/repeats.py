"""What a stochastic defence would get right if it were asked again and again.

Whoever may try ten times needs one wrong answer of ten; a deployment that votes needs five right
ones of nine. Both shares fall or rise on clean images too, so they are always told of the clean and
of the attacked image. They are estimated without bias from the draws that judged. They are left out
where there were fewer draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from bench.results.leaderboard import Leaderboard, Row
from bench.results.statistics import all_of, majority_of
from bench.results.worst_case import worst_case

REPEATS: dict[str, tuple[int, Callable[[Sequence[int], int], float]]] = {
    "all_10": (10, partial(all_of, m=10)),
    "all_100": (100, partial(all_of, m=100)),
    "majority_9": (9, partial(majority_of, m=9)),
}
IMAGES = ("clean", "robust")
HEADINGS = ("clean", "all of 10", "majority of 9", "robust", "all of 10", "majority of 9")
MEANING = (
    "The share of examples that one answer gets right, that ten answers all get right (whoever "
    "attacks may try again), and that most of nine do (a deployment may vote): on the clean image, "
    "and in the worst case. Empty where there were fewer draws."
)


def repeated_shares(counts: Sequence[int], draws: int) -> dict[str, float | None]:
    """By name, what `counts` right answers among `draws` tell of repeated answers.

    None where `draws` are too few.
    """
    return {
        name: estimate_share(counts, draws) if draws >= m else None
        for name, (m, estimate_share) in REPEATS.items()
    }


def list_repeated_shares(row: Row) -> dict[str, float | None]:
    """The repeated shares on clean images and in the worst case, as `clean_all_10` and so on.

    None for what is not known.
    """
    clean = next((record for record in row.records if record.family == "none"), None)
    counts: dict[str, Sequence[int]] = {
        "clean": clean.correct if clean else (),
        "robust": worst_case(row.records).correct if row.robust else (),
    }
    shares = {}
    for image in IMAGES:
        draws = row.cell.draws if counts[image] else 0
        for name, share in repeated_shares(counts[image], draws).items():
            shares[f"{image}_{name}"] = share
    return shares


def shares_under_headings(row: Row) -> list[float | None]:
    """The shares of the row under `HEADINGS`."""
    shares = list_repeated_shares(row)
    return [
        row.clean.mean if row.clean else None,
        shares["clean_all_10"],
        shares["clean_majority_9"],
        row.robust.mean if row.robust else None,
        shares["robust_all_10"],
        shares["robust_majority_9"],
    ]


def has_stochastic_row(board: Leaderboard) -> bool:
    """Whether a row of the leaderboard answers anew each time."""
    return any(row.stochastic for row in board.rows)
