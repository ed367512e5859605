"""One HTTP conversation with one of our own processes on loopback.

Never through a proxy (`trust_env=False`), every phase with its own time-out, answers decoded by schema, error answers
raised as the exceptions they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
import msgspec

from jupyter_gpumarket.client.problems import problem_in
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import BrokerUnavailable

Answer = TypeVar("Answer")

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 60.0
# Nothing was done by the other side, or the answer was lost: in both cases the same call may be made again, because
# every call of ours carries its own identity (request_id, run_id, sha256) or sets totals.
LOST = (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class Gone(Exception):
    """The process that was spoken to is not there any more, or is another one."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process of ours listens, and the token it wants."""

    url: str
    token: Secret

    def __repr__(self) -> str:
        return f"Endpoint(url={self.url!r})"


class Conversation:
    """Calls to one endpoint over kept connections. Belongs to one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._http = httpx.AsyncClient(
            base_url=endpoint.url,
            headers={"Authorization": f"Bearer {endpoint.token.reveal()}"},
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=8),
        )

    async def call(
        self,
        method: str,
        path: str,
        answer: type[Answer] | Any,
        *,
        body: object = None,
        query: Mapping[str, str | int | float] | None = None,
        wait_s: float = 0.0,
    ) -> Any:
        """One call, its answer decoded as `answer`.

        Raises:
            Gone: nobody, or somebody else, answers there.
            BrokerUnavailable: it answers, but not in time or not in our language.
            GpuMarketError: what the other side raised.
        """
        content = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if content is not None else {}
        reply = await self.raw(method, path, content=content, headers=headers, query=query, wait_s=wait_s)
        try:
            return msgspec.json.decode(reply, type=answer)
        except msgspec.DecodeError as error:
            raise BrokerUnavailable(
                f"{self.endpoint.url}{path} answered in a shape this version does not know ({error}); "
                "restart the broker so that both sides are of one version"
            ) from None

    async def raw(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str | int | float] | None = None,
        wait_s: float = 0.0,
    ) -> bytes:
        """One call with bytes in and out."""
        limits = httpx.Timeout(ANSWER_TIMEOUT_S + wait_s, connect=CONNECT_TIMEOUT_S)
        try:
            reply = await self._http.request(
                method, path, content=content, headers=dict(headers or {}), params=dict(query or {}), timeout=limits
            )
        except LOST as error:
            raise Gone(f"{self.endpoint.url}: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise BrokerUnavailable(
                f"{self.endpoint.url}{path} did not answer in time ({type(error).__name__})"
            ) from None
        if reply.status_code == 401:
            raise Gone(f"{self.endpoint.url} does not know our token")
        if reply.is_error:
            raise problem_in(reply.status_code, reply.content, self.endpoint.url + path)
        return reply.content

    async def aclose(self) -> None:
        """Close the kept connections."""
        await self._http.aclose()
