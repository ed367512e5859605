"""What the broker does when the world under it fails, and what it never gives away."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jupyter_gpumarket import client
from jupyter_gpumarket.broker.routes import ROUTES
from jupyter_gpumarket.config import Folders, write_private
from jupyter_gpumarket.errors import BudgetExceeded, JournalFull
from jupyter_gpumarket.models import Owner, Scope
from tests.broker.lab import pool
from tests.broker.running import broker_of, folders_in, raw_door, request, until

pytestmark = pytest.mark.slow
CANARY = "canary-marketplace-key-2718281828"


def places_of(secret: str, folders: Folders) -> list[str]:
    """The files in the state folder that hold a secret, in any of its spellings."""
    raw = secret.encode()
    spellings = {raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="), raw[::-1]}
    files = [path for path in folders.state.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(spelling in path.read_bytes() for spelling in spellings)]


def test_a_marketplace_key_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is used, and refused, is in no file of the state folder and in no answer."""
    monkeypatch.setenv("JUPYTER_GPUMARKET_POOL_KEY", CANARY)
    with pool(tmp_path) as (folders, _), broker_of(folders) as door:
        told = f"{door.marketplaces()} {door.offers()}"
        view = door.wish(request())
        view = until("it fails", lambda: (v := door.lease(view.lease.lease_id)).lease.state == "failed" and v)
        told += f"{view} {door.story(view.lease.lease_id)}"

        assert "pool" in told
        assert CANARY not in told
        assert places_of(CANARY, folders) == []
        assert places_of(view.lease.request.request_id, folders) != []  # the search finds what is there


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_told_and_passes(tmp_path: Path, small_disk: Path) -> None:
    """With a full disk a wish is a 507 and JournalFull, reading goes on, and with room again so does everything."""
    folders = folders_in(tmp_path)
    write_private(folders.settings_file, f'journal = "sqlite:///{small_disk}/journal.sqlite"\n'.encode())
    with broker_of(folders) as door:
        first = door.wish(request("before"))
        filler = small_disk / "filler"
        fill(filler)
        with pytest.raises(JournalFull, match="Make room"):
            wish_for_ever(door)
        with raw_door(folders) as raw:
            assert raw.put("/v1/budgets", json={"scope": "user", "key": "k" * 900, "limit_nusd": 1}).status_code == 507
        assert door.lease(first.lease.lease_id).lease.request.request_id == "before"
        filler.unlink()

        assert door.wish(request("after")).lease.request.request_id == "after"


def wish_for_ever(door: client.Client) -> None:
    for number in range(500):
        door.wish(request(f"during-{number}"))


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_budgets_outlive_the_broker(tmp_path: Path) -> None:
    """A budget set before a restart refuses after it; lifted, it refuses no more."""
    folders = folders_in(tmp_path)
    with broker_of(folders) as door:
        door.set_budget(Scope.USER, "ada", 5)
    with broker_of(folders) as door:
        assert [view.budget.limit_nusd for view in door.budgets()] == [5]
        owner = {"owner": Owner(user="ada")}
        with pytest.raises(BudgetExceeded, match="ada"):
            door.wish(request(**owner))
        assert door.set_budget(Scope.USER, "ada", None) == []
        assert door.wish(request(**owner)).lease.name


def test_wishes_at_once_do_not_overdraw_a_budget(tmp_path: Path) -> None:
    """Of eight doors that wish at the same moment, as many get a lease as the budget covers: one."""
    owner = Owner(project="vision")

    def ask(number: int) -> str:
        with client.connect(folders, start=False) as mine:
            try:
                return mine.wish(request(f"at-once-{number}", owner=owner)).lease.lease_id
            except BudgetExceeded:
                return ""

    with pool(tmp_path) as (folders, _), broker_of(folders) as door:
        until("the pool offers its host", lambda: door.offers().offers)
        door.set_budget(Scope.PROJECT, "vision", 1_900_000_000)
        with ThreadPoolExecutor(8) as doors:
            granted = [lease_id for lease_id in doors.map(ask, range(8)) if lease_id]
        reserved = door.budgets()[0].reserved_nusd

        assert len(granted) == 1
        assert 0 < reserved <= 1_000_000_000
        door.release(granted[0])
        until("it is released", lambda: door.lease(granted[0]).lease.state == "released", 60)


def test_a_facts_token_opens_nothing_else(tmp_path: Path) -> None:
    """With a cluster's token every route but POST /v1/facts is 403, and facts with the doors' token are too."""
    with pool(tmp_path) as (folders, _), broker_of(folders) as door:
        until("the pool offers its host", lambda: door.offers().offers)
        view = door.wish(request(budget_nusd=10**9))
        told = folders.state / "clusters" / view.lease.lease_id / "broker.json"
        until("the cluster process is started", told.exists)
        token = json.loads(told.read_text())["token"]
        with raw_door(folders) as raw:
            batch = {"cluster_id": view.lease.lease_id, "queue": "q", "first": 1, "facts": []}
            assert raw.post("/v1/facts", json=batch).status_code == 403
            raw.headers["Authorization"] = f"Bearer {token}"
            answers = {
                (route.method, route.path): raw.request(
                    route.method, re.sub(r"\{\w+\}", view.lease.lease_id, route.path), json={}
                ).status_code
                for route in ROUTES
            }
            assert answers.pop(("POST", "/v1/facts")) == 400
            assert set(answers.values()) == {403}
            assert raw.post("/v1/facts", json=batch).json() == {"upto": 0}
            assert raw.post("/v1/facts", json={**batch, "cluster_id": "another"}).status_code == 403
        with client.connect(folders, start=False) as again:
            again.release(view.lease.lease_id)
            until("it is released", lambda: again.lease(view.lease.lease_id).lease.state == "released", 60)
