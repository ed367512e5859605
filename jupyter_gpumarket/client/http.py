"""One HTTP conversation with one of our own processes on loopback.

Never through a proxy, every phase with its own time-out, answers decoded by schema, error answers raised as the
exceptions they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from jupyter_gpumarket.client.problems import problem_in
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import BrokerUnavailable
from jupyter_gpumarket.loopback import Connections, Lost

Answer = TypeVar("Answer")

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 60.0


class Gone(Exception):
    """The process that was spoken to is not there any more, or is another one.

    It did nothing, or its answer was lost: in both cases the same call may be made again, because every call of ours
    carries its own identity (request_id, run_id, sha256) or sets totals.
    """


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
        self._connections = Connections(endpoint.url, endpoint.token.reveal, connect_s=CONNECT_TIMEOUT_S)

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
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            reply = await self._connections.call(
                method, target, content or b"", headers, silence_s=ANSWER_TIMEOUT_S + wait_s
            )
        except Lost as error:
            raise Gone(f"{self.endpoint.url}: {error}") from None
        except TimeoutError:
            raise BrokerUnavailable(f"{self.endpoint.url}{path} did not answer in time") from None
        if reply.status == 401:
            raise Gone(f"{self.endpoint.url} does not know our token")
        if reply.status >= 400:
            raise problem_in(reply.status, reply.body, self.endpoint.url + path)
        return reply.body

    async def aclose(self) -> None:
        """Close the kept connections."""
        self._connections.close()
