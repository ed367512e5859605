"""Requests that nobody should send are refused by name, as JSON, and never break the server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import msgspec
import pytest

from jupyter_gpumarket.api import Problem
from jupyter_gpumarket.server.handlers import MAX_BODY_BYTES
from tests.server.running import Server

RENTAL = {"request_id": "r1", "query": {}, "budget_nusd": 1000, "max_s": 60}


@pytest.fixture(scope="module")
def door(server: Server) -> Iterator[httpx.Client]:
    """With the server's token."""
    with server.door() as client:
        yield client


def problem(reply: httpx.Response) -> Problem:
    """The answer as what every error must be, with headers that let no browser take it for a page."""
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"
    return msgspec.json.decode(reply.content, type=Problem)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/leases", {**RENTAL, "budget_nusd": "1.0"}, "budget_nusd"),
        ("/leases", {**RENTAL, "budget_nusd": -1}, "budget_nusd"),
        ("/leases", {**RENTAL, "max_s": 10**12}, "max_s"),
        ("/leases", {**RENTAL, "request_id": "../../x"}, "request_id"),
        ("/leases", {**RENTAL, "trust_me": True}, "trust_me"),
        ("/leases", {**RENTAL, "query": {"gpus": "H100"}}, "query.gpus"),
        ("/leases", {k: v for k, v in RENTAL.items() if k != "budget_nusd"}, "budget_nusd"),
        ("/offers", {"limit": 0}, "limit"),
        ("/costs", {"since_ms": None}, "since_ms"),
        ("/leases", [], ""),
        ("/leases", None, "Content-Type"),
    ],
)
def test_a_wrong_field_is_named(door: httpx.Client, path: str, body: object, field: str) -> None:
    """400, and which field it was, wherever on the way to the broker it is found."""
    reply = door.post(f"/gpumarket{path}", json=body)

    assert (reply.status_code, problem(reply).field) == (400, field)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"", "application/json"),
        (b"{}", "text/plain"),
        (b"{}", "application/x-www-form-urlencoded"),
        (b"{}", ""),
        (b'{"query": {"gpu": "' + b"H" * MAX_BODY_BYTES + b'"}}', "application/json"),
    ],
    ids=["cut", "not-utf8", "deep", "empty", "text", "form", "untold", "huge"],
)
def test_what_is_no_json_is_refused(door: httpx.Client, content: bytes, kind: str) -> None:
    """A form, which any page may send, is never taken for a request; nor is what is cut, deep or huge."""
    reply = door.post("/gpumarket/offers", content=content, headers={"Content-Type": kind})

    assert reply.status_code == 400
    assert problem(reply).message


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fshutdown", "a%2Fcluster", "%00", "x" * 3000, "ä €", "'; --", "%ff"])
@pytest.mark.parametrize("rest", ["", "/story", "/node", "/log"])
def test_a_strange_name_leads_nowhere(door: httpx.Client, name: str, rest: str) -> None:
    """It is looked up as a name, never as a path of the broker, and is not there."""
    reply = door.get(f"/gpumarket/leases/{name}{rest}")

    assert reply.status_code in {400, 404}
    assert "token" not in problem(reply).message


@pytest.mark.parametrize("query", ["wait_s=nan", "wait_s=inf&after_seq=1", "after_seq=1e400", "after_seq=x", "more=1"])
def test_a_strange_query_is_refused_by_name(door: httpx.Client, query: str) -> None:
    """400, naming the argument."""
    reply = door.get(f"/gpumarket/leases/some-name?{query}")

    assert reply.status_code == 400
    assert problem(reply).field in query


def test_a_cache_breaker_is_let_pass(door: httpx.Client) -> None:
    """JupyterLab's client puts the time into the query of what must not be cached."""
    assert door.get("/gpumarket/leases?1732111111111").status_code == 200


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/leases"), ("PUT", "/offers"), ("PATCH", "/budgets")])
def test_a_wrong_verb_is_told_as_such(door: httpx.Client, method: str, path: str) -> None:
    """405, as JSON."""
    reply = door.request(method, f"/gpumarket{path}")

    assert reply.status_code == 405
    assert problem(reply).message


def test_neither_the_brokers_nor_the_clusters_token_has_a_route(door: httpx.Client) -> None:
    """What the broker tells doors about clusters stays on this side of the browser."""
    for path in ("/leases/x/cluster", "/facts", "/runs/x", "/shutdown", "/v1/health"):
        assert {door.request(method, f"/gpumarket{path}", json={}).status_code for method in ("GET", "POST")} == {404}
    assert door.post("/gpumarket/runs", json={}).status_code == 405
