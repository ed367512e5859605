"""One HTTP conversation with one marketplace, the same for all adapters.

Explicit time-outs, a size limit, a rate limit, no redirects (a key would go with them), replies decoded by schema, and
every failure as one of the errors that the contract in `base` allows. What a failure means depends on the call: one
that may have cost money (`may_cost`) ends in OutcomeUnknown wherever it may have been carried out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import ssl
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    GpuMarketError,
    InsufficientFunds,
    MarketplaceError,
    OutcomeUnknown,
    Permanent,
    Temporary,
    Unauthorized,
)

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
# A peer that sends a byte now and then never trips the read time-out.
WHOLE_CALL_S = 90.0
MAX_REPLY_BYTES = 32 * 1024 * 1024
EXCERPT_CHARACTERS = 300
NOTHING_WAS_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
REFUSALS: dict[int, type[MarketplaceError]] = {401: Unauthorized, 403: Unauthorized, 402: InsufficientFunds}


@cache
def usual_tls() -> ssl.SSLContext:
    """The public authorities' certificates, read once for all adapters: that takes as long as a fast call."""
    return httpx.create_ssl_context()


class Absent:
    """What a judge says of a reply that means: there is no such thing."""


# Headers that prove a call: of method, path, query as it is sent, and content.
Signer = Callable[[str, str, str, bytes], Mapping[str, str]]
# Some marketplaces say only in the reply's body what a status means.
Judge = Callable[[int, bytes], type[GpuMarketError | Absent] | None]


class TooLarge(Exception):
    """A reply went over the size limit."""


class Bucket:
    """A token bucket: `rate` calls a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: int, clock: Clock) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._tokens = self._burst
        self._at_s = clock.monotonic_s()

    async def take(self) -> None:
        """Wait for the next free place; callers are served in the order in which they came."""
        now_s = self._clock.monotonic_s()
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate) - 1.0
        self._at_s = now_s
        if self._tokens < 0:
            await self._clock.sleep(-self._tokens / self._rate)


class MarketplaceHttp:
    """Calls to one marketplace with one account.

    Args:
        marketplace: its short name, for errors.
        base_url: https, or http on loopback.
        key: sent only in the header `key_header`, after `key_prefix`; with a `signer` it is not sent at all.
        signer: for marketplaces whose calls are signed. The query is then sent sorted, and the body canonical: keys
            sorted, nothing but ASCII, so that both sides sign the same bytes.
        rate, burst: how often it may be called; calls marked `urgent` (releases) do not wait.
    """

    def __init__(
        self,
        marketplace: str,
        base_url: str,
        *,
        key: Secret | None = None,
        key_header: str = "Authorization",
        key_prefix: str = "Bearer ",
        signer: Signer | None = None,
        rate: float = 5.0,
        burst: int = 10,
        tls: ssl.SSLContext | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        clock: Clock | None = None,
    ) -> None:
        check_url(marketplace, base_url)
        self._marketplace = marketplace
        self._key = key
        self._key_header = key_header
        self._key_prefix = key_prefix
        self._signer = signer
        self._max_reply_bytes = max_reply_bytes
        self._bucket = Bucket(rate, burst, clock or SystemClock())
        self._loopback = is_loopback(base_url)
        self._http = httpx.AsyncClient(
            base_url=base_url,
            verify=tls if tls is not None else usual_tls(),
            follow_redirects=False,
            trust_env=not self._loopback,
            timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=30.0),
        )

    def __repr__(self) -> str:
        return f"MarketplaceHttp({self._marketplace!r}, {str(self._http.base_url)!r})"

    async def call(
        self,
        method: str,
        path: str,
        reply: Any,
        *,
        body: Any = None,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        may_cost: bool = False,
        urgent: bool = False,
        absent: frozenset[int] = frozenset(),
        refusals: Mapping[int, type[GpuMarketError]] | None = None,
        judge: Judge | None = None,
    ) -> Any:
        """One call, never repeated here; its reply decoded as `reply`, or None for a status in `absent`.

        `refusals` says what other statuses of this call mean; `judge`, asked first of every status that is no success,
        reads the body as well.

        Raises:
            Temporary, Permanent, Unauthorized, InsufficientFunds: see `base`; OutcomeUnknown only with `may_cost`.
        """
        if not urgent:
            await self._bucket.take()
        what = f"{method} {path}"
        try:
            async with asyncio.timeout(WHOLE_CALL_S):
                status, told, content = await self._exchange(method, path, body, query, headers or {})
        except NOTHING_WAS_SENT as error:
            raise Temporary(self._marketplace, f"{what}: cannot be reached ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError, TooLarge) as error:
            detail = f"more than {self._max_reply_bytes} bytes" if isinstance(error, TooLarge) else type(error).__name__
            raise self._lost(f"{what}: no readable reply ({detail})", may_cost=may_cost) from None
        if status in absent:
            return None
        if not 200 <= status < 300:
            known = judge(status, content) if judge is not None else None
            if known is not None and issubclass(known, Absent):
                return None
            meanings = refusals or {} if known is None else {status: known}
            raise self._refusal(what, status, told, content, meanings, may_cost=may_cost)
        return self._decoded(what, content, reply, may_cost=may_cost)

    async def aclose(self) -> None:
        """Close the kept connections."""
        await self._http.aclose()

    async def _exchange(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, str | int] | None,
        more: Mapping[str, str],
    ) -> tuple[int, httpx.Headers, bytes]:
        headers = {"Accept": "application/json", **more}
        content = None if body is None else self._encoded(body)
        if content is not None:
            headers["Content-Type"] = "application/json"
        asked = self._http.build_request(
            method, path, content=content, headers=headers, params=self._query(query) if query else None
        )
        if self._signer is not None:
            asked.headers.update(self._signer(method, asked.url.path, asked.url.query.decode(), content or b""))
        elif self._key is not None:
            asked.headers[self._key_header] = self._key_prefix + self._key.reveal()
        received = bytearray()
        reply = await self._http.send(asked, stream=True)
        try:
            async for part in reply.aiter_bytes():
                received += part
                if len(received) > self._max_reply_bytes:
                    raise TooLarge
            return reply.status_code, reply.headers, bytes(received)
        finally:
            await reply.aclose()

    def _encoded(self, body: Any) -> bytes:
        if self._signer is None:
            return msgspec.json.encode(body)
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    def _query(self, query: Mapping[str, str | int]) -> dict[str, str | int] | str:
        if self._signer is None:
            return dict(query)
        return "&".join(f"{quote(name, safe='')}={quote(str(query[name]), safe='')}" for name in sorted(query))

    def _lost(self, message: str, *, may_cost: bool) -> MarketplaceError:
        if may_cost:
            return OutcomeUnknown(self._marketplace, message)
        return Temporary(self._marketplace, message)

    def _refusal(
        self,
        what: str,
        status: int,
        headers: httpx.Headers,
        content: bytes,
        refusals: Mapping[int, type[GpuMarketError]],
        *,
        may_cost: bool,
    ) -> GpuMarketError:
        message = f"{what}: {status} {self._excerpt(content)}"
        kind = refusals.get(status) or REFUSALS.get(status)
        if kind is not None:
            return kind(self._marketplace, message) if issubclass(kind, MarketplaceError) else kind(message)
        if status == 429:
            return Temporary(self._marketplace, message, retry_after_s=retry_after_s(headers.get("Retry-After")))
        if 400 <= status < 500:
            return Permanent(self._marketplace, message)
        # 5xx, and redirects: somebody else (a proxy, a captive portal) may have answered for it.
        return self._lost(message, may_cost=may_cost)

    def _decoded(self, what: str, content: bytes, reply: Any, *, may_cost: bool) -> Any:
        if reply is None:
            return None
        try:
            return msgspec.json.decode(content, type=reply)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"{what}: a reply that does not fit ({error}); it sent {self._excerpt(content)}"
            raise self._lost(message, may_cost=may_cost) from None

    def _excerpt(self, content: bytes) -> str:
        """The beginning of a reply, fit to be shown: printable, short, and never with our key in it."""
        text = content[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")
        if self._key is not None:
            text = text.replace(self._key.reveal(), "…")
        text = "".join(character if character.isprintable() else " " for character in text)
        return text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + "…"


def check_url(marketplace: str, url: str) -> None:
    """Keys travel over TLS only, except inside this machine.

    Raises:
        ConfigError: the URL is not https (or http on loopback), or carries a user, password, query or fragment.
    """
    parts = urlsplit(url)
    if (
        not parts.hostname
        or parts.scheme not in ("http", "https")
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise ConfigError(f"{marketplace}: the url {url!r} is not one like https://name or https://name/path")
    if parts.scheme == "http" and not is_loopback(url):
        raise ConfigError(f"{marketplace}: the url {url!r} would carry the key in the clear; use https://")


def is_loopback(url: str) -> bool:
    """Whether a URL stays on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after_s(value: str | None, now_s: float | None = None) -> float | None:
    """The header's seconds or date as seconds from now; None when it says nothing usable."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        at_s = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, at_s - (SystemClock().now_ms() / 1000 if now_s is None else now_s))
