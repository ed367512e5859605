"""One HTTP server per stand-in. A marketplace is a table of routes; keys, faults and latency are the same for all.

Beside the marketplace's own paths there is `/_simulator/…`, with a token of its own: faults to arm, and the truth about
what is rented, for the tests and the demo to compare.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Protocol

import msgspec
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.simulator.faults import Arming, Fault, FaultBoard
from jupyter_gpumarket.simulator.ingress import PREFIX, HasIngress, Ingress
from jupyter_gpumarket.simulator.yard import Yard

log = logging.getLogger(__name__)

ENCODER = msgspec.json.Encoder(decimal_format="number")
CONTROL = "/_simulator/"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call as a route's action sees it. `key` came in the Authorization header, or in X-API-Key; header names are
    in lower case; `raw_query` is the query as it was sent."""

    method: str
    path: str
    key: str
    names: tuple[str, ...] = ()
    query: dict[str, str] = field(default_factory=dict)
    raw_query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""

    def body(self) -> Any:
        """The body as JSON.

        Raises:
            Refusal: it is none.
        """
        try:
            return msgspec.json.decode(self.content) if self.content else {}
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refusal(Reply(status=400, body=BAD_JSON)) from None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is answered; bytes go out as they are."""

    body: Any = None
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An action ends with this reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply.status))
        self.reply = reply


BAD_JSON = {"error": "invalid_request", "msg": "Invalid json body"}
Action = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One path of a marketplace. `creates` marks the call that costs; `open` needs no key."""

    method: str
    pattern: str
    action: Action
    creates: bool = False
    open: bool = False


class StandIn(Protocol):
    """One marketplace's words and habits."""

    name: str
    yard: Yard
    faults: FaultBoard

    def routes(self) -> list[Route]:
        """Its paths."""

    def check_key(self, call: Call) -> Reply | None:
        """What is answered to a call without a good key; None where the key is good."""

    def trouble(self, fault: Fault) -> Reply:
        """How it words TOO_MANY_CALLS, SERVER_ERROR and ERROR_AFTER_CREATE."""

    def no_such_path(self, call: Call) -> Reply:
        """How it words that there is no such path."""


class Server:
    """A stand-in that listens on loopback. `url` is what an adapter is given as its base URL."""

    def __init__(self, stand_in: StandIn, clock: Clock, *, latency_s: float = 0.0, port: int = 0) -> None:
        self.stand_in = stand_in
        self.control_token = secrets.token_urlsafe(16)
        self.observe: Callable[[Call, Reply], None] = lambda _call, _reply: None
        self._clock = clock
        self._latency_s = latency_s
        self._routes = [(re.compile(route.pattern), route) for route in stand_in.routes()]
        handlers: list[Any] = [("/.*", Handler, {"server": self})]
        if isinstance(stand_in, HasIngress):
            handlers.insert(0, (PREFIX + "([^/]+)/?", Ingress, {"port_of": stand_in.ingress_port}))
        application = Application(handlers, log_function=lambda _: None)
        self._http = HTTPServer(application)
        (socket,) = bind_sockets(port, "127.0.0.1")
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        self._http.add_sockets([socket])

    async def answer(self, call: Call) -> Reply | None:
        """What is answered; None: the connection is cut."""
        if call.path.startswith(CONTROL):
            return self._control(call)
        if self._latency_s:
            await self._clock.sleep(self._latency_s)
        route, names = self._route(call)
        if route is None:
            return self.stand_in.no_such_path(call)
        if not route.open and (refused := self.stand_in.check_key(call)) is not None:
            return refused
        if (trouble := self._trouble()) is not None:
            return trouble
        if route.creates:
            return await self._create(route, named(call, names))
        return await self._act(route, named(call, names))

    async def aclose(self) -> None:
        """Stop listening, and give everything back."""
        self._http.stop()
        await self._http.close_all_connections()
        await self.stand_in.yard.aclose()

    def _route(self, call: Call) -> tuple[Route | None, tuple[str, ...]]:
        for pattern, route in self._routes:
            found = pattern.fullmatch(call.path)
            if found and route.method == call.method:
                return route, found.groups()
        return None, ()

    def _trouble(self) -> Reply | None:
        faults = self.stand_in.faults
        for fault in (Fault.TOO_MANY_CALLS, Fault.SERVER_ERROR):
            if faults.take(fault):
                return self.stand_in.trouble(fault)
        if faults.take(Fault.MALFORMED):
            return Reply(body=b"<html>welcome to the hotel's network</html>", content_type="text/html")
        return None

    async def _create(self, route: Route, call: Call) -> Reply | None:
        faults = self.stand_in.faults
        if faults.take(Fault.LOST_BEFORE_CREATE):
            return None
        reply = await self._act(route, call)
        if faults.take(Fault.LOST_AFTER_CREATE):
            return None
        if faults.take(Fault.ERROR_AFTER_CREATE):
            return self.stand_in.trouble(Fault.ERROR_AFTER_CREATE)
        return reply

    async def _act(self, route: Route, call: Call) -> Reply:
        try:
            return await route.action(call)
        except Refusal as refusal:
            return refusal.reply

    def _control(self, call: Call) -> Reply:
        if not secrets.compare_digest(call.key.encode(), self.control_token.encode()):
            return Reply(status=401, body={"error": "the simulator's own paths need the simulator's own token"})
        if call.path == CONTROL + "faults":
            if call.method == "POST":
                try:
                    self.stand_in.faults.arm(msgspec.json.decode(call.content, type=Arming))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    return Reply(status=400, body={"error": str(error)})
            return Reply(body=self.stand_in.faults.armed())
        if call.path == CONTROL + "rentals":
            return Reply(body=[truth(rental) for rental in self.stand_in.yard.rentals.values()])
        return Reply(status=404, body={"error": f"there is no {call.path}"})


class Handler(RequestHandler):
    """One call."""

    def initialize(self, server: Server) -> None:
        self.server = server

    async def _serve(self) -> None:
        asked = self.request
        bearer = asked.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        call = Call(
            method=asked.method or "",
            path=asked.path,
            key=bearer or asked.headers.get("X-API-Key", ""),
            raw_query=asked.query,
            headers={name.lower(): value for name, value in asked.headers.get_all()},
            query={name: values[-1].decode("utf-8", "replace") for name, values in asked.query_arguments.items()},
            content=asked.body,
        )
        reply = await self.server.answer(call)
        if reply is None:
            self._cut()
            return
        self.server.observe(call, reply)
        self.set_status(reply.status)
        # Some official clients take nothing but exactly this, without a character set.
        self.set_header("Content-Type", reply.content_type)
        for name, value in reply.headers.items():
            self.set_header(name, value)
        if reply.status != 204:
            self.write(reply.body if isinstance(reply.body, bytes) else ENCODER.encode(reply.body))
        self.finish()

    get = post = put = delete = patch = _serve

    def _cut(self) -> None:
        connection: Any = self.request.connection
        connection.stream.close()


def named(call: Call, names: tuple[str, ...]) -> Call:
    """The call with what its path names."""
    return replace(call, names=names)


def truth(rental: Any) -> dict[str, Any]:
    """What is really so, whatever the marketplace's own answers say."""
    return {
        "rental_id": rental.rental_id,
        "label": rental.label,
        "phase": rental.phase.value,
        "rate_nusd_hour": rental.rate_nusd_hour,
        "created_ms": rental.created_ms,
        "running_ms": rental.running_ms,
        "ended_ms": rental.ended_ms,
    }


def in_dollars(nusd: int) -> Decimal:
    """An amount as these APIs write it."""
    return (Decimal(nusd) / 1_000_000_000).normalize()
