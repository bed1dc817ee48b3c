"""Every test sees the real plug-ins and the toys, one thread, and no stray environment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import registry

TOYS = Path(__file__).parent / "toys.py"


@pytest.fixture(scope="session", autouse=True)
def _plugins() -> None:
    torch.set_num_threads(1)
    registry.discover((TOYS,))
