"""The user's Ctrl-C, told from a KeyboardInterrupt that a plug-in raises."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class CellFailed(Exception):
    """Other people's code raised what is its cause."""


class Interrupts:
    """With `Interrupts() as interrupts`: signals that interrupt are noted, and raise as before.

    In a thread that gets no signals every KeyboardInterrupt counts as the user's.
    """

    def __init__(self) -> None:
        self.received = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is signal.default_int_handler:
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def foreign_code(self) -> Iterator[None]:
        """CellFailed for whatever the block raises; the user's interrupt ends it in any case."""
        try:
            yield
        except BaseException as error:
            is_users = self.received or not self._handlers
            if isinstance(error, KeyboardInterrupt) and is_users:
                raise
            self.raise_received()
            raise CellFailed from error
        self.raise_received()

    def raise_received(self) -> None:
        """KeyboardInterrupt where the user interrupted, and a plug-in caught it."""
        if self.received:
            raise KeyboardInterrupt
