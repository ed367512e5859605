"""HTTP for the broker: who may call, what a body must look like, how errors are answered. All of it here, once.

Promises to the routes: the caller has a token that may use the route, came to our own name and port, and its body
has been decoded strictly. Whatever a route raises becomes a `Problem`.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec
import tornado.web

from jupyter_gpumarket.api import Problem, answers
from jupyter_gpumarket.api.requests import InvalidField, decode

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_WAIT_S = 60.0
DOOR = "door"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a route: parts of its path, its query, its decoded body, and whose token it bears."""

    parts: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    caller: str

    def number(self, name: str, default: float | None = None) -> float | None:
        """A query argument that is a finite number.

        Raises:
            InvalidField: it is something else.
        """
        text = self.query.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not -1e15 < value < 1e15:
            raise InvalidField(f"{name} must be a number, not {text[:40]!r}", name=name)
        return value


@dataclass(frozen=True, kw_only=True)
class Route:
    """One line of the route table: what it takes, what it answers, what it does."""

    method: str
    path: str
    summary: str
    answer: Any
    act: Callable[[Any, Call], Awaitable[Any]]
    body: Any = None
    query: tuple[str, ...] = ()
    for_clusters: bool = False


class Tokens(Protocol):
    """Who a bearer token belongs to."""

    def caller(self, token: str) -> str | None:
        """`DOOR`, a cluster's id, or None for a stranger."""


@dataclass(kw_only=True)
class Gate:
    """What every handler needs: the service behind it, the tokens, and the names by which we may be called."""

    service: Any
    tokens: Tokens
    hosts: frozenset[str]
    touched: Callable[[], None]


@dataclass
class TokenBook:
    """The tokens of this broker: one for doors, one for each cluster process. Compared in constant time."""

    door: str
    clusters: dict[str, str] = field(default_factory=dict)

    def caller(self, token: str) -> str | None:
        """Whose token it is. Every token is compared, so that time tells nothing."""
        given, found = token.encode(), None
        if hmac.compare_digest(given, self.door.encode()):
            found = DOOR
        for cluster_id, expected in self.clusters.items():
            if hmac.compare_digest(given, expected.encode()):
                found = cluster_id
        return found

    def __repr__(self) -> str:
        return f"TokenBook({len(self.clusters)} clusters)"


def application(gate: Gate, routes: Sequence[Route]) -> tornado.web.Application:
    """The tornado application of a route table."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, {})[route.method] = route
    rules = [
        (_pattern(path), RouteHandler, {"gate": gate, "routes": methods}, path) for path, methods in by_path.items()
    ]
    return tornado.web.Application(
        [tornado.web.url(pattern, handler, kwargs, name) for pattern, handler, kwargs, name in rules],
        default_handler_class=RouteHandler,
        default_handler_args={"gate": gate, "routes": {}},
        log_function=lambda _handler: None,
    )


def _pattern(path: str) -> str:
    segments = [f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else part for part in path.split("/")]
    return "/".join(segments)


class RouteHandler(tornado.web.RequestHandler):
    """Checks the caller, decodes, calls the route's one action, answers."""

    def initialize(self, gate: Gate, routes: Mapping[str, Route]) -> None:
        self._gate = gate
        self._routes = routes
        self._caller = ""

    def set_default_headers(self) -> None:
        self.set_header("Server", "gpumarket")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        """Refuse strangers before anything else is looked at."""
        if self.request.headers.get("Host", "").lower() not in self._gate.hosts:
            self._refuse(421, "this is not the name of this service")
            return
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        caller = self._gate.tokens.caller(token.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            self.set_header("WWW-Authenticate", "Bearer")
            self._refuse(401, "a valid token is needed")
            return
        self._caller = caller
        if caller == DOOR:
            self._gate.touched()

    async def get(self, **parts: str) -> None:
        await self._act("GET", parts)

    async def post(self, **parts: str) -> None:
        await self._act("POST", parts)

    async def put(self, **parts: str) -> None:
        await self._act("PUT", parts)

    async def _act(self, method: str, parts: Mapping[str, str]) -> None:
        route = self._routes.get(method)
        if route is None:
            if self._routes:
                self.set_header("Allow", ", ".join(sorted(self._routes)))
                self._refuse(405, f"{self.request.path} does not know {method}")
            else:
                self._refuse(404, f"there is no {self.request.path}")
            return
        if self._caller != DOOR and not route.for_clusters:
            self._refuse(403, f"this token may only report facts, not {method} {route.path}")
            return
        try:
            call = Call(
                parts={name: unquote(text) for name, text in parts.items()},
                query=self._query(route),
                body=self._body(route),
                caller=self._caller,
            )
            answer = await route.act(self._gate.service, call)
        except Exception as error:
            status, problem = answer_of(error)
            if status == 500:
                log.exception("%s %s failed", method, route.path)
            self._answer(status, problem)
            return
        self._answer(200, answer)

    def _query(self, route: Route) -> dict[str, str]:
        given = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        unknown = sorted(set(given) - set(route.query))
        if unknown:
            raise InvalidField(f"unknown query argument `{unknown[0]}`", name=unknown[0])
        return given

    def _body(self, route: Route) -> Any:
        if route.body is None:
            return None
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise InvalidField(f"the body must be application/json, not {kind[:60]!r}", name="Content-Type")
        return decode(self.request.body, route.body)

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, Problem(error="BadRequest", message=message))

    def _answer(self, status: int, content: object) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(content))

    def write_error(self, status_code: int, **_: Any) -> None:
        """What tornado itself refuses (a malformed request) is answered in the same shape."""
        self._answer(status_code, Problem(error="BadRequest", message=self._reason))


def answer_of(error: BaseException) -> tuple[int, Problem]:
    """Status and `Problem` of an exception."""
    if isinstance(error, tornado.web.HTTPError):
        return error.status_code, Problem(error="BadRequest", message=str(error))
    return answers.answer_of(error, bug="the broker failed at this; its log tells more")
