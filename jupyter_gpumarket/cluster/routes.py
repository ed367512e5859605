"""The HTTP API on loopback: parse, call one collaborator, answer. Errors become `Problem` in one place."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import msgspec
from tornado import web

from jupyter_gpumarket.api import (
    API_VERSION,
    Attach,
    ClusterInfo,
    DaskRetire,
    DaskWish,
    DeadlineChange,
    Detach,
    MessageBatch,
    NodeNotice,
    Problem,
    RunRequest,
)
from jupyter_gpumarket.cluster.blobs import MAX_BLOB_BYTES, BlobWriter
from jupyter_gpumarket.cluster.node import Node
from jupyter_gpumarket.cluster.process import Cluster
from jupyter_gpumarket.cluster.runs import Run
from jupyter_gpumarket.errors import BadRequest, GpuMarketError

logger = logging.getLogger(__name__)

T = TypeVar("T")
LONGEST_WAIT_S = 60
MAX_BODY_BYTES = 64 * 1024 * 1024
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
PIECE_BYTES = 1024 * 1024


class NotFoundHere(GpuMarketError):
    """No such thing here."""


class Handler(web.RequestHandler):
    """What all routes share: who may ask, how a body is read, how an answer is written."""

    cluster: Cluster

    def initialize(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def prepare(self) -> Awaitable[None] | None:
        host = (self.request.host or "").rsplit(":", 1)[0] if ":" in (self.request.host or "") else self.request.host
        if host not in LOOPBACK_NAMES:
            # A page that made a name of its own point here (DNS rebinding) sends that name.
            raise web.HTTPError(403, "the Host header is not a loopback address")
        given = self.request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {self.cluster.token}".encode()):
            raise web.HTTPError(401, "the bearer token is missing or wrong; read it from cluster.json")
        self.cluster.stay_awake()
        return None

    def body(self, kind: type[T]) -> T:
        """The request's body.

        Raises:
            BadRequest: names the field.
        """
        try:
            return msgspec.json.decode(self.request.body or b"{}", type=kind)
        except msgspec.MsgspecError as error:
            raise BadRequest(str(error)) from None

    def number(self, name: str, most: int) -> float:
        """A number of the query string, 0 where there is none; a larger one than `most` counts as that.

        Raises:
            BadRequest: not a number, or negative.
        """
        text = self.get_query_argument(name, "0")
        if not re.fullmatch(r"\d{1,20}(\.\d{1,20})?", text):
            raise BadRequest(f"{name}: {text[:40]!r} is not a number from 0 up")
        return min(float(text), most)

    def answer(self, value: Any, status: int = 200) -> None:
        """Any record as JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(msgspec.json.encode(value))

    def run_named(self, run_id: str) -> Run:
        run = self.cluster.runs.find(run_id)
        if run is None:
            raise NotFoundHere(f"no cell run {run_id[:100]!r} is known here")
        return run

    def node_named(self, lease_id: str) -> Node:
        node = self.cluster.node(lease_id)
        if node is None:
            raise NotFoundHere(f"no node {lease_id[:100]!r} is attached here")
        return node

    def write_error(self, status_code: int, **details: Any) -> None:
        error = details.get("exc_info", (None, None, None))[1]
        problem = Problem(error="GpuMarketError", message="an error in the cluster process; see its log")
        if isinstance(error, BadRequest):
            status_code, problem = 400, Problem(error="BadRequest", message=str(error), field=_field(str(error)))
        elif isinstance(error, NotFoundHere):
            status_code, problem = 404, Problem(error="BadRequest", message=str(error))
        elif isinstance(error, GpuMarketError):
            status_code, problem = 409, Problem(error=type(error).__name__, message=str(error))
        elif isinstance(error, OSError):
            problem = Problem(error="GpuMarketError", message=f"the disk under the cluster's folder: {error.strerror}")
        elif isinstance(error, web.HTTPError):
            message = error.log_message or "this route does not exist, or not with this method"
            problem = Problem(error="BadRequest", message=message)
        self.answer(problem, status_code)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, web.HTTPError | GpuMarketError):
            logger.error("%s %s", self.request.method, self.request.path, exc_info=(typ, value, tb))


class Health(Handler):
    """GET /v1/health"""

    def get(self) -> None:
        self.answer(
            ClusterInfo(
                cluster_id=self.cluster.start.cluster_id,
                api_version=API_VERSION,
                pid=os.getpid(),
                nodes=tuple(view.lease_id for view in self.cluster.nodes()),
                facts_waiting=self.cluster.facts.waiting,
            )
        )


class Shutdown(Handler):
    """POST /v1/shutdown"""

    def post(self) -> None:
        self.answer({}, 202)
        self.cluster.end()


class Nodes(Handler):
    """GET /v1/nodes"""

    def get(self) -> None:
        self.answer(self.cluster.nodes())


class OneNode(Handler):
    """GET and PUT /v1/nodes/{lease_id}"""

    def get(self, lease_id: str) -> None:
        self.answer(self.node_named(lease_id).view())

    def put(self, lease_id: str) -> None:
        attach = self.body(Attach)
        if attach.lease_id != lease_id:
            raise BadRequest("lease_id: the address and the body name different leases")
        self.answer(self.cluster.attach(attach))


class DetachNode(Handler):
    """POST /v1/nodes/{lease_id}/detach"""

    async def post(self, lease_id: str) -> None:
        asked = self.body(Detach)
        await self.cluster.detach(lease_id, asked.timeout_s, save_s=asked.save_s, reason=asked.reason[:1000])
        self.answer({})


class NodeDeadline(Handler):
    """POST /v1/nodes/{lease_id}/deadline"""

    def post(self, lease_id: str) -> None:
        node = self.node_named(lease_id)
        node.set_deadline(self.body(DeadlineChange).deadline_ms)
        self.answer(node.view())


class NoticeOfNode(Handler):
    """POST /v1/nodes/{lease_id}/notice"""

    def post(self, lease_id: str) -> None:
        node = self.node_named(lease_id)
        node.set_notice(self.body(NodeNotice).notice)
        self.answer(node.view())


class RestartSession(Handler):
    """POST /v1/nodes/{lease_id}/sessions/{session}/restart?asked=ID: the same ID again is the same restart."""

    def post(self, lease_id: str, session: str) -> None:
        asked = self.get_query_argument("asked", "")[:100]
        is_heard = self.node_named(lease_id).restart_session(session, asked)
        waits = "the node cannot be reached; its session is restarted when it answers again"
        self.answer({"delivered": is_heard, "message": "" if is_heard else waits}, 202)


class NodeLog(Handler):
    """GET /v1/nodes/{lease_id}/log"""

    async def get(self, lease_id: str) -> None:
        text = await self.node_named(lease_id).log()
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        await self.finish(text.encode("utf-8", "replace"))


class Runs(Handler):
    """GET and POST /v1/runs"""

    def get(self) -> None:
        self.answer([run.view() for run in self.cluster.runs])

    def post(self) -> None:
        self.answer(self.cluster.submit(self.body(RunRequest)).view(), 202)


class OneRun(Handler):
    """GET /v1/runs/{run_id}"""

    def get(self, run_id: str) -> None:
        self.answer(self.run_named(run_id).view())


class Interrupt(Handler):
    """POST /v1/runs/{run_id}/interrupt?save_for=WHY: with a reason, its declared outputs are wanted all the same."""

    def post(self, run_id: str) -> None:
        run = self.run_named(run_id)
        self.cluster.interrupt(run, self.get_query_argument("save_for", "")[:1000])
        self.answer(run.view())


class Messages(Handler):
    """GET and POST /v1/runs/{run_id}/messages?after=N&wait_s=S&calm_s=C: what came after N; POST begins the run first.

    Waits up to `wait_s` for something to tell. What a run prints is told after `calm_s` at the soonest, its end at
    once: so who shows not more than so many frames a second need not ask in between, and hears the end when it comes.
    """

    async def get(self, run_id: str) -> None:
        await self._tell(self.run_named(run_id))

    async def post(self, run_id: str) -> None:
        request = self.body(RunRequest)
        if request.run_id != run_id:
            raise BadRequest("run_id: the address and the body name different runs")
        await self._tell(self.cluster.submit(request))

    async def _tell(self, run: Run) -> None:
        after = int(self.number("after", 2**53))
        now_s = asyncio.get_running_loop().time
        until_s = now_s() + self.number("wait_s", LONGEST_WAIT_S)
        calm_until_s = now_s() + self.number("calm_s", LONGEST_WAIT_S)
        while run.log.count <= after and not run.state.has_ended and (left_s := until_s - now_s()) > 0:
            await run.wait_news(left_s)
        if not run.state.has_ended and run.log.count > after and (left_s := calm_until_s - now_s()) > 0:
            await run.wait_end(left_s)
        view = run.view()
        node = self.cluster.node(view.lease_id)
        self.answer(
            MessageBatch(
                messages=run.log.read(after),
                run=view,
                link=node.link_state if node else "closed",
                link_detail=node.link_detail if node else "",
                notice=node.record.attach.notice if node else None,
            )
        )


class Output(Handler):
    """GET /v1/runs/{run_id}/outputs/{name}"""

    async def get(self, run_id: str, name: str) -> None:
        run = self.run_named(run_id)
        found = next((ref for ref in run.state.outputs if ref.name == name), None)
        if found is None:
            raise NotFoundHere(f"the cell run has no output {name[:100]!r}" + ("" if run.state.has_ended else " yet"))
        if found.error:
            raise BadRequest(f"{name}: {found.error}")
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Length", str(found.size))
        with run.output_path(name).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                self.write(piece)
                await self.flush()
        await self.finish()


class Dask(Handler):
    """GET, PUT and DELETE /v1/dask: how Dask runs on the nodes; have it run; end it."""

    def get(self) -> None:
        self.answer(self.cluster.dask.view())

    def put(self) -> None:
        self.answer(self.cluster.dask.start(self.body(DaskWish)), 202)

    def delete(self) -> None:
        self.answer(self.cluster.dask.stop(), 202)


class RetireDask(Handler):
    """POST /v1/dask/retire"""

    def post(self) -> None:
        asked = self.body(DaskRetire)
        self.answer(self.cluster.dask.retire(asked.lease_id, asked.reason), 202)


class AccessDask(Handler):
    """POST /v1/dask/access"""

    async def post(self) -> None:
        self.answer(await self.cluster.dask.access())


@web.stream_request_body
class Blob(Handler):
    """PUT and HEAD /v1/blobs/{sha256}: an input, by content."""

    _writer: BlobWriter | None = None

    def prepare(self) -> Awaitable[None] | None:
        super().prepare()
        if self.request.method == "PUT":
            self.request.connection.set_max_body_size(MAX_BLOB_BYTES)  # type: ignore[union-attr]
            self._writer = self.cluster.blobs.writer(self.path_args[0])
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._writer is not None:
            self._writer.write(chunk)
        return None

    def put(self, sha256: str) -> None:
        assert self._writer is not None
        self.answer({"sha256": sha256, "size": self._writer.finish()})
        self._writer = None

    def head(self, sha256: str) -> None:
        self.set_status(200 if self.cluster.blobs.has(sha256) else 404)
        self.finish()

    def write_error(self, status_code: int, **details: Any) -> None:
        self.set_header("Connection", "close")  # the rest of the body is not read: nobody should reuse this connection
        super().write_error(status_code, **details)

    def on_finish(self) -> None:
        self._abandon()

    def on_connection_close(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None


ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/v1/health", Health),
    (r"/v1/shutdown", Shutdown),
    (r"/v1/nodes", Nodes),
    (r"/v1/nodes/([^/]+)", OneNode),
    (r"/v1/nodes/([^/]+)/detach", DetachNode),
    (r"/v1/nodes/([^/]+)/deadline", NodeDeadline),
    (r"/v1/nodes/([^/]+)/notice", NoticeOfNode),
    (r"/v1/nodes/([^/]+)/log", NodeLog),
    (r"/v1/nodes/([^/]+)/sessions/([^/]+)/restart", RestartSession),
    (r"/v1/runs", Runs),
    (r"/v1/runs/([^/]+)", OneRun),
    (r"/v1/runs/([^/]+)/interrupt", Interrupt),
    (r"/v1/runs/([^/]+)/messages", Messages),
    (r"/v1/runs/([^/]+)/outputs/([^/]+)", Output),
    (r"/v1/blobs/([^/]+)", Blob),
    (r"/v1/dask", Dask),
    (r"/v1/dask/retire", RetireDask),
    (r"/v1/dask/access", AccessDask),
]


class _NoSuchRoute(Handler):
    """Everything else: refused like a route, so that a stranger learns nothing without the token."""

    def prepare(self) -> Awaitable[None] | None:
        super().prepare()
        raise web.HTTPError(404, "this route does not exist")


def application(cluster: Cluster, more: Sequence[tuple[str, type[Handler]]] = ()) -> web.Application:
    """The routes over one cluster."""
    return web.Application(
        [(path, handler, {"cluster": cluster}) for path, handler in (*ROUTES, *more)],
        default_handler_class=_NoSuchRoute,
        default_handler_args={"cluster": cluster},
        log_function=lambda _handler: None,
    )


def _field(message: str) -> str:
    """The field that an error message names: `name: ...`, or msgspec's ``... `name` ...`` and `$.name`."""
    head, colon, _ = message.partition(": ")
    if colon and head.replace("_", "").isalnum():
        return head
    if "$." in message:
        return message.rsplit("$.", 1)[1].rstrip("`")
    return message.split("`")[1] if message.count("`") >= 2 else ""
