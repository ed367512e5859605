"""The routes of a cluster process as async methods."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from jupyter_gpumarket.api import (
    CodeView,
    CodeWish,
    DaskAccess,
    DaskRetire,
    DaskView,
    DaskWish,
    LocalBlob,
    MapNews,
    MapRequest,
    MapView,
    MessageBatch,
    NodeView,
    PackageLook,
    PackagesFound,
    PackageWish,
    RunRequest,
    RunView,
)
from jupyter_gpumarket.client.http import Conversation, Endpoint, Gone
from jupyter_gpumarket.errors import GpuMarketError, Unreachable

T = TypeVar("T")
# How long large data may be under way in one call.
MOVE_S = 24 * 3600.0


class AsyncClusterClient:
    """A door's connection to one cluster process. `find` asks the broker again when the process was replaced."""

    def __init__(self, endpoint: Endpoint, find: Callable[[], Awaitable[Endpoint]]) -> None:
        self._find = find
        self._conversation = Conversation(endpoint)

    async def run(self, request: RunRequest) -> RunView:
        """Run a cell. The same `run_id` sent twice runs once. Follow it with `messages`."""
        view: RunView = await self._call("POST", "/v1/runs", RunView, body=request)
        return view

    async def runs(self) -> list[RunView]:
        """All cell runs whose log is still here."""
        views: list[RunView] = await self._call("GET", "/v1/runs", list[RunView])
        return views

    async def run_view(self, run_id: str) -> RunView:
        """One cell run."""
        view: RunView = await self._call("GET", f"/v1/runs/{_part(run_id)}", RunView)
        return view

    async def begin(self, request: RunRequest, wait_s: float = 0, calm_s: float = 0) -> MessageBatch:
        """`run` and the first `messages` in one call."""
        query = {"after": 0, "wait_s": wait_s, "calm_s": calm_s}
        path = f"/v1/runs/{_part(request.run_id)}/messages"
        batch: MessageBatch = await self._call(
            "POST", path, MessageBatch, body=request, query=query, wait_s=wait_s + calm_s
        )
        return batch

    async def messages(self, run_id: str, after: int = 0, wait_s: float = 0, calm_s: float = 0) -> MessageBatch:
        """Output messages after number `after`; waits up to `wait_s` when there is nothing yet.

        Output is told after `calm_s` at the soonest, the run's end at once.
        """
        query = {"after": after, "wait_s": wait_s, "calm_s": calm_s}
        path = f"/v1/runs/{_part(run_id)}/messages"
        batch: MessageBatch = await self._call("GET", path, MessageBatch, query=query, wait_s=wait_s + calm_s)
        return batch

    async def interrupt(self, run_id: str) -> RunView:
        """Interrupt a run as Ctrl-C would."""
        view: RunView = await self._call("POST", f"/v1/runs/{_part(run_id)}/interrupt", RunView)
        return view

    async def put_blob(self, data: bytes) -> str:
        """Store an input's bytes; returns the SHA-256 that `InputRef` names."""
        sha256 = hashlib.sha256(data).hexdigest()
        headers = {"Content-Type": "application/octet-stream"}
        await self._raw("PUT", f"/v1/blobs/{sha256}", content=data, headers=headers)
        return sha256

    async def give_file(self, path: Path, sha256: str) -> None:
        """Store an input from a file, by its SHA-256; nothing moves when it is there already.

        Raises:
            BadRequest: the file has changed since its hash was taken.
        """
        if await self.has_blob(sha256):
            return
        body = LocalBlob(path=str(path))
        await self._call("POST", f"/v1/blobs/{_part(sha256)}/local", dict[str, Any], body=body, wait_s=MOVE_S)

    async def stage(self, lease_id: str, sha256: str) -> None:
        """Bring an input to a node now; returns when it is there, checked."""
        path = f"/v1/nodes/{_part(lease_id)}/blobs/{_part(sha256)}"
        await self._call("POST", path, dict[str, Any], wait_s=MOVE_S)

    async def output(self, run_id: str, name: str) -> bytes:
        """An output variable's bytes, verified by the cluster process. Decode them with `codecs.decode` only."""
        return await self._raw("GET", f"/v1/runs/{_part(run_id)}/outputs/{_part(name)}")

    async def start_map(self, request: MapRequest) -> MapView:
        """Run a body once for each item, on all nodes of the cluster. The same `map_id` sent twice is one map."""
        view: MapView = await self._call("POST", "/v1/maps", MapView, body=request)
        return view

    async def maps(self) -> list[MapView]:
        """All maps of the cluster."""
        views: list[MapView] = await self._call("GET", "/v1/maps", list[MapView])
        return views

    async def map_news(self, map_id: str, after: int = 0, wait_s: float = 0) -> MapNews:
        """The map, and the items that ended after number `after`; waits up to `wait_s` when there are none yet."""
        query = {"after": after, "wait_s": wait_s}
        path = f"/v1/maps/{_part(map_id)}/items"
        news: MapNews = await self._call("GET", path, MapNews, query=query, wait_s=wait_s)
        return news

    async def stop_map(self, map_id: str) -> MapView:
        """End a map's workers; what has ended is kept."""
        view: MapView = await self._call("POST", f"/v1/maps/{_part(map_id)}/stop", MapView)
        return view

    async def resume_map(self, map_id: str) -> MapView:
        """Go on with a stopped map, also one that was begun on another cluster."""
        view: MapView = await self._call("POST", f"/v1/maps/{_part(map_id)}/resume", MapView)
        return view

    async def has_blob(self, sha256: str) -> bool:
        """Whether an input's bytes are with the cluster process already."""
        try:
            await self._raw("HEAD", f"/v1/blobs/{_part(sha256)}")
        except GpuMarketError:
            return False
        return True

    async def nodes(self) -> list[NodeView]:
        """The nodes as the cluster process sees them."""
        views: list[NodeView] = await self._call("GET", "/v1/nodes", list[NodeView])
        return views

    async def dask(self) -> DaskView:
        """How Dask runs on the nodes."""
        view: DaskView = await self._call("GET", "/v1/dask", DaskView)
        return view

    async def start_dask(self, wish: DaskWish) -> DaskView:
        """Have a scheduler on the most reliable node and workers on all, from now on."""
        view: DaskView = await self._call("PUT", "/v1/dask", DaskView, body=wish)
        return view

    async def stop_dask(self) -> DaskView:
        """End all Dask processes; the nodes stay."""
        view: DaskView = await self._call("DELETE", "/v1/dask", DaskView)
        return view

    async def retire_dask(self, lease_id: str, reason: str = "") -> DaskView:
        """Move what a node's workers hold to others, and end them, before the node goes."""
        body = DaskRetire(lease_id=lease_id, reason=reason)
        view: DaskView = await self._call("POST", "/v1/dask/retire", DaskView, body=body)
        return view

    async def dask_access(self) -> DaskAccess:
        """A way for a Dask client on this machine to the scheduler. Only for nodes that are the user's own."""
        access: DaskAccess = await self._call("POST", "/v1/dask/access", DaskAccess)
        return access

    async def code(self) -> CodeView:
        """The user's own modules on the nodes, and how each node is with them."""
        view: CodeView = await self._call("GET", "/v1/code", CodeView)
        return view

    async def put_code(self, wish: CodeWish) -> CodeView:
        """Have exactly these modules on the nodes; returns when they are there, or cannot be. Put the archive first."""
        view: CodeView = await self._call("PUT", "/v1/code", CodeView, body=wish, wait_s=MOVE_S)
        return view

    async def look_for_packages(self, look: PackageLook) -> PackagesFound:
        """What the nodes have of these packages."""
        found: PackagesFound = await self._call("POST", "/v1/packages/look", PackagesFound, body=look, wait_s=60)
        return found

    async def put_packages(self, wish: PackageWish) -> CodeView:
        """Have these packages on the nodes that lack them; returns when they are there, or cannot be."""
        view: CodeView = await self._call("PUT", "/v1/packages", CodeView, body=wish, wait_s=MOVE_S)
        return view

    async def restart_session(self, lease_id: str, session: str = "main") -> None:
        """Kill a session's kernel and start a new one; its runs end as errors."""
        # The call may be made a second time when its answer is lost, and must not end what was begun since.
        path = f"/v1/nodes/{_part(lease_id)}/sessions/{_part(session)}/restart?asked={secrets.token_hex(8)}"
        await self._raw("POST", path)

    async def node_log(self, lease_id: str) -> str:
        """The last lines of what the agent and set-up logged for a node. A node's words: clean before display."""
        return (await self._raw("GET", f"/v1/nodes/{_part(lease_id)}/log")).decode("utf-8", errors="replace")

    async def aclose(self) -> None:
        """Close connections; the cluster process goes on."""
        await self._conversation.aclose()

    async def _call(
        self,
        method: str,
        path: str,
        answer: Any,
        *,
        body: object = None,
        query: Mapping[str, str | int | float] | None = None,
        wait_s: float = 0,
    ) -> Any:
        return await self._again(lambda at: at.call(method, path, answer, body=body, query=query, wait_s=wait_s))

    async def _raw(
        self, method: str, path: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        return await self._again(lambda at: at.raw(method, path, content=content, headers=headers))

    async def _again(self, call: Callable[[Conversation], Awaitable[T]]) -> T:
        """Make a call; once more, at a fresh address, when the cluster process was replaced meanwhile."""
        conversation = self._conversation
        try:
            return await call(conversation)
        except Gone:
            endpoint = await self._find()
            if self._conversation is conversation:
                self._conversation = Conversation(endpoint)
                await conversation.aclose()
        try:
            return await call(self._conversation)
        except Gone as gone:
            raise Unreachable(f"the cluster process does not answer ({gone}); try again in a moment") from None


def _part(text: str) -> str:
    return quote(text, safe="")
