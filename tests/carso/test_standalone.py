"""The method alone: of the bench its core loads the errors and the files, and nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import importlib, pkgutil, sys
import torch
from torch import nn
from carso import CARSO, Layout, Purifier
from carso import checkpoint
from carso.fit import fit_purifier, new_purifier
from carso.recipe import read_recipe

classifier = nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256, 3)
).eval()
x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
recipe = read_recipe("digits", changes={"layers": "0,3", "epochs": "1", "pgd_steps": "1"})
purifier = new_purifier(classifier, (1, 8, 8), recipe)
fit_purifier(purifier, classifier, x, y, recipe)
assert CARSO(classifier, purifier, samples=8, aggregation="peel")(x).shape == (40, 3)
for module in pkgutil.iter_modules(sys.modules["carso"].__path__, "carso."):
    if module.name not in ("carso.defence", "carso.train", "carso.analysis"):
        importlib.import_module(module.name)
of_the_bench = {name for name in sys.modules if name.split(".")[0] in ("bench", "baselines")}
assert of_the_bench <= {"bench", "bench.errors", "bench.files"}, of_the_bench
"""


def test_the_core_needs_no_bench() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
