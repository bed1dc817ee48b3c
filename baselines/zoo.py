"""Classifiers of RobustBench: found by name, fetched and checked by us, built by its own loader."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import importlib
import io
import pickle
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from baselines.zoo_files import brief, check, download
from bench import weights
from bench.errors import BadInput, did_you_mean
from bench.files import model_folder
from bench.questions.registry import classifier
from bench.results import published

DATASETS = ("cifar10", "cifar100")
SPLIT = ("cifar10", "Linf")  # what a bare name means


def names() -> list[str]:
    """`Name` for CIFAR-10 linf, `dataset/threat/Name` for the others, as in `cifar10/L2/Name`."""
    return [name.removeprefix("robustbench:") for name in published.zoo()]


def ensure(argument: str) -> None:
    """Fetch the weights if they are missing; BadInput with one line that says what to put where if that fails, or if they are damaged."""
    for i, path in enumerate(places(argument)):
        if not path.is_file():
            download(bare(argument), path, sources(argument)[i])
        check(bare(argument), path)
    compare_pin(argument)


def digest(argument: str) -> str | None:
    """Of the weights, as 8 hex digits: of the SHA-256 of the SHA-256 of each file. None where one is missing, and for a model of timm."""
    paths = files(argument)
    if not paths or not all(path.is_file() for path in paths):
        return None
    return hashlib.sha256("".join(map(weights.digest, paths)).encode()).hexdigest()[:8]


@classifier("robustbench", names=names, fetch=ensure, digest=digest)
def robustbench(argument: str) -> nn.Module:
    """A classifier of the RobustBench zoo: Name (CIFAR-10 linf), or dataset/threat/Name. Croce et al. (2021)."""
    dataset, threat, name = parts(argument)
    held = places(argument)
    for path in held:
        check(bare(argument), path)
    compare_pin(argument)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            contextlib.redirect_stdout(io.StringIO()),
            weights_only(),
        ):
            net: nn.Module = import_robustbench("utils").load_model(
                name, model_dir=model_folder(), dataset=dataset, threat_model=threat
            )
    except (
        RuntimeError,
        OSError,
        EOFError,
        KeyError,
        ValueError,
        AttributeError,
        TypeError,
        pickle.UnpicklingError,
    ) as error:
        raise BadInput(
            f"classifier 'robustbench:{bare(argument)}' cannot be loaded from {', '.join(map(str, held))}: {brief(error)}"
        ) from None
    return net


def compare_pin(argument: str) -> None:
    """Refuse weights that are there, but not those that the pin of `Name@1a2b3c4d` names."""
    _, at, pinned = argument.partition("@")
    if at and (found := digest(argument)) != pinned:
        why = (
            f"have the digest {found}, not {pinned}"
            if found
            else "are in the cache of torch's hub, and take no pin"
        )
        raise BadInput(f"weights 'robustbench:{bare(argument)}' {why}")


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Nothing is unpickled but tensors. RobustBench leaves that to torch's default, which a variable of the environment switches off."""
    plain = torch.load

    def load(*args: Any, **how: Any) -> Any:
        return plain(*args, **{**how, "weights_only": True})

    vars(torch)["load"] = load
    try:
        yield
    finally:
        vars(torch)["load"] = plain


def bare(argument: str) -> str:
    """`Name@1a2b3c4d` -> `Name`."""
    return argument.partition("@")[0]


def parts(argument: str) -> tuple[str, str, str]:
    """(dataset, threat, Name) of a known model, with or without the pin that a plan adds."""
    name = bare(argument)
    if name not in names():
        raise BadInput(f"classifier 'robustbench:{name}' is unknown{did_you_mean(name, names())}")
    dataset, threat, model = name.split("/") if "/" in name else (*SPLIT, name)
    return dataset, threat, model


def files(argument: str) -> list[Path]:
    """The files of our own folder that the loader reads: several for an ensemble, none for a model of timm."""
    dataset, threat, name = parts(argument)
    count = published.zoo()[f"robustbench:{bare(argument)}"].files
    path = model_folder() / dataset / threat / f"{name}.pt"
    return [Path(f"{path}_m{i}.pt") for i in range(count)] if count > 1 else [path] * count


def places(argument: str) -> list[Path]:
    """All files that the loader reads: `files`, or the one of a model of timm in the cache of torch's hub."""
    return files(argument) or [
        Path(torch.hub.get_dir()) / "checkpoints" / address(argument).rpartition("/")[2]
    ]


def sources(argument: str) -> list[str]:
    """Where each of `places` comes from: its key on RobustBench's drive, or its address."""
    dataset, threat, name = parts(argument)
    key = dicts()[dataset][threat][name]["gdrive_id"]
    return key if isinstance(key, list) else [key or address(argument)]


def address(argument: str) -> str:
    """Of the weights of a model of timm, which RobustBench's loader knows by such a name."""
    dataset, threat, name = parts(argument)
    import_robustbench("utils")  # registers the names
    import timm

    known = timm.get_pretrained_cfg(f"{name.lower().replace('-', '_')}_{dataset}_{threat.lower()}")
    assert known
    return str(known.url)


@functools.cache
def dicts() -> dict[str, dict[str, dict[str, Any]]]:
    """RobustBench's table: dataset -> threat -> name -> facts, of the CIFAR sets."""
    table = import_robustbench("model_zoo.models").model_dicts
    return {
        d.value: {t.value: dict(models) for t, models in threats.items()}
        for d, threats in table.items()
        if d.value in DATASETS
    }


@functools.cache
def import_robustbench(module: str) -> ModuleType:
    """A module of robustbench. It imports an `autoattack` that no index has and a `pkg_resources` that setuptools dropped; neither is used here."""
    for needed in ("robustbench", "pyautoattack"):
        if find_spec(needed) is None:
            raise BadInput(f"classifiers of RobustBench need the package {needed}; run make setup")
    refuse_old_copy()
    with stand_ins(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # it imports timm by names that are about to go
        return importlib.import_module(f"robustbench.{module}")


def refuse_old_copy() -> None:
    """The wheel of torchattacks carries an old robustbench, which overwrites the right one without a word."""
    for file in metadata.files("robustbench") or []:
        if file.suffix == ".py" and file.hash:
            found = hashlib.new(file.hash.mode, Path(str(file.locate())).read_bytes()).digest()
            if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != file.hash.value:
                raise BadInput(
                    f"the installed package robustbench is mixed with an old copy ({file}); remove .venv/.ready and run make setup"
                )


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
        vars(stub)["resource_filename"] = lambda package, name: str(
            Path(str(importlib.import_module(package).__file__)).parent / name
        )
        sys.modules["pkg_resources"] = stub
        held.append("pkg_resources")
    try:
        yield
    finally:
        for name in held:
            del sys.modules[name]
