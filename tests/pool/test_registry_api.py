"""The registry's HTTP doors: tokens, bad input, and a document that tells the truth."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from jupyter_gpumarket.pool.__main__ import main
from jupyter_gpumarket.pool.registry_openapi import document
from jupyter_gpumarket.pool.registry_routes import ROUTES
from tests.pool_fixtures import RunningPool, pools

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMJvnkhjBSkOgxK5SCCVjQ+z7nwkPOrVlhfe3SCkeMtL"


@pytest.fixture(scope="module")
def registry() -> Any:
    """One registry with one host for all tests here."""
    with pools() as start:
        yield start(hosts=1)


def test_the_openapi_document_is_the_routes(registry: RunningPool) -> None:
    """Every route is documented with its schemas, every documented operation is served, all references resolve."""
    served = registry.api("GET", "/v1/openapi.json").json()
    documented = {(method.upper(), path) for path, found in served["paths"].items() for method in found}
    references = {part.partition('"')[0] for part in json.dumps(served).split('"#/components/schemas/')[1:]}

    assert served == json.loads(json.dumps(document(ROUTES)))
    assert documented == {(route.method, route.path) for route in ROUTES}
    assert references <= set(served["components"]["schemas"])
    for method, path in sorted(documented):
        reply = registry.api(
            method, path.replace("{name}", "nobody"), body=b"{}" if method in ("POST", "PUT") else None
        )
        assert reply.status_code not in (405, 500), (method, path)


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.caller != "anyone"], ids=lambda r: r.action.__name__
)
@pytest.mark.parametrize("token", ["", "wrong", "another-kind"])
def test_no_route_opens_without_its_token(registry: RunningPool, route: Any, token: str) -> None:
    """Without a token, with a wrong one, or with one of another kind of caller, every route answers 401."""
    other = registry.user_token if route.caller != "user" else registry.join_token
    reply = registry.api(
        route.method, route.path.replace("{name}", "h1"), b"{}", token=other if token == "another-kind" else token
    )

    assert reply.status_code == 401
    assert reply.json()["error"] == "Unauthorized"


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/v1/quotes", b"{", ""),
        ("POST", "/v1/quotes", b"[]", ""),
        ("POST", "/v1/quotes", b"\xff", ""),
        ("POST", "/v1/quotes", {}, "offer_id"),
        ("POST", "/v1/quotes", {"offer_id": 3}, "offer_id"),
        ("POST", "/v1/quotes", {"offer_id": "x", "extra": 1}, "extra"),
        ("POST", "/v1/quotes", {"offer_id": "../etc"}, "offer_id"),
        ("POST", "/v1/rentals", {"quote_id": "q", "label": "", "ssh_public_key": KEY}, "label"),
        ("POST", "/v1/rentals", {"quote_id": "q", "label": "a b", "ssh_public_key": KEY}, "label"),
        ("POST", "/v1/rentals", {"quote_id": "q", "label": "l", "ssh_public_key": "no key"}, "ssh_public_key"),
        ("POST", "/v1/rentals", {"quote_id": "q", "label": "l", "ssh_public_key": KEY + "\nmore"}, "ssh_public_key"),
        (
            "POST",
            "/v1/rentals",
            {"quote_id": "q", "label": "l", "ssh_public_key": KEY, "deadline_ms": -1},
            "deadline_ms",
        ),
        ("PUT", "/v1/account/quota", {"max_rentals": "many"}, "max_rentals"),
        ("PUT", "/v1/account/quota", {"max_nusd_hour": 1.5}, "max_nusd_hour"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(
    registry: RunningPool, method: str, path: str, body: Any, field: str
) -> None:
    """What cannot be read is refused by name, and nothing is rented."""
    reply = registry.api(method, path, body)

    assert reply.status_code == 400
    assert reply.json()["field"] == field
    assert registry.api("GET", "/v1/rentals").json() == {"rentals": []}


def test_what_is_not_there_is_404(registry: RunningPool) -> None:
    """Unknown paths, rentals and offers are 404 with a reason; a known path with another method is 405."""
    assert registry.api("GET", "/v1/nothing").status_code == 404
    assert registry.api("GET", "/v1/rentals/rnone").status_code == 404
    assert registry.api("POST", "/v1/quotes", {"offer_id": "none"}).status_code == 404
    assert registry.api("PUT", "/v1/offers").status_code == 405


def test_a_huge_body_is_refused(registry: RunningPool) -> None:
    """A body over the limit never reaches a decoder."""
    try:
        status = registry.api("POST", "/v1/quotes", b'{"offer_id":"' + b"x" * 20_000_000 + b'"}').status_code
    except httpx.HTTPError:
        status = 0  # it hung up while the body was still being sent

    assert status in (0, 400, 413)
    assert registry.api("GET", "/v1/health").status_code == 200


def test_users_have_their_own_tokens_and_limits(registry: RunningPool, capsys: pytest.CaptureFixture[str]) -> None:
    """`pool user` makes a user whose token works at once; limits set by the owner and by oneself are both shown."""
    main(["user", "--folder", str(registry.folder / "r"), "ana", "--rentals", "2", "--max-rate", "1.50"])
    token = capsys.readouterr().out.strip()
    chosen = registry.api("PUT", "/v1/account/quota", {"max_rentals": 1}, token=token).json()

    assert chosen["user"] == "ana"
    assert chosen["granted"] == {"max_rentals": 2, "max_nusd_hour": 1_500_000_000}
    assert chosen["chosen"]["max_rentals"] == 1
    assert registry.api("GET", "/v1/account").json()["user"] == "default"


def test_a_host_id_cannot_be_taken_over(registry: RunningPool) -> None:
    """The join token alone does not let one speak for a host that has joined before."""
    machine = registry.api("GET", "/v1/offers").json()["offers"][0]["machine_id"]
    joining = {"host_id": machine, "name": "x", "host": "127.0.0.1", "port": 22, "ssh_host_key": KEY, "offers": []}
    reply = registry.api("POST", "/v1/hosts", joining, token=registry.join_token)

    assert reply.status_code == 409


def test_tokens_are_in_no_log_and_not_in_the_database(registry: RunningPool) -> None:
    """Neither the user's nor the join token is written anywhere but to their own 0600 files."""
    allowed = {"registry.json", "user.token", "join.token", "pool.key"}
    for file in registry.folder.rglob("*"):
        if file.is_file() and file.name not in allowed:
            content = file.read_bytes()
            assert registry.user_token.encode() not in content, file
            assert registry.join_token.encode() not in content, file
    for name in ("registry.json", "user.token", "join.token", "registry.sqlite"):
        assert (registry.folder / "r" / name).stat().st_mode & 0o077 == 0, name
