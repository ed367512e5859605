"""The only place that reads a clock.

Wall times are integer milliseconds since 1970, UTC (`_ms`); durations that decide something are measured on the
monotonic clock. Deciding code receives times as arguments and never imports this module's `SystemClock`.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol, overload


class Clock(Protocol):
    """What the engines need of time; tests give a virtual one."""

    def now_ms(self) -> int:
        """Wall time, milliseconds since 1970 UTC."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Suspend the current task."""


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@overload
def in_ms(moment: datetime) -> int: ...


@overload
def in_ms(moment: datetime | None) -> int | None: ...


def in_ms(moment: datetime | None) -> int | None:
    """Milliseconds UTC of a time that somebody told, to the nearest; UTC is meant where it has no zone."""
    if moment is None:
        return None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def text_in_ms(text: str | None) -> int | None:
    """The same of a time as RFC 3339 and ISO 8601 write it; None for anything else."""
    try:
        return in_ms(datetime.fromisoformat(text or ""))
    except ValueError:
        return None


def iso_utc(at_ms: int) -> str:
    """`2026-11-20T13:45:00.123Z` for people and exports."""
    moment = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_ms % 1000:03d}Z"


def in_words(seconds: float) -> str:
    """A duration as people say it: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
