"""Classifiers of RobustBench: found by name, fetched and checked by us, built by its own loader."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import importlib
import io
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bench.registry import classifier
from bench.spec import BadInput, nearest

DATASETS = ("cifar10", "cifar100")
SPLIT = ("cifar10", "Linf")  # what a bare name means


def models_dir() -> Path:
    """Where weights lie: the environment variable BENCH_MODELS, else `models`."""
    return Path(os.environ.get("BENCH_MODELS") or "models").expanduser()


def names() -> list[str]:
    """`Name` for CIFAR-10 linf, `dataset/threat/Name` for the others, as in `cifar10/L2/Name`."""
    found = []
    for dataset, threats in dicts().items():
        for threat, models in threats.items():
            found += list(models) if (dataset, threat) == SPLIT else [f"{dataset}/{threat}/{name}" for name in models]
    return sorted(found)


def ensure(argument: str) -> None:
    """Fetch the weights if they are missing; BadInput with one line that says what to put where if that fails, or if they are damaged."""
    dataset, threat, name = parts(argument)
    drive = dicts()[dataset][threat][name]["gdrive_id"]
    if drive is None:  # a model of timm, which keeps its weights in the cache of torch's hub
        robustbench(argument)
        return
    for path, key in zip(files(argument), drive if isinstance(drive, list) else [drive], strict=True):
        if not path.is_file():
            download(argument, path, key)
        check(argument, path)


@classifier("robustbench", names=names, ensure=ensure)
def robustbench(argument: str) -> nn.Module:
    """A classifier of the RobustBench zoo: Name (CIFAR-10 linf), or dataset/threat/Name. Croce et al. (2021)."""
    dataset, threat, name = parts(argument)
    for path in files(argument):
        if not path.is_file():
            raise missing(argument, path, "")
        check(argument, path)
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()), weights_only():
            net: nn.Module = package("utils").load_model(name, model_dir=models_dir(), dataset=dataset, threat_model=threat)
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        held = ", ".join(map(str, files(argument))) or "the cache of torch's hub"
        raise BadInput(f"classifier 'robustbench:{argument}' cannot be loaded from {held}: {brief(error)}") from None
    return net


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Nothing is unpickled but tensors. RobustBench leaves that to torch's default, which a variable of the environment switches off."""
    plain = torch.load
    vars(torch)["load"] = functools.partial(plain, weights_only=True)
    try:
        yield
    finally:
        vars(torch)["load"] = plain


def parts(argument: str) -> tuple[str, str, str]:
    """(dataset, threat, Name) of a known model."""
    if argument not in names():
        raise BadInput(f"classifier 'robustbench:{argument}' is unknown{nearest(argument, names())}")
    dataset, threat, name = argument.split("/") if "/" in argument else (*SPLIT, argument)
    return dataset, threat, name


def files(argument: str) -> list[Path]:
    """The files that the loader reads: several for an ensemble, none for a model of timm."""
    dataset, threat, name = parts(argument)
    drive = dicts()[dataset][threat][name]["gdrive_id"]
    path = models_dir() / dataset / threat / f"{name}.pt"
    return [Path(f"{path}_m{i}.pt") for i in range(len(drive))] if isinstance(drive, list) else [path] * (drive is not None)


def missing(argument: str, path: Path, reason: str) -> BadInput:
    why = f" (their download failed: {reason})" if reason else ""
    return BadInput(f"weights of 'robustbench:{argument}' are not there: put {path.name} into {path.parent}{why}")


def download(argument: str, path: Path, key: str) -> None:
    """RobustBench's own download, beside the place where the file belongs and checked before it goes there."""
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    fresh = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bar is on stderr
            package("utils").download_gdrive_new(key, fresh)
        if what := defect(fresh):
            raise OSError(f"what came is {what}")
        os.replace(fresh, path)
    except Exception as error:  # of the downloader, of requests, of a full or read-only disk
        raise missing(argument, path, brief(error)) from None
    finally:
        fresh.unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only while it is empty


def check(argument: str, path: Path) -> None:
    what = defect(path)
    if what:
        raise BadInput(f"weights file '{path}' of 'robustbench:{argument}' is {what}; remove it, and fetch it again")


def defect(path: Path) -> str:
    """What a failed download left instead of weights, if anything: a page of HTML, an empty or a truncated file."""
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"PK"):  # torch's format
        return "" if zipfile.is_zipfile(path) else "truncated"
    if head.startswith(b"\x80"):  # torch's older format
        return ""
    return "empty" if not head else "a web page" if head.startswith(b"<") else "no weights file"


def brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


@functools.cache
def dicts() -> dict[str, dict[str, dict[str, Any]]]:
    """RobustBench's table: dataset -> threat -> name -> facts, of the CIFAR sets."""
    table = package("model_zoo.models").model_dicts
    return {d.value: {t.value: dict(models) for t, models in threats.items()} for d, threats in table.items() if d.value in DATASETS}


@functools.cache
def package(module: str) -> ModuleType:
    """A module of robustbench. It imports an `autoattack` that no index has and a `pkg_resources` that setuptools dropped; neither is used here."""
    for needed in ("robustbench", "pyautoattack"):
        if find_spec(needed) is None:
            raise BadInput(f"classifiers of RobustBench need the package {needed}; run make setup")
    refuse_old_copy()
    with stand_ins(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it imports timm by names that are about to go
        return importlib.import_module(f"robustbench.{module}")


def refuse_old_copy() -> None:
    """The wheel of torchattacks carries an old robustbench, which overwrites the right one without a word."""
    for file in metadata.files("robustbench") or []:
        if file.suffix == ".py" and file.hash:
            found = hashlib.new(file.hash.mode, Path(str(file.locate())).read_bytes()).digest()
            if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != file.hash.value:
                raise BadInput(f"the installed package robustbench is mixed with an old copy ({file}); remove .venv/.ready and run make setup")


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """`autoattack` and `pkg_resources` while robustbench is imported, where they are not installed."""
    held = []
    if find_spec("autoattack") is None:
        for name in ("", ".state"):
            sys.modules[f"autoattack{name}"] = importlib.import_module(f"pyautoattack{name}")
            held.append(f"autoattack{name}")
    if find_spec("pkg_resources") is None:
        stub = ModuleType("pkg_resources")
        vars(stub)["resource_filename"] = lambda package, name: str(Path(str(importlib.import_module(package).__file__)).parent / name)
        sys.modules["pkg_resources"] = stub
        held.append("pkg_resources")
    try:
        yield
    finally:
        for name in held:
            del sys.modules[name]
