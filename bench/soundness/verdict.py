"""What a row's number is worth: sound, suspicious, broken or incomplete, and why. Standard library only.

- broken: the attacks here leave less than was published, by 3 points or more and outside of the interval. It is the claim that is broken.
- suspicious: a hard flag, or three soft ones.
- incomplete: nothing speaks against the number, but something that it needs was not run, or no attack that was finds what was planted (D17).
- sound: all of it was run. No attack of this bench, at this budget, does better; it is an upper bound and no certificate.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from bench.results.names import classifier_of, unpinned
from bench.results.published import PublishedResult
from bench.results.record import Flag, Record
from bench.results.statistics import Estimate
from bench.soundness.audits.curves import ran
from bench.soundness.audits.positive_control import compared

VERDICTS = ("sound", "incomplete", "suspicious", "broken")
GAP = 0.03
MANY = 3  # soft flags
ADAPTIVE = ("A2", "A3", "A4", "A5", "A6", "A7")
DYNAMIC = ("A8", "A9")

MEANING = {
    "A1": "attack the whole defence through its gradients, averaged over its draws",
    "A2": "attack the classifier alone, and score on the defence",
    "A3": "gradients past a stage that has none, as if it were the identity",
    "A4": "gradients through a smooth stand-in for a stage that has none",
    "A5": "attack the output before its last, saturating map",
    "A6": "attack one frozen draw of the randomness",
    "A7": "attack through the mean latent instead of sampled ones",
    "A8": "of a defence that optimises at test time: gradients through all of its steps",
    "A9": "of a defence that optimises at test time: gradients as if its steps moved every image alike",
}


def decide_verdict(
    flags: Sequence[Flag],
    missing: Sequence[str],
    lacks: Sequence[str],
    robust: Estimate | None,
    strongest: str,
    published: PublishedResult | None,
) -> tuple[str, tuple[str, ...]]:
    """The verdict and its reasons. `missing` says in words which cells are unanswered, `lacks` holds codes of what was not run."""
    reasons = [f"{flag.id} {flag.severity}: {flag.message}" for flag in flags]
    reasons += [*missing, *([f"not run: {ranges(lacks)}"] if lacks else [])]
    same_model = not any(flag.id == "G1" for flag in flags)
    if (
        robust
        and published
        and same_model
        and robust.hi < published.robust
        and published.robust - robust.mean >= GAP
    ):
        claim = f"by {strongest}: published {published.robust:.3f} ({published.attack}), here {robust.mean:.3f} [{robust.lo:.3f}, {robust.hi:.3f}]"
        return "broken", (claim, *reasons)
    if any(flag.severity == "hard" for flag in flags) or len(flags) >= MANY:
        return "suspicious", tuple(reasons)
    weak = any(flag.id == "D17" for flag in flags)
    return ("incomplete" if missing or lacks or weak or not robust else "sound"), tuple(reasons)


def missing_codes(
    records: Sequence[Record],
    others: Sequence[Record] = (),
    checks: Sequence[Record] = (),
    controls: Sequence[Record] = (),
) -> tuple[str, ...]:
    """The codes of the required attacks (A) and diagnostics (D) that the records, those `others` at another eps, the `checks` and the `controls`
    (of other rows of this leaderboard) do not hold."""
    if not records:
        return ()
    cell = records[0].cell
    families = {r.family for r in records}
    traits = [r.attack_traits for r in records]
    own = classifier_of(cell.defence).split("+")
    sources = {
        unpinned(str(r.cell.attack.params.get("source", "")))
        for r in records
        if r.family == "transfer"
    }
    # `adaptive` goes every way that the declared parts open; the bare classifier is the one that every composite defence has to offer.
    whole = [
        record for record in records if record.routes and not record.cell.attack.params.get("only")
    ]
    adaptive = any(
        {"base", "classifier"} & set(record.routes.names) for record in whole if record.routes
    )
    ways = {name for record in whole if record.routes for name in record.routes.names}
    done = {
        "A1": "gradient" in families,
        **dict.fromkeys(ADAPTIVE, adaptive),
        "A2": adaptive or bool(sources & set(own)),
        "A8": adaptive and "full" in ways,
        "A9": adaptive and any(name.startswith("identity") for name in ways),
        "D5": any(t.single_step for t in traits) and any(t.iterated for t in traits),
        "D7": any(t.random_search for t in traits),
        "D8": "transfer" in families,
        "D9": "noise" in families,
        "D12": any("D12" in dict(record.checks) for record in records),
        "D18": compared(records, controls) is not None,
        "D15": any(check.cell.attack.name == "frozen" for check in checks),
        **dict.fromkeys(ran(records, others), True),
    }
    random = ("D14", "D15") if records[0].cell.stochastic else ()
    dynamic = DYNAMIC if any("P14" in dict(record.checks) for record in records) else ()
    required = (
        "A1",
        *(() if records[0].defence_traits.bare else ADAPTIVE),
        *dynamic,
        "D3",
        "D5",
        "D6",
        "D7",
        "D8",
        "D9",
        "D12",
        *random,
        "D18",
    )
    return tuple(sorted((code for code in required if not done.get(code)), key=order))


def order(code: str) -> tuple[str, int]:
    return code[0], int(code[1:])


def spelt(text: str) -> str:
    """The same text with its ranges of codes spelt out: `A2-A4` -> `A2 A3 A4`."""
    return re.sub(
        r"([A-Z])(\d+)-\1(\d+)",
        lambda m: " ".join(f"{m[1]}{i}" for i in range(int(m[2]), int(m[3]) + 1)),
        text,
    )


def ranges(codes: Sequence[str]) -> str:
    """`A2, A3, A4, D3` -> `A2-A4, D3`."""
    parts = []
    for _, run in itertools.groupby(
        enumerate(codes), key=lambda pair: (pair[1][0], int(pair[1][1:]) - pair[0])
    ):
        held = [code for _, code in run]
        parts.append(f"{held[0]}-{held[-1]}" if len(held) > 2 else ", ".join(held))
    return ", ".join(parts)
