"""A proxy between an adapter and its marketplace that makes trouble on demand, and counts.

It stands where the network and the marketplace's front door stand, so that every adapter meets the same faults.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

# Loopback alone is reached; reading the public authorities' certificates for each test takes longer than most tests.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
PASSED_ON = (
    "Authorization",
    "Content-Type",
    "Accept",
    "X-API-Key",
    "Idempotency-Key",
    "X-Time",
    "X-Nonce",
    "X-Signature",
)


@dataclass
class Trouble:
    """What happens to matching calls. `after` lets the marketplace do it first, and spoils only the answer."""

    matches: Callable[[str, str], bool]
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    after: bool = False
    hang: bool = False


class TroubledProxy:
    """Listens on loopback; `url` is what the adapter is given instead of the marketplace's own.

    `answers` are said for these paths, whatever the marketplace would say.
    """

    def __init__(self, upstream: str) -> None:
        self.trouble: Trouble | None = None
        self.answers: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self._upstream = httpx.AsyncClient(base_url=upstream, trust_env=False, timeout=20, verify=NO_TLS)
        self._server = HTTPServer(Application([("/.*", Passing, {"proxy": self})], log_function=lambda _: None))
        (socket,) = bind_sockets(0, "127.0.0.1")
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        self._server.add_sockets([socket])

    def count(self, method: str) -> int:
        return sum(1 for called, _ in self.calls if called == method)

    async def pass_on(self, request: RequestHandler) -> httpx.Response:
        asked = request.request
        headers = {name: asked.headers[name] for name in PASSED_ON if name in asked.headers}
        assert asked.method is not None
        return await self._upstream.request(asked.method, asked.uri or "/", content=asked.body, headers=headers)

    async def aclose(self) -> None:
        self._server.stop()
        await self._server.close_all_connections()
        await self._upstream.aclose()


class Passing(RequestHandler):
    """One call through the proxy."""

    def initialize(self, proxy: TroubledProxy) -> None:
        self.proxy = proxy

    async def _serve(self) -> None:
        method, path = self.request.method or "", self.request.path
        self.proxy.calls.append((method, path))
        trouble = self.proxy.trouble
        if path in self.proxy.answers:
            self._answer(200, self.proxy.answers[path], {"Content-Type": "application/json"})
            return
        if trouble is None or not trouble.matches(method, path):
            reply = await self.proxy.pass_on(self)
            self._answer(reply.status_code, reply.content, {"Content-Type": "application/json"})
            return
        if trouble.after:
            await self.proxy.pass_on(self)
        if trouble.hang:
            await asyncio.sleep(30)
        if trouble.drop or trouble.hang:
            self.request.connection.stream.close()  # type: ignore[attr-defined]
            return
        self._answer(trouble.status, trouble.body, trouble.headers)

    get = post = put = delete = patch = _serve

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.set_status(status)
        for name, value in headers.items():
            self.set_header(name, value)
        if status not in (204, 304):
            self.write(body)
        self.finish()
