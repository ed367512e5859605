"""A marketplace's own timer follows the lease's deadline."""

from __future__ import annotations

from jupyter_gpumarket.models import Capabilities
from tests.leases.fakes import Bench, FakeMarket
from tests.leases.test_faults import ready, running, until


class WithTimer(FakeMarket):
    """Ends rentals by itself, at a deadline that can be moved."""

    capabilities = Capabilities(own_timer=True)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        self.calls.append(f"deadline {rental_id} {deadline_ms}")


async def test_an_extended_lease_moves_the_marketplaces_timer() -> None:
    """Else the marketplace would end the node at the deadline it was rented with, whatever was agreed since."""
    async with running(Bench(WithTimer())) as bench:
        lease = await ready(bench, budget_nusd=50_000_000)
        longer = await bench.engine.extend(lease.lease_id, budget_nusd=100_000_000)
        wanted = f"deadline {lease.rental_id} {longer.deadline_ms}"
        await until(lambda: wanted in bench.market.calls)

        assert longer.deadline_ms != lease.deadline_ms


async def test_a_marketplace_without_a_timer_is_not_asked() -> None:
    """No call is made that a marketplace has nothing to do with."""
    async with running(Bench()) as bench:
        lease = await ready(bench, budget_nusd=50_000_000)
        bench.clusters.calls.clear()
        await bench.engine.extend(lease.lease_id, budget_nusd=100_000_000)
        await until(lambda: "set_deadline" in bench.clusters.calls)

        assert not [call for call in bench.market.calls if call.startswith("deadline")]
