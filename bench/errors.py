"""The one error that the user's input raises. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """The user's input is wrong.

    The message is one line: the thing, the value and the nearest right answer.
    """


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """'; did you mean A?' where one option is close to `name`; the options where none is."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there are: {', '.join(options) or 'none'}"
