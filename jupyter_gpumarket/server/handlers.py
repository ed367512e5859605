"""HTTP for the browser: who may call, how a call is read, how errors are answered. All of it here, once.

Jupyter Server checks the token or cookie, the XSRF token, the Origin and the Host; each verb asks its authorizer for
the route's action on the resource `gpumarket`. The body is decoded strictly; whatever a route raises is a `Problem`.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import msgspec
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from tornado import web

from jupyter_gpumarket.api import Problem
from jupyter_gpumarket.api.answers import answer_of
from jupyter_gpumarket.api.requests import InvalidField, decode
from jupyter_gpumarket.server.door import Door
from jupyter_gpumarket.server.routes import PREFIX, Call, Route

RESOURCE = "gpumarket"
MAX_BODY_BYTES = 1024 * 1024
BUG = "the Jupyter server extension failed at this; the server's log tells more"

Used = Callable[[Route, Any], None]


def rules(door: Door, routes: Sequence[Route], used: Used) -> list[tuple[str, type[APIHandler], dict[str, Any]]]:
    """Tornado's rules for a table of routes. `used` is told each call that was let in and its answer, or None."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, {})[route.method] = route
    behind = {"door": door, "used": used}
    known = [(_pattern(path), _handler(path, methods), behind) for path, methods in by_path.items()]
    return [*known, (PREFIX + r"(?:/.*)?", Unknown, behind)]


def _pattern(path: str) -> str:
    return "/".join(f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else part for part in path.split("/"))


def _handler(path: str, methods: Mapping[str, Route]) -> type[APIHandler]:
    """A handler class with one method for each verb of a path, each guarded for its own route's action."""
    # Jupyter's own figures on /metrics go by the class name.
    name = "".join(part.strip("{}").partition(".")[0].title() for part in path.split("/")) + "Handler"
    return type(name, (Base,), {method.lower(): _verb(route) for method, route in methods.items()})


def _verb(route: Route) -> Callable[..., Awaitable[None] | None]:
    async def verb(self: Base, **parts: str) -> None:
        await self.perform(route, parts)

    guarded: Callable[..., Awaitable[None] | None] = web.authenticated(authorized(route.action, RESOURCE)(verb))
    return guarded


class Base(ExtensionHandlerMixin, APIHandler):
    """Decodes, calls the route's one action, answers."""

    auth_resource = RESOURCE

    def initialize(self, name: str, door: Door, used: Used) -> None:
        super().initialize(name)
        self._door = door
        self._used = used
        self._work: asyncio.Future[Any] | None = None

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    async def prepare(self) -> None:
        await super().prepare()
        # Browsers send no Origin with some cross-site GETs (images, links); this header they always send.
        if self.request.headers.get("Sec-Fetch-Site") == "cross-site" and not self.token_authenticated:
            raise web.HTTPError(403, "a page of another site may not ask this")

    async def perform(self, route: Route, parts: Mapping[str, str]) -> None:
        """Do what the route says, and answer."""
        try:
            answer = await self._until_left(route.act(self._door, self._call(route, parts)))
        except asyncio.CancelledError:
            if self.request.connection is not None and self._work is not None and self._work.cancelled():
                return  # the browser went away: nobody waits for an answer
            raise
        except Exception as error:
            if isinstance(error, web.HTTPError):
                raise
            status, problem = answer_of(error, bug=BUG)
            if status == HTTPStatus.INTERNAL_SERVER_ERROR:
                self.log.exception("%s %s failed", route.method, route.path)
            self._answer(status, problem)
            answer = None
        else:
            self._answer(HTTPStatus.OK, answer)
        self._used(route, answer)

    def on_connection_close(self) -> None:
        """A reader that went away needs no answer; what changes something goes on to its end."""
        super().on_connection_close()
        if self._work is not None and self.request.method == "GET":
            self._work.cancel()

    async def _until_left(self, work: Awaitable[Any]) -> Any:
        self._work = asyncio.ensure_future(work)
        return await self._work

    def _call(self, route: Route, parts: Mapping[str, str]) -> Call:
        # Jupyter's own clients may add a token or a cache-breaking number to any address.
        given = {n: self.get_query_argument(n) for n in self.request.query_arguments if n != "token"}
        unknown = sorted(name for name in set(given) - set(route.query) if not name.isdigit())
        if unknown:
            raise InvalidField(f"unknown query argument `{unknown[0]:.60}`", name=unknown[0][:60])
        named = {name: unquote(text) for name, text in parts.items()}
        return Call(parts=named, query=given, body=self._body(route), user=_system_user())

    def _body(self, route: Route) -> Any:
        if route.body is None:
            return None
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise InvalidField(f"the body must be application/json, not {kind[:60]!r}", name="Content-Type")
        if len(self.request.body) > MAX_BODY_BYTES:
            raise InvalidField(f"the body must not be larger than {MAX_BODY_BYTES} bytes", name="Content-Length")
        return decode(self.request.body, route.body)

    def _answer(self, status: int, content: object) -> None:
        self.set_status(status)
        self.finish(msgspec.json.encode(content))

    def write_error(self, status_code: int, **details: Any) -> None:  # noqa: ARG002 -- tornado's signature
        """What Jupyter or tornado refuse is answered in the same shape as what a route refuses."""
        error = details.get("exc_info", (None, None, None))[1]
        message = (error.log_message if isinstance(error, web.HTTPError) else "") or self._reason
        self.finish(msgspec.json.encode(Problem(error="BadRequest", message=message)))


class Unknown(Base):
    """Every other path under /gpumarket, so that its answers are JSON too, and say nothing to strangers."""

    @web.authenticated
    def get(self) -> None:
        raise web.HTTPError(404, f"there is no {self.request.path[:200]}")

    post = put = delete = patch = get


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
