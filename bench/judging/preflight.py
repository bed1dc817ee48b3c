"""Before a sweep writes anything: does every defence and surrogate answer as its cells will ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.data.sample import Dataset
from bench.errors import BadInput
from bench.judging.border import Border, UnusableAnswer, place_defence
from bench.judging.containment import Containment
from bench.judging.randomness import judging_stream
from bench.judging.setup import load_cached
from bench.judging.surrogates import build_surrogate
from bench.questions import registry
from bench.questions.pins import classifier_of
from bench.questions.plugin_calls import is_foreign, told_in_one_line
from bench.questions.sources import sources_of
from bench.questions.spec import Cell

TRIED = 2  # images


def preflight(cells: Iterable[Cell], data_dir: Path, device: str = "cpu") -> list[str]:
    """Predict with every defence and surrogate, placed as the cells place it.

    Returns notes on the form of their answers. Raises BadInput, one line, before anything is
    written: it names the plug-in, its file and line, and what it raised.
    """
    cells = tuple(cells)
    for cell in cells:
        sources_of(cell)  # a plug-in may give them by a function
    notes: dict[str, None] = {}
    for what, data, build in list_models(cells, data_dir):
        with Containment():
            for note in try_model(what, data, build, torch.device(device)):
                notes[f"{what}: {note}"] = None
    return list(notes)


def list_models(
    cells: Sequence[Cell], data_dir: Path
) -> Iterable[tuple[str, Dataset, Callable[[], nn.Module]]]:
    """In words what each model is, the images that it is for, and how it is built."""
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
    """The images of the cell."""
    return load_cached(cell.dataset, str(data_dir))


def try_model(
    what: str, data: Dataset, build: Callable[[], nn.Module], device: torch.device
) -> tuple[str, ...]:
    """Build a model and predict; returns notes on the form of its answer."""
    x = data.x[:TRIED].to(device)
    with told_in_one_line(f"{what} cannot be built:"):
        model = build()
    if not isinstance(model, nn.Module):
        raise BadInput(f"{what} is no nn.Module: its factory returns {type(model).__name__}")
    shape = tuple(x.shape[1:])
    with told_in_one_line(f"{what} cannot take the images {shape} of '{data.name}':"):
        border = place_defence(model, x)
        logits = predict(what, border, x)
    if logits.shape != (len(x), data.classes):
        raise BadInput(
            f"{what} answers {tuple(logits.shape)} for {len(x)} images of '{data.name}', "
            f"which has {data.classes} classes"
        )
    return border.take_conduct().notes


@torch.no_grad()
def predict(what: str, border: Border, x: Tensor) -> Tensor:
    """The logits of images x (B,C,H,W); BadInput where the answer holds none."""
    try:
        with judging_stream(x.device, "preflight"):
            logits: Tensor = border(x)
    except UnusableAnswer as error:
        raise BadInput(f"{what}: {error}{find_forward(border.defence)}") from error
    return logits


def find_forward(model: nn.Module) -> str:
    """The file and line of a model's own `forward`: ` (mine.py:12)`; empty where it has none."""
    code = getattr(type(model).forward, "__code__", None)
    if code is None or not is_foreign(code.co_filename):
        return ""
    return f" ({Path(code.co_filename).name}:{code.co_firstlineno})"
