"""The engine with honest surroundings, and then with one lie or fault at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from jupyter_gpumarket.models import LeaseState
from tests.leases.fakes import Bench, request

S = LeaseState


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.engine.start()
    yield bench
    await bench.engine.aclose()


async def test_a_wish_becomes_a_ready_node_and_ends_with_proof(bench: Bench) -> None:
    """From the wish over ready to released: the rental is gone, the key wiped, the billed span known."""
    lease = await bench.engine.wish(request())
    ready = await bench.reaches(lease.lease_id, S.READY)
    await bench.engine.release(lease.lease_id, "done")
    released = await bench.reaches(lease.lease_id, S.RELEASED)

    assert ready.deadline_ms is not None
    assert ready.billed_from_ms is not None
    assert released.billed_to_ms is not None
    assert bench.market.live == {}
    assert bench.clusters.calls[-1] == "detach"
    assert bench.keys.held == set()


async def test_the_wish_to_rent_is_written_before_the_create_call(bench: Bench) -> None:
    """`lease.offer_chosen` with its label is in the journal when the marketplace is called."""
    written: list[list[str]] = []
    start = bench.market.start

    def spying(*args: object) -> object:
        written.append(bench.store.kinds())
        return start(*args)

    bench.market.start = spying  # type: ignore[method-assign, assignment]
    lease = await bench.engine.wish(request())
    await bench.reaches(lease.lease_id, S.READY)

    assert "lease.offer_chosen" in written[0]


async def test_the_same_request_twice_is_one_lease(bench: Bench) -> None:
    """A door that repeats its call rents once."""
    first = await bench.engine.wish(request())
    again = await bench.engine.wish(request())
    await bench.reaches(first.lease_id, S.READY)

    assert again.lease_id == first.lease_id
    assert len(bench.market.live) == 1
