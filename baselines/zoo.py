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
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from baselines.zoo_files import check_file, download
from bench import weights
from bench.errors import BadInput, did_you_mean
from bench.files import model_folder
from bench.questions.registry import classifier
from bench.results import published

DATASETS = ("cifar10", "cifar100")
DEFAULT_SPLIT = ("cifar10", "Linf")  # what a bare name means
LOADING_ERRORS = (
    RuntimeError,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    AttributeError,
    TypeError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the zoo: `argument` is its name without a pin, the rest are its parts."""

    argument: str
    dataset: str
    threat: str
    name: str

    @property
    def folder(self) -> Path:
        return model_folder() / self.dataset / self.threat

    @property
    def entry(self) -> dict[str, Any]:
        """What RobustBench's table says of it."""
        entry: dict[str, Any] = read_table()[self.dataset][self.threat][self.name]
        return entry


def names() -> list[str]:
    """`Name` for CIFAR-10 linf, `dataset/threat/Name` for the others, as in `cifar10/L2/Name`."""
    return [name.removeprefix("robustbench:") for name in published.zoo()]


def find_model(argument: str) -> Model:
    """The known model of that name, with or without the pin that a plan adds."""
    name = argument.partition("@")[0]
    if name not in names():
        raise BadInput(f"classifier 'robustbench:{name}' is unknown{did_you_mean(name, names())}")
    if "/" not in name:
        return Model(name, *DEFAULT_SPLIT, name)
    dataset, threat, model = name.split("/")
    return Model(name, dataset, threat, model)


def fetch(argument: str) -> None:
    """Fetch the weights if they are missing.

    BadInput says what to put where if that fails, or what is wrong with a file that is there.
    """
    model = find_model(argument)
    for i, path in enumerate(files_of(model)):
        if not path.is_file():
            download(model.argument, path, sources_of(model)[i])
        check_file(model.argument, path)
    check_pin(argument)


def digest(argument: str) -> str | None:
    """The SHA-256, in hex, of the SHA-256 of each file.

    None where a file is missing, and for a model of timm.
    """
    paths = own_files(find_model(argument))
    if not paths or not all(path.is_file() for path in paths):
        return None
    return hashlib.sha256("".join(map(weights.digest, paths)).encode()).hexdigest()


@classifier("robustbench", names=names, fetch=fetch, digest=digest)
def robustbench(argument: str) -> nn.Module:
    """A classifier of the RobustBench zoo: Name (CIFAR-10 linf), or dataset/threat/Name.

    Croce et al. (2021).
    """
    model = find_model(argument)
    paths = files_of(model)
    for path in paths:
        check_file(model.argument, path)
    check_pin(argument)
    try:
        return load_model(model)
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise BadInput(
            f"classifier 'robustbench:{model.argument}' cannot be loaded from "
            f"{', '.join(map(str, paths))}: {reason}"
        ) from None


def load_model(model: Model) -> nn.Module:
    """What RobustBench's own loader makes of the files, without output or shift of randomness."""
    utils = import_robustbench("utils")
    with (
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(io.StringIO()),
        unpickle_tensors_only(),
    ):
        net: nn.Module = utils.load_model(
            model.name,
            model_dir=model_folder(),
            dataset=model.dataset,
            threat_model=model.threat,
        )
    return net


def check_pin(argument: str) -> None:
    """Refuse weights that are there, but not those that the pin of `Name@1a2b3c4d` names."""
    name, at, pin = argument.partition("@")
    actual = (digest(argument) or "")[:8]
    if not at or actual == pin:
        return
    why = f"have the digest {actual}, not {pin}"
    if not actual:
        why = "are in the cache of torch's hub, and take no pin"
    raise BadInput(f"weights 'robustbench:{name}' {why}")


@contextlib.contextmanager
def unpickle_tensors_only() -> Iterator[None]:
    """Nothing is unpickled but tensors.

    RobustBench leaves that to torch's default, which a variable of the environment switches off.
    """
    torch_load = torch.load

    def load(*args: Any, **options: Any) -> Any:
        return torch_load(*args, **{**options, "weights_only": True})

    vars(torch)["load"] = load
    try:
        yield
    finally:
        vars(torch)["load"] = torch_load


def own_files(model: Model) -> list[Path]:
    """The files of our own folder that the loader reads.

    They are several for an ensemble, and none for a model of timm.
    """
    count = published.zoo()[f"robustbench:{model.argument}"].files
    path = model.folder / f"{model.name}.pt"
    if count > 1:
        return [Path(f"{path}_m{i}.pt") for i in range(count)]
    return [path] * count


def files_of(model: Model) -> list[Path]:
    """All files that the loader reads.

    They are our own, or the one of a model of timm in the cache of torch's hub.
    """
    own = own_files(model)
    if own:
        return own
    name = timm_address(model).rpartition("/")[2]
    return [Path(torch.hub.get_dir()) / "checkpoints" / name]


def sources_of(model: Model) -> list[str]:
    """Where each of `files_of` comes from: its key on RobustBench's drive, or its address."""
    key = model.entry["gdrive_id"]
    if isinstance(key, list):
        return key
    return [key or timm_address(model)]


def timm_address(model: Model) -> str:
    """The address of the weights of a model of timm, which RobustBench knows by such a name."""
    import_robustbench("utils")  # registers the names
    import timm

    name = model.name.lower().replace("-", "_")
    config = timm.get_pretrained_cfg(f"{name}_{model.dataset}_{model.threat.lower()}")
    assert config
    return str(config.url)


@functools.cache
def read_table() -> dict[str, dict[str, dict[str, Any]]]:
    """RobustBench's table: dataset -> threat -> name -> facts, of the CIFAR sets."""
    table = import_robustbench("model_zoo.models").model_dicts
    return {
        dataset.value: {threat.value: dict(models) for threat, models in threats.items()}
        for dataset, threats in table.items()
        if dataset.value in DATASETS
    }


@functools.cache
def import_robustbench(module: str) -> ModuleType:
    """A module of robustbench.

    robustbench imports an `autoattack` that no index has and a `pkg_resources` that setuptools
    dropped; neither is used here.
    """
    for package in ("robustbench", "pyautoattack"):
        if find_spec(package) is None:
            raise BadInput(f"classifiers of RobustBench need the package {package}; run make setup")
    refuse_old_copy()
    with stand_ins(), warnings.catch_warnings():
        # It imports timm by names that are about to go.
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module(f"robustbench.{module}")


def refuse_old_copy() -> None:
    """Refuse the old robustbench in the wheel of torchattacks, which overwrites the right one."""
    for file in metadata.files("robustbench") or []:
        if file.suffix != ".py" or not file.hash:
            continue
        content = Path(str(file.locate())).read_bytes()
        actual = hashlib.new(file.hash.mode, content).digest()
        if base64.urlsafe_b64encode(actual).rstrip(b"=").decode() != file.hash.value:
            raise BadInput(
                f"the installed package robustbench is mixed with an old copy ({file}); "
                "remove .venv/.ready and run make setup"
            )


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """`autoattack` and `pkg_resources` for robustbench's import, where they are not installed."""
    added = []
    if find_spec("autoattack") is None:
        for name in ("", ".state"):
            sys.modules[f"autoattack{name}"] = importlib.import_module(f"pyautoattack{name}")
            added.append(f"autoattack{name}")
    if find_spec("pkg_resources") is None:
        stub = ModuleType("pkg_resources")
        vars(stub)["resource_filename"] = resource_filename
        sys.modules["pkg_resources"] = stub
        added.append("pkg_resources")
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def resource_filename(package: str, name: str) -> str:
    """The path of a package's file, as pkg_resources gives it."""
    return str(Path(str(importlib.import_module(package).__file__)).parent / name)
