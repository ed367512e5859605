"""Ctrl-C while a remote cell is followed: counted, and raised only where waiting can be cut short.

The first one interrupts the remote cell and the output is followed to its end; the second one detaches. Between two
waits nothing is torn, so no output is shown twice or lost. A front end that restarts or ends a kernel interrupts it
first and asks for its end right after: that is nobody's wish to stop what runs on a node.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, TypeVar

from IPython.core.getipython import get_ipython

T = TypeVar("T")
FORCE_AFTER = 4
# So long after an interrupt the kernel's end may be asked for; jupyter_client does it within milliseconds.
END_FOLLOWS_S = 0.4
LOOK_S = 0.02


def kernel_ends() -> bool:
    """Whether this kernel has been asked to end, or to be restarted."""
    return bool(getattr(get_ipython(), "exit_now", False))


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

    def is_kernels_end(self) -> bool:
        """Whether the interrupt that came was the beginning of the kernel's end. Waits a moment for the rest of it."""
        until_s = time.monotonic() + END_FOLLOWS_S
        while not (ends := kernel_ends()) and self.count == self._seen and time.monotonic() < until_s:
            time.sleep(LOOK_S)
        return ends

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self._waiting or self.count >= FORCE_AFTER:
            raise KeyboardInterrupt
