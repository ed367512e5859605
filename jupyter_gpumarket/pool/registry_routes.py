"""The registry's HTTP doors: one table of routes, one handler that checks the caller and decodes by schema.

The OpenAPI document is made from the same table, so it cannot tell of other routes than there are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import msgspec
from tornado.web import Application, RequestHandler

from jupyter_gpumarket.api import Problem
from jupyter_gpumarket.api.pool import (
    Account,
    ChargeListing,
    DeadlineRequest,
    HostReport,
    Joined,
    Joining,
    OfferListing,
    Orders,
    PoolHealth,
    PoolQuote,
    PoolRental,
    Quota,
    QuoteRequest,
    RentalListing,
    RentRequest,
)
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.pool.guard import digest, new_token, same
from jupyter_gpumarket.pool.registry_book import Refused
from jupyter_gpumarket.pool.registry_service import VERSION, RegistryService
from jupyter_gpumarket.pool.registry_store import UserRow

MAX_BODY_BYTES = 1024 * 1024


class Call(Record, frozen=True, kw_only=True):
    """One decoded request: who calls, the path's identifier, the body, the query's label."""

    user: UserRow | None = None
    host_id: str = ""
    name: str = ""
    body: Any = None
    label: str | None = None


Action = Callable[[RegistryService, Call], Awaitable[Any]]


class Route(Record, frozen=True, kw_only=True):
    """One route. `caller` is whose token opens it: user, join, host, or anyone for none."""

    method: str
    path: str
    caller: str
    what: str
    action: Any
    body: Any = None
    reply: Any = None
    query: tuple[str, ...] = ()


async def health(_service: RegistryService, _call: Call) -> PoolHealth:
    return PoolHealth(ok=True, version=VERSION)


async def openapi(_service: RegistryService, _call: Call) -> dict[str, Any]:
    from jupyter_gpumarket.pool.registry_openapi import document

    return document(ROUTES)


async def offers(service: RegistryService, _call: Call) -> OfferListing:
    return OfferListing(offers=tuple(service.book.offers()))


async def quote(service: RegistryService, call: Call) -> PoolQuote:
    return service.book.quote(known(call), call.body.offer_id, service.now_ms())


async def rent(service: RegistryService, call: Call) -> PoolRental:
    rented = service.book.rent(known(call), call.body, service.now_ms())
    service.tell_hosts()
    return rented


async def rentals(service: RegistryService, call: Call) -> RentalListing:
    return RentalListing(rentals=tuple(service.book.rentals(known(call), call.label)))


async def rental(service: RegistryService, call: Call) -> PoolRental:
    return service.book.rental(known(call), call.name)


async def release(service: RegistryService, call: Call) -> PoolRental:
    ending = service.book.release(known(call), call.name)
    service.tell_hosts()
    return ending


async def set_deadline(service: RegistryService, call: Call) -> PoolRental:
    moved = service.book.set_deadline(known(call), call.name, call.body.deadline_ms, service.now_ms())
    service.tell_hosts()
    return moved


async def charges(service: RegistryService, call: Call) -> ChargeListing:
    return ChargeListing(charges=tuple(service.book.charges(known(call), call.name, service.now_ms())))


async def account(service: RegistryService, call: Call) -> Account:
    return service.book.account(known(call))


async def set_quota(service: RegistryService, call: Call) -> Account:
    return service.book.set_quota(known(call), call.body)


async def join(service: RegistryService, call: Call) -> Joined:
    joining: Joining = call.body
    strange = [offer.offer_id for offer in joining.offers if not offer.offer_id.startswith(joining.host_id + ".")]
    if strange:
        raise Refused(400, f"the offer {strange[0]} does not begin with the host's id", "offers")
    if service.store.host_token_digest(joining.host_id) is not None:
        raise Refused(409, f"a host {joining.host_id} has joined before; it has its own token", "host_id")
    token = new_token()
    service.join(joining, digest(token))
    return Joined(host_token=token, heartbeat_s=service.heartbeat_s)


async def update_host(service: RegistryService, call: Call) -> Joined:
    joining: Joining = call.body
    strange = [offer.offer_id for offer in joining.offers if not offer.offer_id.startswith(call.host_id + ".")]
    if strange or joining.host_id != call.host_id:
        raise Refused(400, "host_id and the offers must be the host's own", "offers" if strange else "host_id")
    service.join(joining, None)
    return Joined(host_token="", heartbeat_s=service.heartbeat_s)


async def host_report(service: RegistryService, call: Call) -> Orders:
    return await service.hear(call.host_id, call.body)


NAME = "([A-Za-z0-9][A-Za-z0-9._:-]{0,99})"
ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/health",
        caller="anyone",
        what="Whether the registry is up",
        action=health,
        reply=PoolHealth,
    ),
    Route(method="GET", path="/v1/openapi.json", caller="anyone", what="This document", action=openapi, reply=dict),
    Route(
        method="GET", path="/v1/offers", caller="user", what="What can be rented now", action=offers, reply=OfferListing
    ),
    Route(
        method="POST",
        path="/v1/quotes",
        caller="user",
        what="A firm price for two minutes",
        action=quote,
        body=QuoteRequest,
        reply=PoolQuote,
    ),
    Route(
        method="POST",
        path="/v1/rentals",
        caller="user",
        what="Rent; the same label again is the same rental",
        action=rent,
        body=RentRequest,
        reply=PoolRental,
    ),
    Route(
        method="GET",
        path="/v1/rentals",
        caller="user",
        what="Live rentals, or the one with a label",
        action=rentals,
        reply=RentalListing,
        query=("label",),
    ),
    Route(
        method="GET",
        path="/v1/rentals/{name}",
        caller="user",
        what="One rental, also when it is gone",
        action=rental,
        reply=PoolRental,
    ),
    Route(
        method="DELETE",
        path="/v1/rentals/{name}",
        caller="user",
        what="Begin to end a rental",
        action=release,
        reply=PoolRental,
    ),
    Route(
        method="PUT",
        path="/v1/rentals/{name}/deadline",
        caller="user",
        what="Move the registry's own timer",
        action=set_deadline,
        body=DeadlineRequest,
        reply=PoolRental,
    ),
    Route(
        method="GET",
        path="/v1/rentals/{name}/charges",
        caller="user",
        what="The bill of a rental so far",
        action=charges,
        reply=ChargeListing,
    ),
    Route(method="GET", path="/v1/account", caller="user", what="Limits and use", action=account, reply=Account),
    Route(
        method="PUT",
        path="/v1/account/quota",
        caller="user",
        what="Set a limit for oneself",
        action=set_quota,
        body=Quota,
        reply=Account,
    ),
    Route(
        method="POST",
        path="/v1/hosts",
        caller="join",
        what="A machine joins for the first time",
        action=join,
        body=Joining,
        reply=Joined,
    ),
    Route(
        method="PUT",
        path="/v1/hosts/{name}",
        caller="host",
        what="A known machine tells its offers anew",
        action=update_host,
        body=Joining,
        reply=Joined,
    ),
    Route(
        method="POST",
        path="/v1/hosts/{name}/report",
        caller="host",
        what="Heartbeat, lease states, and waiting for orders",
        action=host_report,
        body=HostReport,
        reply=Orders,
    ),
)


class RouteHandler(RequestHandler):
    """Serves all routes of one path."""

    service: RegistryService
    routes: ClassVar[dict[str, Route]] = {}

    def initialize(self, service: RegistryService, routes: dict[str, Route]) -> None:
        self.service = service
        self.by_method = routes

    def set_default_headers(self) -> None:
        self.set_header("Server", "gpumarket-pool")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    async def _serve(self, name: str = "") -> None:
        route = self.by_method.get(self.request.method or "")
        try:
            if route is None:
                self._answer(405, Problem(error="BadRequest", message=f"here is only {', '.join(self.by_method)}"))
            else:
                self._answer(200, await route.action(self.service, self._call(route, name)))
        except Refused as refused:
            self._answer(
                refused.status,
                Problem(error=problem_name(refused.status), message=refused.message, field=refused.field),
            )

    get = post = put = delete = _serve

    def _call(self, route: Route, name: str) -> Call:
        user = self._user() if route.caller == "user" else None
        if route.caller == "join" and not same(self._token(), self.service.join_token_digest):
            raise Refused(401, "this is not the registry's join token")
        if route.caller == "host":
            stored = self.service.store.host_token_digest(name)
            if stored is None or not same(self._token(), stored):
                raise Refused(401, f"this is not the token of the host {name}")
        label = self.get_query_argument("label", None) if "label" in route.query else None
        return Call(user=user, host_id=name, name=name, body=self._body(route), label=label)

    def _body(self, route: Route) -> Any:
        if route.body is None:
            return None
        try:
            return msgspec.json.decode(self.request.body, type=route.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(400, str(error), field_in(str(error))) from None

    def _user(self) -> UserRow:
        user = self.service.store.user_of(digest(self._token()))
        if user is None:
            raise Refused(401, "this is not a user's token of this registry")
        return user

    def _token(self) -> str:
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused(401, "send the header `Authorization: Bearer <token>`")
        return token.strip()

    def _answer(self, status: int, reply: Any) -> None:
        if self.request.connection is not None:
            self.set_status(status)
            self.set_header("Content-Type", "application/json")
            self.finish(msgspec.json.encode(reply))

    def write_error(self, status_code: int, **_kwargs: Any) -> None:
        """What went wrong in ourselves is logged here and told without its insides."""
        self.set_header("Content-Type", "application/json")
        message = "the registry failed; see its log" if status_code >= 500 else self._reason
        self.finish(msgspec.json.encode(Problem(error=problem_name(status_code), message=message)))


class NoSuchPath(RequestHandler):
    """Every other path."""

    def prepare(self) -> None:
        self.set_status(404)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(Problem(error="BadRequest", message=f"there is no {self.request.path}")))


def application(service: RegistryService) -> Application:
    """The tornado application over all routes."""
    paths: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = route
    handlers: list[Any] = [
        (path.replace("{name}", NAME).replace(".json", r"\.json"), RouteHandler, {"service": service, "routes": routes})
        for path, routes in paths.items()
    ]
    return Application(handlers, default_handler_class=NoSuchPath, log_function=lambda _handler: None)


PROBLEM_NAMES = {400: "BadRequest", 401: "Unauthorized", 402: "InsufficientFunds", 409: "OfferGone", 410: "OfferGone"}


def problem_name(status: int) -> str:
    return PROBLEM_NAMES.get(status, "Temporary" if status >= 500 else "BadRequest")


def field_in(message: str) -> str:
    """The field that msgspec complains about: "… - at `$.gpus[0].vram`" or "… unknown field `x`"."""
    if "at `$" in message:
        return message.rpartition("at `$")[2].partition("`")[0].removeprefix(".")
    return message.rpartition("field `")[2].partition("`")[0] if "field `" in message else ""


def known(call: Call) -> UserRow:
    assert call.user is not None
    return call.user
