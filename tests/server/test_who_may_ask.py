"""Every route of the running server refuses whoever may not ask, and is described."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jupyter_gpumarket.server.routes import PREFIX, ROUTES
from tests.server.running import BASE, TOKEN, Server

FOREIGN = "https://evil.example"


@pytest.fixture(scope="module")
def served(server: Server) -> list[tuple[str, str]]:
    """(method, path) of everything the running application serves under /gpumarket, found by looking into it."""
    found = []
    for pattern, methods, _ in server.told("routes"):
        if pattern.startswith(BASE.rstrip("/") + PREFIX):
            path = re.sub(r"\(\?P<\w+>\[\^/\]\+\)", "some-thing", pattern.removesuffix("$"))
            path = path.replace("(?:/.*)?", "/what-is-not-there").removeprefix(BASE.rstrip("/"))
            path = path.replace(r"(?P<page>/.+/ws)", "/status/ws").replace(r"(?P<page>/.*)?", "/status")
            found += [(method, path) for method in methods]
    assert len(found) == len(ROUTES) + 2 + 5  # and a dashboard's pages and sockets, and the five verbs of what is not
    return found


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[httpx.Client]:
    """A page of this server's own, logged in by cookie."""
    with server.browser() as browser:
        yield browser


def answers(client: httpx.Client, served: list[tuple[str, str]], **headers: str) -> dict[tuple[str, str], int]:
    """The status of each route, asked with a body that nobody could take for a real one."""
    return {
        (method, path): client.request(method, path, json=None if method == "GET" else {}, headers=headers).status_code
        for method, path in served
    }


@pytest.mark.parametrize("authorization", ["", "token wrong", "Bearer wrong", f"Basic {TOKEN}"])
def test_no_route_answers_without_the_servers_token(
    server: Server, served: list[tuple[str, str]], authorization: str
) -> None:
    """No token, or a wrong one: 403, for every route and verb."""
    with server.door(Authorization=authorization, Accept="*/*") as door:
        found = answers(door, served)

    assert found == dict.fromkeys(served, 403)


def test_no_route_changes_anything_for_a_cookie_without_the_xsrf_token(
    page: httpx.Client, served: list[tuple[str, str]]
) -> None:
    """A form on another page can send the cookie, but not the header that only our own pages know."""
    changing = [(method, path) for method, path in served if method != "GET"]

    assert answers(page, changing) == dict.fromkeys(changing, 403)
    assert answers(page, changing, **{"X-XSRFToken": "guessed"}) == dict.fromkeys(changing, 403)


def test_no_route_answers_a_page_of_a_foreign_origin(page: httpx.Client, served: list[tuple[str, str]]) -> None:
    """With cookie and even with the XSRF token, another origin gets nothing, from reading routes neither."""
    found = answers(page, served, Origin=FOREIGN, **{"X-XSRFToken": page.cookies["_xsrf"]})

    assert set(found.values()) <= {403, 404}
    assert all(status == 404 for (method, _), status in found.items() if method == "GET")


def test_no_route_answers_what_a_foreign_page_embeds(page: httpx.Client, served: list[tuple[str, str]]) -> None:
    """An image or a link of another site sends no Origin: the browser's own word on it is enough to refuse."""
    found = answers(page, served, **{"Sec-Fetch-Site": "cross-site", "X-XSRFToken": page.cookies["_xsrf"]})

    assert found == dict.fromkeys(served, 403)


def test_no_route_answers_to_another_name(page: httpx.Client, served: list[tuple[str, str]]) -> None:
    """A name that somebody points at this machine (DNS rebinding) is refused."""
    found = answers(page, served, Host="rebound.example", **{"X-XSRFToken": page.cookies["_xsrf"]})

    assert found == dict.fromkeys(served, 403)


def test_our_own_page_is_answered(page: httpx.Client, server: Server) -> None:
    """The control: cookie, XSRF token and own origin are let in, so the refusals above are not refusals of all."""
    own = {"Origin": server.url.removesuffix(BASE.rstrip("/")), "X-XSRFToken": page.cookies["_xsrf"]}

    assert page.get(f"{PREFIX}/budgets", headers=own).status_code == 200
    assert page.post(f"{PREFIX}/costs", json={}, headers=own).status_code == 200


def test_the_event_bus_refuses_strangers(server: Server) -> None:
    """Nobody listens to what is rented without the token, or from a foreign page."""
    with server.door(Accept="*/*") as stranger, server.browser() as browser:
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        upgrade |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        path = "/api/events/subscribe"

        assert stranger.get(path, headers=upgrade).status_code == 403
        assert browser.get(path, headers={**upgrade, "Origin": FOREIGN}).status_code in {403, 404}


def test_the_document_describes_exactly_the_served_routes(server: Server) -> None:
    """OpenAPI has the same methods and paths as the running application, and all its references lead somewhere."""
    with server.door() as door:
        reply = door.get(f"{PREFIX}/openapi.json")
    content: dict[str, Any] = reply.json()
    described = {(method.upper(), path) for path, item in content["paths"].items() for method in item}
    running = set()
    for pattern, methods, handler in server.told("routes"):
        is_ours = handler.startswith("jupyter_gpumarket.") and ".dashboard_pages." not in handler
        if is_ours and not handler.endswith(".Unknown"):
            path = re.sub(r"\(\?P<(\w+)>\[\^/\]\+\)", r"{\1}", pattern.removesuffix("$"))
            running |= {(method, path.removeprefix(BASE.rstrip("/"))) for method in methods}
    named = set(re.findall(r"#/components/schemas/([\w.\-]+)", reply.text))

    assert described == running
    assert content["openapi"].startswith("3.1")
    assert named
    assert named <= set(content["components"]["schemas"])


def test_what_spends_is_never_a_get() -> None:
    """Opening an address, as a link or an image does, can rent nothing: only POST and PUT have an effect."""
    assert {route.method for route in ROUTES if route.action != "read"} == {"POST", "PUT"}
    assert all(route.body is not None for route in ROUTES if route.action != "read")
    assert all(route.action == "read" for route in ROUTES if route.method == "GET")


def test_a_lease_cannot_be_rented_by_an_address(server: Server) -> None:
    """Query arguments that spell a wish are refused by name, and nothing is rented."""
    with server.door() as door:
        reply = door.get(f"{PREFIX}/leases", params={"request_id": "r", "budget_nusd": "1000", "max_s": "60"})

        assert reply.status_code == 400
        assert door.get(f"{PREFIX}/leases", params={"all": "1"}).json() == []
