"""What one row changes in this process is put back before the next row begins.

The border restores, after every call, what costs nothing to compare. This module compares the rest
once for each batch: patched functions, global hooks, the environment, the working folder.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from bench.judging.border import Conduct, read_switches, restore_switches

GLOBAL_HOOKS = tuple(
    name
    for name, value in vars(nn.modules.module).items()
    if name.startswith("_global_") and isinstance(value, dict)
)
MODULES = (
    "builtins",
    "json",
    "math",
    "numpy",
    "numpy.random",
    "os",
    "random",
    "time",
    "torch",
    "torch.autograd",
    "torch.cuda",
    "torch.linalg",
    "torch.nn.functional",
    "torch.random",
    "torch.serialization",
)
TORCH = Path(torch.__file__).parent
COMPILER = "torch._dynamo"  # torch imports it when it is first needed
SET_BY_COMPILER = ("the environment", "the filters of warnings")
STREAMS = ("stdin", "stdout", "stderr")
SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


@dataclass(frozen=True, slots=True)
class Setting:
    """One piece of the process's state: how to copy it, and how to put the copy back."""

    name: str
    copy: Callable[[], Any]
    restore: Callable[[Any], object]


def copy_hooks() -> dict[str, dict[Any, Any]]:
    return {name: dict(getattr(nn.modules.module, name)) for name in GLOBAL_HOOKS}


def restore_hooks(before: dict[str, dict[Any, Any]]) -> None:
    for name, hooks in before.items():
        here = getattr(nn.modules.module, name)
        here.clear()
        here.update(hooks)


def restore_environment(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


def restore_path(before: list[str]) -> None:
    sys.path[:] = before


def restore_filters(before: list[Any]) -> None:
    """Through a filter that is added and removed, so that Python forgets what it has cached."""
    warnings.simplefilter("default")
    cast(list[Any], warnings.filters)[:] = before


def copy_streams() -> tuple[Any, ...]:
    return tuple(getattr(sys, name) for name in STREAMS)


def restore_streams(before: tuple[Any, ...]) -> None:
    for name, stream in zip(STREAMS, before, strict=True):
        setattr(sys, name, stream)


def copy_signals() -> tuple[Any, ...]:
    return tuple(signal.getsignal(number) for number in SIGNALS)


def restore_signals(before: tuple[Any, ...]) -> None:
    for number, handler in zip(SIGNALS, before, strict=True):
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def is_alarm_set() -> bool:
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def stop_alarm(before: bool) -> None:
    if not before:
        signal.setitimer(signal.ITIMER_REAL, 0)


def read_umask() -> int:
    """The mask of new files, which is read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def restore_collector(enabled: bool) -> None:
    if enabled:
        gc.enable()
    else:
        gc.disable()


SETTINGS = (
    Setting("the environment", lambda: dict(os.environ), restore_environment),
    Setting("the working folder", os.getcwd, os.chdir),
    Setting("sys.path", lambda: list(sys.path), restore_path),
    Setting("the filters of warnings", lambda: list(warnings.filters), restore_filters),
    Setting("numpy's error handling", np.geterr, lambda before: np.seterr(**before)),
    Setting("the standard streams", copy_streams, restore_streams),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("garbage collection", gc.isenabled, restore_collector),
    Setting("the alarm clock", is_alarm_set, stop_alarm),
    Setting("signal handlers", copy_signals, restore_signals),
    Setting("the mask of new files", read_umask, os.umask),
)


def namespaces() -> dict[str, Any]:
    """What a patch would be made on, by name: modules, torch's tensors and layers, this package."""
    spaces: dict[str, Any] = {name: sys.modules[name] for name in MODULES if name in sys.modules}
    layers = {name: value for name, value in vars(nn).items() if isinstance(value, type)}
    harness = {name for name in sys.modules if name.startswith("bench.")}
    spaces["torch.Tensor"] = torch.Tensor
    spaces |= {f"torch.nn.{name}": layer for name, layer in layers.items()}
    spaces |= {name: sys.modules[name] for name in harness}
    return spaces


def copy_functions() -> dict[str, tuple[Any, dict[str, Any]]]:
    return {name: (space, dict(vars(space))) for name, space in namespaces().items()}


def restore_functions(before: dict[str, tuple[Any, dict[str, Any]]]) -> list[str]:
    """Put patched functions and classes back; returns their names."""
    patched = []
    for space_name, (space, members) in before.items():
        here = vars(space)
        for name, member in members.items():
            current = here.get(name)
            if current is not member and callable(member) and not is_of_torch(current):
                setattr(space, name, member)
                patched.append(f"{space_name}.{name}")
        for name in shadows(space, members):
            delattr(space, name)
            patched.append(f"{space_name}.{name}")
    return patched


def is_of_torch(function: Any) -> bool:
    """Whether torch itself has put the function there, as when its compiler is first imported."""
    code = getattr(function, "__code__", None)
    return code is not None and Path(code.co_filename).is_relative_to(TORCH)


def shadows(space: Any, members: dict[str, Any]) -> list[str]:
    """The methods that a class has got since `members` was copied, over those that it inherits."""
    if not isinstance(space, type) or len(vars(space)) == len(members):
        return []
    inherited = {name for base in space.__mro__[1:] for name in vars(base)}
    return [name for name in vars(space) if name not in members and name in inherited]


def read_generators() -> tuple[object, ...]:
    """The state of the random generators of torch (CPU), numpy and `random`, to be compared."""
    numpy_state = np.random.get_state(legacy=False)
    return (torch.default_generator.get_state().tolist(), repr(numpy_state), random.getstate())


class Containment:
    """With `Containment() as row`: other people's code runs; then the process is as it was before.

    Random generators of torch (CPU), numpy and `random` go back too. `row.conduct` says afterwards
    what else the block left otherwise.
    """

    def __init__(self, spared: Collection[str] = ()) -> None:
        """Settings that are `spared`, by name, stay as the block leaves them."""
        self.settings = [setting for setting in SETTINGS if setting.name not in spared]

    def __enter__(self) -> Containment:
        self.conduct = Conduct()
        self._switches = read_switches()
        self._settings = [setting.copy() for setting in self.settings]
        self._had_compiler = COMPILER in sys.modules
        self._hooks = copy_hooks()
        self._functions = copy_functions()
        self._threads = set(threading.enumerate())
        self._torch = torch.default_generator.get_state()
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        return self

    def __exit__(self, *error: object) -> None:
        # First, for a default dtype has classes of torch in its train.
        switches = restore_switches(self._switches)
        patches = restore_functions(self._functions)
        if copy_hooks() != self._hooks:
            restore_hooks(self._hooks)
            patches.append("global hooks of nn.Module")
        imports_compiler = COMPILER in sys.modules and not self._had_compiler
        for setting, before in zip(self.settings, self._settings, strict=True):
            if setting.copy() == before:
                continue
            setting.restore(before)
            if not (imports_compiler and setting.name in SET_BY_COMPILER):
                switches.append(setting.name)
        torch.default_generator.set_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        threads = [thread.name for thread in set(threading.enumerate()) - self._threads]
        self.conduct = Conduct(tuple(switches), tuple(patches), threads=tuple(sorted(threads)))
