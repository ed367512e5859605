"""The broker's HTTP door: who is let in, what is taken, how it is described."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

import httpx
import msgspec
import psutil
import pytest

from jupyter_gpumarket.api.openapi import document
from jupyter_gpumarket.api.requests import InvalidField, decode
from jupyter_gpumarket.broker import web
from jupyter_gpumarket.broker.routes import ROUTES
from jupyter_gpumarket.broker.web import Gate, TokenBook, application
from jupyter_gpumarket.client import Client
from jupyter_gpumarket.config import Folders
from jupyter_gpumarket.models import LeaseRequest
from tests.broker.running import raw_door, request

Shared = tuple[Client, Folders]


@pytest.fixture(scope="module")
def raw(shared: Shared) -> Iterator[httpx.Client]:
    """A bare HTTP client with the doors' token."""
    with raw_door(shared[1]) as door:
        yield door


def app_routes() -> set[tuple[str, str]]:
    """(method, path template) of everything the tornado application serves."""
    gate = Gate(service=None, tokens=TokenBook(door="x"), hosts=frozenset(), touched=lambda: None)
    found = set()
    for rule in application(gate, ROUTES).wildcard_router.rules:
        path = re.sub(r"\(\?P<(\w+)>\[\^/\]\+\)", r"{\1}", rule.matcher.regex.pattern.removesuffix("$"))
        found |= {(method, path) for method in rule.target_kwargs["routes"]}
    return found


def test_the_document_describes_exactly_the_served_routes() -> None:
    """OpenAPI and the tornado application have the same methods and paths."""
    described = {
        (m.upper(), path) for path, item in document(ROUTES, title="x", security={})["paths"].items() for m in item
    }

    assert described == app_routes()
    assert len(described) == len(ROUTES)


def test_every_reference_of_the_document_leads_somewhere(raw: httpx.Client) -> None:
    """The document that is served is whole: each `$ref` names a schema in it."""
    text = raw.get("/v1/openapi.json").text
    content = msgspec.json.decode(text)
    named = set(re.findall(r"#/components/schemas/([\w.\-]+)", text))

    assert content["openapi"].startswith("3.1")
    assert named
    assert named <= set(content["components"]["schemas"])


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.method} {r.path}")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic d3Jvbmc="}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
    ],
    ids=["no token", "wrong token", "other scheme", "other host", "no port", "lookalike host"],
)
def test_strangers_are_refused_at_every_route(
    shared: Shared, route: web.Route, headers: dict[str, str], status: int
) -> None:
    """Without the token, or under another name, no route does anything."""
    with raw_door(shared[1]) as door:
        if "Host" not in headers:
            del door.headers["Authorization"]
        path = re.sub(r"\{\w+\}", "anything", route.path)
        answer = door.request(route.method, path, headers=headers, json={})

    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    assert "set-cookie" not in answer.headers


def test_unknown_paths_are_told_only_to_those_who_have_the_token(shared: Shared) -> None:
    """A stranger cannot even learn which paths there are."""
    with raw_door(shared[1]) as door:
        assert door.get("/v1/nothing").status_code == 404
        assert door.delete("/v1/health").status_code == 405
        del door.headers["Authorization"]
        assert door.get("/v1/nothing").status_code == 401


def test_only_loopback_listens(shared: Shared) -> None:
    """The broker listens on 127.0.0.1 and nowhere else."""
    listening = [
        c.laddr.ip for c in psutil.Process(shared[0].health().pid).net_connections("inet") if c.status == "LISTEN"
    ]

    assert listening == ["127.0.0.1"]


def test_no_file_of_the_broker_can_be_read_by_others(shared: Shared) -> None:
    """Every file in the state folder is 0600 at most, every folder 0700."""
    state = shared[1].state
    open_ones = [str(p) for p in [state, *state.rglob("*")] if stat.S_IMODE(p.stat().st_mode) & 0o077]

    assert shared[1].broker_file.exists()
    assert open_ones == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"request_id": "r", "query": {}, "budget_nusd": 1, "max_s": 1, "colour": 1}, "colour"),
        ({"request_id": "r", "query": {"gpuu": "H100"}, "budget_nusd": 1, "max_s": 1}, "query.gpuu"),
        ({"request_id": "r", "query": {"gpu": 7}, "budget_nusd": 1, "max_s": 1}, "query.gpu"),
        ({"request_id": "r", "query": {}, "max_s": 1}, "budget_nusd"),
        ({"request_id": "r", "query": {}, "budget_nusd": 1.5, "max_s": 1}, "budget_nusd"),
        ({"request_id": "r", "query": {}, "budget_nusd": 0, "max_s": 1}, "budget_nusd"),
        ({"request_id": "r", "query": {}, "budget_nusd": 10**30, "max_s": 1}, "budget_nusd"),
        ({"request_id": "../../x", "query": {}, "budget_nusd": 1, "max_s": 1}, "request_id"),
        ({"request_id": "r", "query": {}, "budget_nusd": 1, "max_s": -1}, "max_s"),
        ({"request_id": "r", "query": {"vram_gib": -1}, "budget_nusd": 1, "max_s": 1}, "query.vram_gib"),
        ({"request_id": "r", "query": {}, "budget_nusd": 1, "max_s": 1, "name": "a/b"}, "name"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(
    shared: Shared, raw: httpx.Client, body: dict[str, object], field: str
) -> None:
    """A wish with an unknown, missing or impossible field is refused, and nothing is journaled."""
    answer = raw.post("/v1/leases", json=body)

    assert answer.status_code == 400
    assert answer.json()["field"] == field
    assert answer.json()["error"] == "BadRequest"
    assert shared[0].leases(all=True) == []


def test_bodies_must_be_json_and_small(shared: Shared, raw: httpx.Client) -> None:
    """A body of another type, that is no JSON, too deep or too large is refused; the broker goes on."""
    form = raw.post("/v1/leases", content=b"{}", headers={"Content-Type": "application/x-www-form-urlencoded"})
    plain = raw.post("/v1/leases", content=b"{}", headers={"Content-Type": "text/plain"})
    broken = raw.post("/v1/leases", content=b"\xff{", headers={"Content-Type": "application/json"})
    deep = raw.post("/v1/leases", content=b"[" * 100_000, headers={"Content-Type": "application/json"})
    with pytest.raises(httpx.HTTPError):
        raw.post("/v1/leases", content=b" " * 6_000_000).raise_for_status()

    assert [a.status_code for a in (form, plain, broken, deep)] == [400, 400, 400, 400]
    assert shared[0].health().pid


def test_unknown_query_arguments_are_refused(raw: httpx.Client) -> None:
    """A misspelled argument is not silently ignored."""
    answer = raw.get("/v1/leases/x?aftr_seq=3")

    assert answer.status_code == 400
    assert answer.json()["field"] == "aftr_seq"


def test_a_number_in_a_query_must_be_one(raw: httpx.Client) -> None:
    """NaN, infinity and words are no sequence numbers."""

    assert {raw.get(f"/v1/leases/x?after_seq={text}").status_code for text in ("nan", "inf", "two", "1e99")} == {400}


def test_decode_takes_what_is_right() -> None:
    """A right body comes through unchanged, with dictionaries of any content."""
    wish = request()

    assert decode(msgspec.json.encode(wish), LeaseRequest) == wish
    with pytest.raises(InvalidField, match=r"query\.gpuu"):
        decode(msgspec.json.encode({**msgspec.to_builtins(wish), "query": {"gpuu": 1}}), LeaseRequest)


def test_tokens_tell_who_calls() -> None:
    """The doors' token and each cluster's are told apart; a stranger's is nobody's, and none is shown."""
    book = TokenBook(door="door-token", clusters={"c1": "one", "c2": "two"})

    assert book.caller("door-token") == web.DOOR
    assert book.caller("two") == "c2"
    assert book.caller("ünknown") is None
    assert "door-token" not in repr(book)
    assert "one" not in repr(book)
