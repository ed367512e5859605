"""Times that others tell."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from jupyter_gpumarket.clock import in_ms, text_in_ms


@pytest.fixture(autouse=True)
def _far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's own zone must not matter."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("moment", "ms"),
    [
        (datetime(2026, 11, 20, 10, tzinfo=UTC), 1_795_168_800_000),
        (datetime(2026, 11, 20, 10), 1_795_168_800_000),
        (datetime(2026, 11, 20, 12, tzinfo=timezone(timedelta(hours=2))), 1_795_168_800_000),
        (datetime(2026, 11, 20, 10, 0, 0, 1600, tzinfo=UTC), 1_795_168_800_002),
        (None, None),
    ],
)
def test_a_moment_is_utc_where_it_says_nothing_else(moment: datetime | None, ms: int | None) -> None:
    """Wherever this machine stands; to the nearest millisecond."""
    assert in_ms(moment) == ms


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2026-11-20T10:00:00Z", 1_795_168_800_000),
        ("2026-11-20T10:00:00", 1_795_168_800_000),
        ("2026-11-20 12:00:00.5+02:00", 1_795_168_800_500),
        ("tomorrow", None),
        ("", None),
        (None, None),
    ],
)
def test_a_text_that_is_no_time_is_none(text: str | None, ms: int | None) -> None:
    """And one that is a time is read as such."""
    assert text_in_ms(text) == ms
