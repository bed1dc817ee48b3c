"""Plug-ins that raise what a plug-in should not, once a sweep runs."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor, nn

from bench.errors import BadInput
from bench.questions.registry import attack, build_classifier, defence


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit


class Own(BaseException):
    """Of no usual family."""


ERRORS: dict[str, BaseException] = {
    error.__name__: error("raised by a plug-in")
    for error in (
        BadInput,
        OSError,
        TimeoutError,
        GeneratorExit,
        SystemExit,
        KeyboardInterrupt,
        StopIteration,
        Unprintable,
        Own,
        MemoryError,
    )
}


class Raising(nn.Module):
    """An honest classifier that raises when its gradient is asked for."""

    def __init__(self, net: nn.Module, error: BaseException) -> None:
        super().__init__()
        self.net = net
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise self.error
        logits: Tensor = self.net(x)
        return logits


@defence("raises-later", bare=True, broken=True)
def raises_later(*, classifier: str = "@standard", how: str = "OSError") -> nn.Module:
    """Passes the preflight."""
    return Raising(build_classifier(classifier), ERRORS[how])


@attack("raises", norms={"linf"}, access="white-box", family="gradient")
def raises(model: Any, x: Tensor, y: Tensor, threat: Any, *, how: str = "OSError") -> Tensor:
    """Raises."""
    raise ERRORS[how]


@attack("waits", norms={"linf"}, access="white-box", family="gradient")
def waits(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Takes two minutes."""
    time.sleep(120)
    return x


@attack("waits-and-catches", norms={"linf"}, access="white-box", family="gradient")
def waits_and_catches(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """Takes two minutes, or less where something is raised meanwhile."""
    try:
        time.sleep(120)
    except BaseException:
        return x
    return x
