"""The shared HTTP conversation: rates, dates, limits."""

from __future__ import annotations

import asyncio

import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import OutcomeUnknown, Temporary
from jupyter_gpumarket.marketplaces.http import Bucket, MarketplaceHttp, retry_after_s


class Hand:
    """A clock moved by hand: sleeping moves it."""

    def __init__(self) -> None:
        self.at_s = 100.0
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return int(self.at_s * 1000)

    def monotonic_s(self) -> float:
        return self.at_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at_s += seconds


async def test_the_rate_holds_over_time() -> None:
    """A burst goes through at once; after it, calls come at the agreed rate."""
    clock = Hand()
    bucket = Bucket(rate=2.0, burst=3, clock=clock)
    for _ in range(3):
        await bucket.take()
    burst_waits = list(clock.slept)
    for _ in range(10):
        await bucket.take()

    assert burst_waits == []
    assert clock.at_s - 100.0 == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1e9", None),
        ("9" * 400, None),
        ("٣", None),
    ],
)
def test_retry_after_is_read_or_left(value: str | None, seconds: float | None) -> None:
    """Seconds and dates are understood; nonsense is as if it were not there."""
    assert retry_after_s(value, now_s=40.0) == seconds


async def test_a_server_that_is_not_there_rented_nothing() -> None:
    """No connection means that nothing was sent: Temporary, also for a call that may cost."""
    http = MarketplaceHttp("m", "http://127.0.0.1:1", key=Secret("k"))
    with pytest.raises(Temporary, match="cannot be reached"):
        await http.call("POST", "/x", None, may_cost=True)
    await http.aclose()


@pytest.mark.parametrize(("may_cost", "error"), [(True, OutcomeUnknown), (False, Temporary)])
async def test_silence_ends_in_time(may_cost: bool, error: type[Exception]) -> None:
    """A server that takes the call and never answers ends it within the read time-out."""

    hung_up = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        hung_up.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    http = MarketplaceHttp("m", f"http://127.0.0.1:{port}", read_timeout_s=0.3)
    with pytest.raises(error, match="ReadTimeout"):
        await http.call("POST", "/x", None, may_cost=may_cost)
    await http.aclose()
    await hung_up.wait()
    server.close()
    await server.wait_closed()


def test_the_key_is_not_in_the_repr() -> None:
    """Neither the conversation nor its parts show the key."""
    http = MarketplaceHttp("m", "https://market.example", key=Secret("very-secret"))

    assert "very-secret" not in repr(http) + str(vars(http))
