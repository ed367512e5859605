"""Who is the head, what is ordered, and who can prove to be of the cluster. No process is started."""

from __future__ import annotations

import datetime as dt
import random
import ssl
from pathlib import Path

import pytest

from jupyter_gpumarket.api import DaskWish
from jupyter_gpumarket.cluster.authority import Identity, issue, new_authority
from jupyter_gpumarket.cluster.dask_plan import (
    PORTS,
    Candidate,
    Files,
    choose_head,
    gpu_slots,
    new_port,
    scheduler_order,
    worker_order,
)
from jupyter_gpumarket.models import PriceKind, Tier

NOW = dt.datetime.now(dt.UTC)


def node(lease_id: str, **fields: object) -> Candidate:
    return Candidate(lease_id=lease_id, name=lease_id, **fields)


@pytest.mark.parametrize(
    ("candidates", "head", "why"),
    [
        ([node("a")], "a", "the only one that was ready when it was chosen"),
        ([node("a", kind=PriceKind.SPOT, tier=Tier.OWN), node("b")], "b", "cannot be taken away"),
        ([node("a", reliability=0.999), node("b", tier=Tier.DATACENTER)], "b", "tier is datacenter"),
        ([node("a", reliability=0.9), node("b", reliability=0.99), node("c")], "b", "reliability is 0.99"),
        ([node("a", ready_ms=5), node("b", ready_ms=3)], "b", "ready first"),
        ([node("a", up_mbps=10), node("b", up_mbps=900)], "b", "no node was more reliable"),
    ],
)
def test_the_head_is_the_most_reliable_node(candidates: list[Candidate], head: str, why: str) -> None:
    """Kind of rental, tier, reliability, speed, age, in this order; the reason is told."""
    chosen, reason = choose_head(candidates)

    assert (chosen, why in reason) == (head, True), reason
    assert choose_head(candidates[::-1])[0] == head


def test_one_worker_for_each_gpu_or_one_without() -> None:
    """A node with two GPUs runs two workers, each of which sees its own one and offers it as a resource."""
    files = Files(authority=b"ca", own=Identity(certificate=b"c", key=b"k"))
    orders = [
        worker_order(
            f"w{slot}",
            scheduler="tls://127.0.0.1:1",
            port=2,
            nanny_port=3,
            gpu=gpu,
            cores=8,
            files=files,
            wish=DaskWish(),
        )
        for slot, gpu in enumerate(gpu_slots(2))
    ]
    (plain,) = gpu_slots(0)

    assert [order.gpu for order in orders] == [0, 1]
    assert {order.options["resources"] for order in orders} == {"GPU=1"}
    assert {order.options["nthreads"] for order in orders} == {"1"}
    assert plain is None
    assert orders[0].files == {"ca.pem": b"ca", "cert.pem": b"c", "key.pem": b"k"}


def test_the_scheduler_listens_on_the_loopback_alone_and_expects_distance() -> None:
    """TLS, loopback, no limit on tasks under way, and no end of a worker because its link is cut."""
    files = Files(authority=b"ca", own=Identity(certificate=b"c", key=b"k"))
    order = scheduler_order("s", port=20_001, dashboard_port=2, files=files, wish=DaskWish(allowed_failures=7))

    assert order.options["host"] == "127.0.0.1"
    assert order.options["protocol"] == "tls"
    assert order.environment["DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION"] == "inf"
    assert order.environment["DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL"] == "None"
    assert order.environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] == "7"


def test_ports_are_not_given_twice() -> None:
    """A cluster's ports are all different, below those that systems give to outgoing connections."""
    taken: set[int] = set()
    for _ in range(500):
        taken.add(new_port(taken, random.Random(1)))

    assert len(taken) == 500
    assert all(port in PORTS for port in taken)


def test_only_who_has_a_certificate_of_the_cluster_gets_in(tmp_path: Path) -> None:
    """Two parties of one authority greet each other; a party of another cluster does not get in."""
    ours, theirs = new_authority("ours", NOW), new_authority("theirs", NOW)
    server = context(tmp_path / "server", ours, issue(ours, "head", NOW), server_side=True)
    friend = context(tmp_path / "friend", ours, issue(ours, "node", NOW), server_side=False)
    stranger = context(tmp_path / "stranger", ours, issue(theirs, "node", NOW), server_side=False)

    greet(server, friend)
    with pytest.raises(ssl.SSLError):
        greet(server, stranger)
    assert "PRIVATE" not in repr(ours)


def context(folder: Path, authority: Identity, own: Identity, *, server_side: bool) -> ssl.SSLContext:
    """As Dask sets it up: both sides show a certificate, and names are not looked at."""
    folder.mkdir()
    for name, content in Files(authority=authority.certificate, own=own).named().items():
        (folder / name).write_bytes(content)
    purpose = ssl.Purpose.CLIENT_AUTH if server_side else ssl.Purpose.SERVER_AUTH
    made = ssl.create_default_context(purpose, cafile=str(folder / "ca.pem"))
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return made


def greet(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A whole handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for side in (near, far):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    # The client has only been let in once the server has taken its certificate.
    assert done == {near, far}
