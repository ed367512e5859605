"""The Dask dashboard of a trusted cluster, passed through the Jupyter server: pages, and the sockets of live ones.

Why not jupyter-server-proxy, a library for just that: installing it opens every port of this machine to whoever may
log in here, and it hands the browser's cookies and tokens on to what it proxies. Here one place is reached, found anew
for each page; nothing of Jupyter's own goes there, and of what comes back only what a page needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable
from typing import Any, cast
from urllib.parse import urlencode

from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado import web
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    WebSocketHandler,
    websocket_connect,
)

from jupyter_gpumarket.api.answers import answer_of
from jupyter_gpumarket.errors import GpuMarketError
from jupyter_gpumarket.server.dashboards import Dashboards
from jupyter_gpumarket.server.routes import PREFIX

RESOURCE = "gpumarket"
PAGES = PREFIX + r"/clusters/(?P<cluster>[^/]+)/dashboard(?P<page>/.*)?"
SOCKETS = PREFIX + r"/clusters/(?P<cluster>[^/]+)/dashboard(?P<page>/.+/ws)"
FIRST_PAGE = "/status"
# Nothing that tells who is asking: no cookie, no token, no address of the page that led here.
SENT = ("Accept", "Accept-Encoding", "Accept-Language", "If-Modified-Since", "If-None-Match")
# Nothing that would act on the rest of Jupyter's origin: no cookie, no policy of its own.
KEPT = ("Content-Type", "Content-Encoding", "ETag", "Last-Modified", "Cache-Control", "Expires")
PLAIN_PATH = re.compile(r"[\x21-\x7e]{1,2000}")
PLAIN_PLACE = re.compile(r"(?!//)[\w./-]{1,500}(\?[\w.=&%-]{0,500})?", re.ASCII)
MAX_PAGE_BYTES = 32 * 1024 * 1024
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
ANSWER_S = 30.0
CHECK_EVERY_S = 10.0
JUPYTERS_OWN = frozenset({"token", "_xsrf"})
PROTOCOL = "bokeh"


def rules(dashboards: Dashboards) -> list[tuple[str, type[JupyterHandler], dict[str, Any]]]:
    """Tornado's rules."""
    behind = {"dashboards": dashboards}
    return [(SOCKETS, DashboardSocket, behind), (PAGES, DashboardPage, behind)]


class _Guarded(JupyterHandler):
    """What both kinds share: who may come in, and where they are led."""

    auth_resource = RESOURCE

    def initialize(self, dashboards: Dashboards) -> None:
        super().initialize()
        self._dashboards = dashboards

    async def prepare(self, *given: Any, **options: Any) -> None:
        """Jupyter's own rules, then ours."""
        await super().prepare(*given, **options)
        self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        """Pages of other sites embed nothing from here, and no script from a node may outlive its page.

        Raises:
            HTTPError: who asks is one of those.
        """
        foreign = self.request.headers.get("Sec-Fetch-Site") == "cross-site" and not self.token_authenticated
        if foreign or "Service-Worker" in self.request.headers:
            raise web.HTTPError(403, "a page of another site, or a service worker, may not ask this")
        if not self.check_origin():
            raise web.HTTPError(404)

    async def place_of(self, cluster: str) -> str:
        """Where the dashboard listens.

        Raises:
            HTTPError: it is not to be had; says why.
        """
        try:
            return await self._dashboards.find(cluster)
        except GpuMarketError as error:
            status, problem = answer_of(error, bug="the dashboard could not be found; the server's log tells more")
            if status >= 500:
                self.log.warning("the dashboard of %s: %s", cluster[:60], error)
            raise web.HTTPError(status, problem.message) from None

    def asked_of(self, place: str, scheme: str) -> str:
        """The address there of what is asked for here, without what is Jupyter's own.

        Raises:
            HTTPError: it is no address.
        """
        # As it came, for what the rule has matched is unquoted: /gpumarket/clusters/NAME/dashboard/PATH.
        path = "/" + self.request.path.removeprefix(self.base_url.rstrip("/")).split("/", 5)[5]
        if not PLAIN_PATH.fullmatch(path):
            raise web.HTTPError(404)
        given = [
            (name, value)
            for name, values in self.request.query_arguments.items()
            if name not in JUPYTERS_OWN
            for value in values
        ]
        return f"{scheme}://{place}{path}" + (f"?{urlencode(given)}" if given else "")


class DashboardPage(_Guarded, APIHandler):
    """GET /gpumarket/clusters/{cluster}/dashboard/...: pages, scripts, figures. Nothing else is passed on."""

    @property
    def content_security_policy(self) -> str:
        """As for Jupyter's own pages; a dashboard has scripts."""
        return cast("str", JupyterHandler.content_security_policy.fget(self))

    @web.authenticated
    @authorized("read", RESOURCE)
    async def get(self, cluster: str, page: str | None) -> None:
        if page in (None, "", "/"):
            self.redirect(f"{self.request.path.rstrip('/')}{FIRST_PAGE}")
            return
        place = await self.place_of(cluster)
        headers = {name: self.request.headers[name] for name in SENT if name in self.request.headers}
        asked = HTTPRequest(
            self.asked_of(place, "http"),
            headers=headers,
            follow_redirects=False,
            decompress_response=False,
            connect_timeout=ANSWER_S,
            request_timeout=ANSWER_S,
        )
        client = SimpleAsyncHTTPClient(force_instance=True, max_body_size=MAX_PAGE_BYTES)
        try:
            reply = await client.fetch(asked, raise_error=False)
        except (OSError, HTTPClientError) as error:
            reply = None
            reason = str(error)[:200]
        finally:
            client.close()
        if reply is None or reply.code == 599:
            self._dashboards.forget(cluster)
            reason = reason if reply is None else str(reply.error)[:200]
            raise web.HTTPError(502, f"the dashboard does not answer ({reason}); reload in a moment")
        self.set_status(reply.code)
        for name in KEPT:
            if name in reply.headers:
                self.set_header(name, reply.headers[name])
        self._lead_on(reply.headers.get("Location", ""), cluster)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        kind = reply.headers.get("Content-Type", "application/octet-stream")
        self.finish(reply.body if reply.code not in (204, 304) else None, set_content_type=kind)

    def _lead_on(self, place: str, cluster: str) -> None:
        """A redirect stays inside of the dashboard."""
        if place and PLAIN_PLACE.fullmatch(place):
            inside = f"{self.base_url.rstrip('/')}{PREFIX}/clusters/{cluster}/dashboard{place}"
            self.set_header("Location", inside if place.startswith("/") else place)


class DashboardSocket(WebSocketMixin, WebSocketHandler, _Guarded):  # type: ignore[misc,unused-ignore]
    """The socket of one live page: messages both ways, for as long as the cluster is trusted."""

    def initialize(self, dashboards: Dashboards) -> None:
        super().initialize(dashboards)
        self._far: WebSocketClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._is_gone = False

    @ws_authenticated
    @authorized("read", RESOURCE)
    async def get(self, cluster: str, page: str) -> None:
        self._cluster = cluster
        self._place = await self.place_of(cluster)
        await cast("Awaitable[None]", super().get(cluster=cluster, page=page))

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Bokeh's; the second one is its session's own token."""
        self._protocols = subprotocols[:2]
        return PROTOCOL if PROTOCOL in subprotocols else None

    async def open(self, cluster: str, page: str) -> None:
        """Connect to the far end; what the page says waits for it."""
        super().open(cluster=cluster, page=page)
        try:
            self._far = await websocket_connect(
                HTTPRequest(self.asked_of(self._place, "ws"), connect_timeout=ANSWER_S),
                subprotocols=self._protocols,
                max_message_size=MAX_MESSAGE_BYTES,
            )
        except (OSError, HTTPClientError) as error:
            self.log.info("the dashboard of %s does not take a socket: %s", cluster[:60], error)
            self.close(1011)
            return
        if self._is_gone:  # it did not wait for that
            self._far.close()
            return
        self._tasks = [asyncio.create_task(self._bring(self._far)), asyncio.create_task(self._watch())]

    async def on_message(self, message: str | bytes) -> None:
        """From the page to the scheduler."""
        if self._far is not None:
            await self._far.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        """The page is gone."""
        self._is_gone = True
        for task in self._tasks:
            task.cancel()
        if self._far is not None:
            self._far.close()

    async def _bring(self, far: WebSocketClientConnection) -> None:
        """From the scheduler to the page, no faster than it takes it."""
        with contextlib.suppress(WebSocketClosedError):  # the page went while it was being told something
            while (message := await far.read_message()) is not None:
                await self.write_message(message, binary=isinstance(message, bytes))
        self.close()

    async def _watch(self) -> None:
        """A cluster that gets a stranger's node is no longer shown."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                await self.place_of(self._cluster)
            except web.HTTPError as error:
                if error.status_code < 500:  # a broker that is away for a moment is no answer
                    self.close(1008)
                    return
