"""Ctrl-C while a remote cell is followed: counted, and raised only where waiting can be cut short.

The first one interrupts the remote cell and the output is followed to its end; the second one detaches. Between two
waits nothing is torn, so no output is shown twice or lost.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, TypeVar

T = TypeVar("T")
FORCE_AFTER = 4


class InterruptWatch:
    """Counts interrupts in the main thread; elsewhere there are none to count."""

    def __init__(self) -> None:
        self.count = 0
        self._seen = 0
        self._waiting = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def wait(self, call: Callable[[], T]) -> T | None:
        """The call's result; None when an interrupt came before or during it (look at `news`)."""
        try:
            try:
                self._waiting = True
                return None if self.count > self._seen else call()
            finally:
                self._waiting = False
        except KeyboardInterrupt:
            # From our own handler, or (outside the main thread) from whoever raised it.
            self.count = max(self.count, self._seen + 1)
            return None

    def news(self) -> bool:
        """Whether an interrupt came since this was asked last."""
        fresh = self.count > self._seen
        self._seen = self.count
        return fresh

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self._waiting or self.count >= FORCE_AFTER:
            raise KeyboardInterrupt
