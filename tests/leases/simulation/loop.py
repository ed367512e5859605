"""Virtual time: an asyncio loop that jumps to the next timer, and the clock that goes with it.

One thread, no I/O, one source of chance: the same seed gives the same run, step by step.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

START_MS = 1_780_000_000_000
INCARNATION: contextvars.ContextVar[int] = contextvars.ContextVar("incarnation", default=0)


class Stuck(Exception):
    """Nothing is left that could ever happen."""


class _Jump(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Waiting for I/O that never comes: let the time pass instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("no timer and no task is left")
        self.loop.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Calls `after_step` after every round of callbacks; remembers which broker incarnation made which task."""

    def __init__(self) -> None:
        selector = _Jump()
        self.now_s = 0.0
        super().__init__(selector)
        selector.loop = self
        self._clock_resolution = 1e-6
        self.after_step: Callable[[], None] = lambda: None
        self.steps = 0
        self.tasks_of: dict[int, list[asyncio.Task[Any]]] = {}
        self.set_task_factory(self._make)  # type: ignore[arg-type]

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        self.steps += 1
        self.after_step()

    def _make(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **options)
        context = options.get("context")
        incarnation = INCARNATION.get() if context is None else context.get(INCARNATION, 0)
        if incarnation:
            self.tasks_of.setdefault(incarnation, []).append(task)
        return task


class VirtualClock:
    """The loop's time as a clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return START_MS + round(self._loop.now_s * 1000)

    def monotonic_s(self) -> float:
        return self._loop.now_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
