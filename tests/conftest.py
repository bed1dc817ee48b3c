"""Every test sees the real plug-ins and the toys, one thread, and no stray environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.questions.discover import discover

TOYS = Path(__file__).parent / "toys.py"


@pytest.fixture(scope="session", autouse=True)
def _plugins() -> None:
    torch.set_num_threads(1)
    discover((TOYS,))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers in every run, whatever ran before."""
    torch.manual_seed(0)
    np.random.seed(0)
