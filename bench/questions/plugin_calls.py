"""Calls of the small functions that a plug-in registers: whatever they raise becomes one line.

Standard library only. Models and attacks are called behind the border, by `bench.judging`.
"""

from __future__ import annotations

import contextlib
import math
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import bench.errors
from bench.errors import BadInput

HARNESS = Path(bench.errors.__file__).parent
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib"))


@contextlib.contextmanager
def told_in_one_line(complaint: str, *, system_errors_pass: bool = False) -> Iterator[None]:
    """BadInput for whatever other people's code raises in the block: `complaint`, error, place.

    The user's Ctrl-C passes, and so does BadInput, which is a line of the plug-in's own. System
    errors may pass where the harness, and no plug-in, met them.
    """
    try:
        yield
    except (BadInput, KeyboardInterrupt):
        raise
    except BaseException as error:
        if system_errors_pass and isinstance(error, OSError) and not is_of_plugin(error):
            raise
        raise BadInput(f"{complaint} {describe(error)}") from error


def call_hook(label: str, hook: Callable[..., Any], *args: Any) -> Any:
    """What the hook returns; BadInput, which begins with `label`, where it raises.

    Mappings are handed over as copies.
    """
    copies = [dict(value) if isinstance(value, Mapping) else value for value in args]
    with told_in_one_line(f"{label} raised", system_errors_pass=True):
        return hook(*copies)


def read_bool(label: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise refusal(label, value, "true or false")
    return value


def read_number(label: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise refusal(label, value, "a finite number of at least 0")
    return float(value)


def read_text(label: str, value: Any) -> str:
    """The text; empty for None."""
    if value is not None and not isinstance(value, str):
        raise refusal(label, value, "a text")
    return value or ""


def read_names(label: str, value: Any) -> list[str]:
    return read_list(label, value, str, "a list of texts")


def read_paths(label: str, value: Any) -> list[str | Path]:
    return read_list(label, value, str | Path, "a path or a list of paths")


def read_list(label: str, value: Any, kind: Any, form: str) -> list[Any]:
    is_list = isinstance(value, list | tuple | set | frozenset)
    if not is_list or not all(isinstance(item, kind) for item in value):
        raise refusal(label, value, form)
    return list(value)


def read_knobs(label: str, value: Any, known: Collection[str]) -> dict[str, Any]:
    """Values by knob, each of a knob that is `known`."""
    if not isinstance(value, Mapping):
        raise refusal(label, value, "a mapping of knobs")
    for name, knob in value.items():
        if name not in known or not isinstance(knob, bool | int | float | str):
            raise BadInput(f"{label} gives {name!r}, which is no knob with a value of it")
    return dict(value)


def refusal(label: str, value: Any, form: str) -> BadInput:
    given = repr(value) if isinstance(value, int | float | str | None) else type(value).__name__
    return BadInput(f"{label} gives {given[:40]}, not {form}")


def describe(error: BaseException) -> str:
    """What was raised, its first line, and the file and line that it comes from."""
    reason = first_line(error)
    name = type(error).__name__
    said = f"{name}: {reason}" if reason else name
    return f"{said} ({find_place(error)})"


def first_line(error: BaseException) -> str:
    """The first line of the message, in characters that any file and terminal take."""
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except BaseException as second:
        if isinstance(second, KeyboardInterrupt):
            raise
        return f"its message cannot be read, for that raises {type(second).__name__}"
    line = text.strip().partition("\n")[0]
    return line.encode(errors="backslashreplace").decode()


def find_place(error: BaseException) -> str:
    """The file and line of the plug-in, else of whoever raised: `mine.py:12`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [frame for frame in frames if is_foreign(frame.filename)]
    frame = (foreign or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def is_of_plugin(error: BaseException) -> bool:
    """Whether a plug-in, and not the harness on its behalf, ran into the error."""
    frames = traceback.extract_tb(error.__traceback__)
    callers = [frame.filename for frame in frames if not is_in_library(Path(frame.filename))]
    return bool(callers) and is_foreign(callers[-1])


def is_foreign(filename: str) -> bool:
    """Whether the file is of a plug-in: of no library, and not of the harness."""
    path = Path(filename)
    return path.is_file() and not is_in_library(path) and not path.is_relative_to(HARNESS)


def is_in_library(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in LIBRARIES)
