"""The whole path for real: a Jupyter server, a pool, the broker that the server starts, one node."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import polars as pl
import pytest

from tests.broker.running import brokers_of, end_processes, until
from tests.pool_fixtures import RunningPool
from tests.server.running import Told, server_in


async def ask(door: httpx.AsyncClient, method: str, path: str, body: Any = None, **query: Any) -> Any:
    """A call that must succeed."""
    reply = await door.request(method, f"/gpumarket{path}", json=body, params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()


def rental(**more: Any) -> dict[str, Any]:
    """A modest wish, as a page sends it."""
    return {"request_id": uuid.uuid4().hex, "query": {}, "budget_nusd": 10**9, "max_s": 3600, **more}


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_page_rents_watches_and_gives_back(start_pool: Any, tmp_path: Path) -> None:
    """Offers, rent, each state as a notice, node, log, story, costs, budget warning, release confirmed."""
    pool: RunningPool = start_pool(hosts=1)
    try:
        options = ("--GpuMarketApp.refresh_s=0.3", "--GpuMarketApp.start_broker=True")
        with server_in(tmp_path / "server", pool.home, *options) as server:
            until("the broker was started with the server", pool.folders.broker_file.exists)
            said: list[str] = []

            async def keep(reply: httpx.Response) -> None:
                said.append((await reply.aread()).decode() + str(reply.headers))

            async with httpx.AsyncClient(**server.asking, event_hooks={"response": [keep]}) as door:
                told = Told(await server.events())
                secrets = await _rent_watch_and_give_back(pool, door, told)
                told.close()
            everything = "".join(said) + json.dumps(told.all) + server.log.read_text()
            assert len(secrets) >= 3
            assert not [form for secret in secrets for form in _forms(secret) if form in everything]
            assert "Traceback" not in server.log.read_text()
            assert server.stop() in (0, -15)
            assert brokers_of(pool.folders), "the broker outlives the Jupyter server"
    finally:
        end_processes(pool.folders)


async def _rent_watch_and_give_back(pool: RunningPool, door: httpx.AsyncClient, told: Told) -> list[str]:
    """The path; the secrets that were there in the middle of it."""
    offers = await ask(door, "POST", "/offers", {"refresh": True})
    assert [offer["marketplace"] for offer in offers["offers"]] == ["pool"]
    await told.until("offers")
    await told.until("broker", up=True)

    wish = rental(name="from-a-page")
    preview = await ask(door, "POST", "/quote", wish)
    assert [offer["marketplace"] for offer in preview["offers"]] == ["pool"]
    assert 0 < preview["worst_case_nusd"] <= wish["budget_nusd"]
    assert await ask(door, "GET", "/leases") == [], "a preview rents nothing"
    rented = await ask(door, "POST", "/leases", wish)
    lease_id = rented["lease"]["lease_id"]
    assert rented["lease"]["request"]["owner"]["user"]
    assert (await ask(door, "POST", "/leases", wish))["lease"]["lease_id"] == lease_id

    ready = await told.until("lease", lease_id=lease_id, state="ready")
    assert ready["may_bill"]
    await told.until("cost", open_leases=1)
    view = await ask(door, "GET", "/leases/from-a-page", after_seq=0, wait_s=20)
    assert view["lease"]["state"] == "ready"
    assert (await ask(door, "GET", f"/leases/{lease_id}/node"))["link"] == "up"
    assert isinstance((await ask(door, "GET", f"/leases/{lease_id}/log"))["text"], str)
    assert "lease.wished" in {line["kind"] for line in await ask(door, "GET", f"/leases/{lease_id}/story")}

    secrets = _secrets(pool)
    user = rented["lease"]["request"]["owner"]["user"]
    await ask(door, "PUT", "/budgets", {"scope": "user", "key": user, "limit_nusd": 10**12})
    assert (await ask(door, "GET", "/budgets"))[0]["budget"]["limit_nusd"] == 10**12
    # A page that is closed in the middle of waiting disturbs nobody.
    waiting = {"after_seq": view["seq"] + 100, "wait_s": 30}
    with pytest.raises(httpx.ReadTimeout):
        await door.get(f"/gpumarket/leases/{lease_id}", params=waiting, timeout=0.5)
    extended = await ask(door, "POST", f"/leases/{lease_id}/extend", {"max_s": 7200})
    assert extended["lease"]["request"]["max_s"] == 7200
    figures = (await door.get("/metrics")).text
    assert "gpumarket_open_leases 1.0" in figures
    assert "gpumarket_broker_up 1.0" in figures

    await ask(door, "POST", f"/leases/{lease_id}/release", {"reason": "the page says so"})
    await told.until("lease", lease_id=lease_id, state="released", may_bill=False)
    charges = (await ask(door, "POST", "/costs", {"lease": lease_id}))["charges"]
    assert sum(charge["amount_nusd"] for charge in charges) > 0
    await _take_away(door, charges)
    assert await ask(door, "GET", "/runs", lease=lease_id) == []
    assert await ask(door, "GET", "/leases") == []
    return secrets


async def _take_away(door: httpx.AsyncClient, charges: list[dict[str, Any]]) -> None:
    """The costs as files add up to the same as the lines."""
    total = sum(charge["amount_nusd"] for charge in charges)
    files = {name: await ask(door, "POST", f"/costs/export/{name}", {}) for name in ("csv", "parquet", "html")}
    assert sum(pl.read_csv(files["csv"]["content"].encode())["amount_nusd"]) == total
    assert sum(pl.read_parquet(base64.b64decode(files["parquet"]["content"]))["amount_nusd"]) == total
    assert "<table" in files["html"]["content"]
    assert (await door.post("/gpumarket/costs/export/exe", json={})).status_code == 404


def _forms(secret: str) -> list[str]:
    """As it is, and as it would look in an address, in base64 and in hex."""
    data = secret.encode()
    return [secret, quote(secret, safe=""), base64.b64encode(data).decode().rstrip("=")[:-1], data.hex()]


def _secrets(pool: RunningPool) -> list[str]:
    """Every secret of this user: marketplace key, tokens of broker and clusters."""
    files = [pool.folders.broker_file, *pool.folders.state.glob("clusters/*/cluster.json")]
    return [pool.user_token, *(json.loads(file.read_text())["token"] for file in files)]
