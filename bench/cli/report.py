"""`python -m bench.report`: rebuild everything from the stored records, byte for byte."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import report
from bench.errors import BadInput
from bench.report import curve
from bench.report.figures import draw
from bench.results.store import Store


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description="Rebuild leaderboards, page and figures from the stored records.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        help="the folder that a sweep wrote (default: results)",
    )
    root = parser.parse_args().out
    try:
        if not (paths := report.write(root)):
            raise BadInput(
                f"there are no records in '{root}'; run 'make bench' first, or give --out the folder of another run"
            )
        found = report.load_boards(Store(root))
        paths += draw(found, root / "figures") + curve.draw(found, root / "figures")
    except BadInput as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
