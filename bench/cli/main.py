"""From words to flags, and from an error to an exit code and one line on stderr.

Every command of the project ends here, those of other packages too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from bench.errors import BadInput, did_you_mean


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are BadInput, one line."""

    def read(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """The flags that the words set; an unknown flag is refused with the nearest one."""
        parsed, unknown = self.parse_known_args(words)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise BadInput(f"unknown flag {unknown[0]}{did_you_mean(unknown[0], flags)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def run_main(
    command: Callable[[], int | None], name: str, *, interrupted: str = "interrupted"
) -> int:
    """Run the command and return the exit code; `name` begins the line, `interrupted` is its rest.

    The exit code is the command's own, or 0; 2 for bad input; 1 where the system refuses; 130
    where the user interrupts.
    """
    try:
        return command() or 0
    except BadInput as error:
        return fail(f"{name}: {error}", 2)
    except OSError as error:
        return fail(f"{name}: {error.strerror or error}: {error.filename or ''}", 1)
    except KeyboardInterrupt:
        return fail(f"{name}: {interrupted}", 130)


def fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
