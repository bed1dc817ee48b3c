"""The method without the bench."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
import torch
from torch import nn
from carso import CARSO, Layout, Purifier
from carso import checkpoint
from carso.fit import fit, new_purifier
from carso.recipe import read

mine = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256, 3)).eval()
x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
recipe = read("digits", changes={"layers": "0,3", "epochs": "1", "pgd_steps": "1"})
purifier = new_purifier(mine, (1, 8, 8), recipe)
fit(purifier, mine, x, y, recipe)
assert CARSO(mine, purifier, samples=8, aggregation="peel")(x).shape == (40, 3)
assert not [name for name in sys.modules if name.split(".")[0] in ("bench", "baselines")]
"""


def test_it_works_without_the_bench() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
