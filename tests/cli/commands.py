"""The command that the tests type, and the flags of a sweep that takes no time."""

from __future__ import annotations

import functools

from bench.cli.app import module_main
from tests.conftest import TOYS

run = functools.partial(module_main, "run")
TOY = [
    *("--with", str(TOYS)),
    *("--dataset", "toy"),
    *("--n", "40"),
    *("--defences", "toy-linear"),
    *("--attacks", "toy-exact"),
]
