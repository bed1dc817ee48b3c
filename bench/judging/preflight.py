"""Before a sweep writes anything: does every defence and surrogate answer as its cells will ask."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import bench.errors
from bench.data.sample import Dataset
from bench.errors import BadInput
from bench.judging.border import Border, place_defence
from bench.judging.containment import Containment
from bench.judging.randomness import judging_stream
from bench.judging.setup import load_cached
from bench.judging.surrogates import build_surrogate
from bench.questions import registry
from bench.questions.pins import classifier_of
from bench.questions.spec import Cell

TRIED = 2  # images
HARNESS = Path(bench.errors.__file__).parent
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib"))


def preflight(cells: Iterable[Cell], data_dir: Path, device: str = "cpu") -> list[str]:
    """Predict with every defence and surrogate, placed as the cells place it.

    Returns notes on the form of their answers. Raises BadInput, one line, before anything is
    written: it names the plug-in, its file and line, and what it raised.
    """
    notes: dict[str, None] = {}
    for what, data, build in list_models(cells, data_dir):
        with Containment():
            for note in try_model(what, data, build, torch.device(device)):
                notes[f"{what}: {note}"] = None
    return list(notes)


def list_models(
    cells: Iterable[Cell], data_dir: Path
) -> Iterable[tuple[str, Dataset, Callable[[], nn.Module]]]:
    """In words what each model is, the images that it is for, and how it is built."""
    cells = tuple(cells)
    for cell in {(c.dataset, c.defence): c for c in cells}.values():
        classifier = classifier_of(cell.defence)
        what = f"defence '{cell.defence.name}'"
        what += f" with classifier '{classifier}'" if classifier else ""
        yield what, load_data(cell, data_dir), partial(registry.build_defence, cell.defence)
    transfers = [cell for cell in cells if cell.threat.access == "transfer"]
    for cell in {(c.dataset, c.attack): c for c in transfers}.values():
        source = str(cell.attack.params["source"])
        data = load_data(cell, data_dir)
        yield f"classifier '{source}'", data, partial(build_surrogate, source)


def load_data(cell: Cell, data_dir: Path) -> Dataset:
    """The images of the cell; BadInput whatever their loader raises."""
    try:
        return load_cached(cell.dataset, str(data_dir))
    except (BadInput, OSError):
        raise
    except Exception as error:
        raise BadInput(
            f"dataset '{cell.dataset.name}' cannot be loaded: {describe(error)}"
        ) from error


def try_model(
    what: str, data: Dataset, build: Callable[[], nn.Module], device: torch.device
) -> tuple[str, ...]:
    """Build a model and predict; returns notes on the form of its answer."""
    x = data.x[:TRIED].to(device)
    try:
        model = build()
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{what} cannot be built: {describe(error)}") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"{what} is no nn.Module: its factory returns {type(model).__name__}")
    border = place_defence(model, x)
    logits = predict(what, data, border, x)
    if logits.shape != (len(x), data.classes):
        raise BadInput(
            f"{what} answers {tuple(logits.shape)} for {len(x)} images of '{data.name}', "
            f"which has {data.classes} classes"
        )
    return border.take_conduct().notes


@torch.no_grad()
def predict(what: str, data: Dataset, border: Border, x: Tensor) -> Tensor:
    """The logits of images x (B,C,H,W)."""
    try:
        with judging_stream(x.device, "preflight"):
            logits: Tensor = border(x)
    except BadInput:
        raise
    except Exception as error:
        shape = tuple(x.shape[1:])
        raise BadInput(
            f"{what} cannot take the images {shape} of '{data.name}': {describe(error)}"
        ) from error
    return logits


def describe(error: BaseException) -> str:
    """The first line of what was raised, its type, and the file and line that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_foreign(frame.filename)]
    frame = own[-1] if own else frames[-1]
    reason = str(error).strip().partition("\n")[0]
    said = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"{said} ({Path(frame.filename).name}:{frame.lineno})"


def is_foreign(filename: str) -> bool:
    """Whether the file is of a plug-in: of no library, and not of the harness."""
    path = Path(filename)
    in_library = any(path.is_relative_to(folder) for folder in LIBRARIES)
    return path.is_file() and not in_library and not path.is_relative_to(HARNESS)
