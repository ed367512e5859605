"""A server whose user may only read, whose folder cannot be used at first, and whose broker then cannot be asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from jupyter_gpumarket.server.routes import ROUTES
from tests.broker.running import brokers_of
from tests.server.running import PATIENCE_S, Server, folders_of, get, server_in


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In the way of its home lies a file."""
    folder = tmp_path_factory.mktemp("troubled")
    (folder / "a-file").write_text("")
    options = ("--ServerApp.authorizer_class=tests.server.readers.OnlyReaders",)
    with server_in(folder / "server", folder / "a-file" / "home", *options) as server:
        yield server


def test_each_verb_asks_the_authorizer_for_its_own_action(troubled: Server) -> None:
    """Who may only read can look, and can rent, release, extend and set budgets not at all."""
    changing = [route for route in ROUTES if route.action != "read"]
    with troubled.door() as door:
        found = {
            (r.method, r.path): door.request(r.method, r.path.replace("{", "").replace("}", ""), json={}).status_code
            for r in changing
        }
        described = door.get("/gpumarket/openapi.json").status_code

    assert set(found.values()) == {403}
    assert len(found) == len(changing)
    assert described == 200


async def test_what_cannot_be_used_is_told_with_what_to_do_and_jupyter_serves_the_rest(troubled: Server) -> None:
    """A home that cannot be made: 409 that names it. A broker of another version: 503 with the remedy, each time."""
    async with httpx.AsyncClient(**troubled.asking) as door:
        status, problem = await get(door, "/leases")
        assert (status, problem["error"]) == (409, "ConfigError")
        assert "a-file" in problem["message"]
        assert (await door.get("/api/status")).status_code == 200

        Path(troubled.home.parent).unlink()
        other = {"url": "http://127.0.0.1:9", "token": "canary-7c1", "pid": os.getpid(), "api_version": 99}
        folders_of(troubled).broker_file.write_bytes(msgspec.json.encode(other))
        async with asyncio.timeout(PATIENCE_S):
            # A failure is remembered for a few seconds, so that a page that asks often does not wait each time.
            while (await get(door, "/leases"))[0] == 409:
                await asyncio.sleep(0.1)
        told = [await get(door, path) for path in ("/leases", "/budgets", "/health")]
        assert {(status, problem["error"]) for status, problem in told} == {(503, "BrokerUnavailable")}
        assert all("kill" in problem["message"] for _, problem in told)
        assert (await get(door, "/defaults"))[0] == 200
    assert "canary-7c1" not in troubled.log.read_text() + str(told)
    assert brokers_of(folders_of(troubled)) == []
