"""Vast's own command line client takes our stand-in for Vast: a rental's whole life, from the search to the bill."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broker.lab import pool
from tests.broker.running import until
from tests.simulator.environments import environment
from tests.simulator.process import Stand, simulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PACKAGE = "vastai==1.9.1"
Vast = Callable[..., Any]


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with (
        pool(tmp_path) as (_, facts),
        simulator(tmp_path, facts["url"], facts["user_token"], "vast", figures=True) as stands,
    ):
        yield stands["vast"]


@pytest.fixture
def vast(stand: Stand, tmp_path: Path) -> Vast:
    """Call the client; its answer as JSON. It ends with 0 also when it failed, so its words are looked at."""
    client = environment(tmp_path, PACKAGE) / "vastai"
    around = {
        "HOME": str(tmp_path / "client"),
        "PATH": "/usr/bin:/bin",
        "VAST_URL": stand.url,
        "VAST_API_KEY": stand.key,
        "VASTAI_NO_UPDATE_CHECK": "1",
        "no_proxy": "*",
    }
    (tmp_path / "client").mkdir()

    def call(*words: str, key: str = stand.key) -> Any:
        argv = [str(client), "--url", stand.url, "--api-key", key, "--raw", *words]
        done = subprocess.run(argv, env=around, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        text = done.stdout.strip() or done.stderr.strip()
        try:
            return json.loads(text)
        except ValueError:
            return text

    return call


def test_a_rentals_whole_life_through_the_official_client(vast: Vast, stand: Stand) -> None:
    """Search, create, show, list, destroy and charges all succeed, and the stand-in really did them."""
    offers = vast("search", "offers", "num_gpus=0", "--storage", "8", "-o", "dph")
    many = vast("search", "offers", "gpu_name=RTX_4090 num_gpus=1", "-o", "dph")
    (machine,) = offers
    created = vast(
        "create", "instance", str(machine["id"]), "--image", "any/image", "--disk", "8", "--label", "by-hand", "--ssh"
    )
    number = str(created["new_contract"])

    def shown() -> Any:
        row = vast("show", "instance", number)
        return row if isinstance(row, dict) and row.get("actual_status") == "running" else None

    running = until("the client sees it run", shown, deadline_s=40)
    address = vast("ssh-url", number)
    listed = vast("show", "instances-v1")
    destroyed = vast("destroy", "instance", number, "-y")
    until("it has ended", lambda: stand.rentals()[0]["phase"] == "ended")
    bill = vast("show", "invoices-v1", "--charges")

    assert many
    assert {offer["gpu_name"] for offer in many} == {"RTX 4090"}
    assert running["label"] == "by-hand"
    assert "ssh://root@127.0.0.1:" in str(address)
    assert number in json.dumps(listed)
    assert "error" not in json.dumps(destroyed)
    assert f"instance-{number}" in json.dumps(bill)


def test_the_official_client_is_told_what_went_wrong(vast: Vast, stand: Stand) -> None:
    """A bad key, and an offer that somebody else took: the client understands the stand-in's refusals."""
    (machine,) = vast("search", "offers", "num_gpus=0", "--storage", "8")
    bad_key = vast("show", "instances-v1", key="not-the-key")
    stand.arm("sold_twice")
    taken = vast("create", "instance", str(machine["id"]), "--image", "any/image", "--disk", "8", "--ssh")

    assert bad_key["status_code"] == 404
    assert taken["status_code"] == 410
    assert stand.rentals() == []
