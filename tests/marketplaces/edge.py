"""Every trouble that a stand-in can make, as an adapter must tell it: one test class that adapters' test files inherit.

A subclass gives the `stand` fixture. What the lease engine makes of these words is tested elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from jupyter_gpumarket.errors import OfferGone, OutcomeUnknown, Temporary
from jupyter_gpumarket.models import OfferQuery, RentalStatus
from jupyter_gpumarket.simulator.faults import Fault
from tests.marketplaces.contract import new_label
from tests.simulator.standing import Standing


async def sold_twice(stand: Standing) -> None:
    """Somebody else got it: the offer is gone, and nothing bears the label."""
    label, quote = new_label(), await stand.world.quote()
    stand.arm(Fault.SOLD_TWICE)
    with pytest.raises(OfferGone):
        await stand.world.rent(label, quote)
    assert await stand.market.find(label) is None


async def lost(stand: Standing, fault: Fault, *, rented: bool) -> None:
    """The outcome is unknown, and the label tells it."""
    label, quote = new_label(), await stand.world.quote()
    stand.arm(fault)
    with pytest.raises(OutcomeUnknown):
        await stand.world.rent(label, quote)
    found = await stand.market.find(label)
    assert (found is not None) == rented
    assert [r.rental_id for r in await stand.market.rentals() if r.label == label] == [
        r.rental_id for r in stand.yard.rentals.values() if rented
    ]


async def fails(stand: Standing, fault: Fault) -> None:
    """Taken away, or never up: FAILED with a reason, until it is released."""
    stand.arm(fault)
    rental = await stand.world.rent(new_label())
    failed = await stand.world.until(rental.rental_id, RentalStatus.FAILED)
    assert failed.detail


async def reclaimed(stand: Standing) -> None:
    """Used for a while, then FAILED as when it was taken at once; a notice, where one is given, comes while it runs."""
    stand.arm(Fault.RECLAIMED)
    rental = await stand.world.rent(new_label())
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    failed = await stand.world.until(rental.rental_id, RentalStatus.FAILED)
    assert failed.detail


async def dearer(stand: Standing) -> None:
    """The contract's own price is read back."""
    stand.arm(Fault.DEARER)
    quote = await stand.world.quote()
    rental = await stand.world.rent(new_label(), quote)
    running = await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    assert running.price_nusd_hour is not None
    assert running.price_nusd_hour > quote.price_nusd_hour * 14 // 10


async def wrong_gpu(stand: Standing) -> None:
    """A GPU is listed; that it is not there is for the node's check to see."""
    stand.arm(Fault.WRONG_GPU, times=None)
    assert any(offer.gpu_count and offer.gpu_raw for offer in await stand.market.offers(OfferQuery()))


async def status_lies(stand: Standing) -> None:
    """An address is told, and nothing answers there: only the link can see that."""
    stand.arm(Fault.STATUS_LIES)
    rental = await stand.world.rent(new_label())
    running = await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    assert running.address is not None
    reader, writer = await asyncio.open_connection(running.address.host, running.address.port)
    async with asyncio.timeout(30):
        assert await reader.read(64) == b""
    writer.close()
    # A writer that is not waited for lives on until the loop is gone.
    await writer.wait_closed()


async def bills_on(stand: Standing) -> None:
    """A confirmed release that did nothing: it is still there, until it is asked for again."""
    rental = await stand.world.rent(new_label())
    stand.arm(Fault.BILLS_ON)
    await stand.market.release(rental.rental_id)
    assert (await stand.market.rental(rental.rental_id)).status is not RentalStatus.GONE
    await stand.market.release(rental.rental_id)
    await stand.world.until(rental.rental_id, RentalStatus.GONE)


async def passing(stand: Standing, fault: Fault) -> None:
    """One bad answer is temporary, and the next is good."""
    stand.arm(fault)
    with pytest.raises(Temporary):
        await stand.market.rentals()
    assert await stand.market.rentals() == []


TROUBLES: dict[Fault, Callable[[Standing], Awaitable[None]]] = {
    Fault.SOLD_TWICE: sold_twice,
    Fault.LOST_BEFORE_CREATE: lambda stand: lost(stand, Fault.LOST_BEFORE_CREATE, rented=False),
    Fault.LOST_AFTER_CREATE: lambda stand: lost(stand, Fault.LOST_AFTER_CREATE, rented=True),
    Fault.ERROR_AFTER_CREATE: lambda stand: lost(stand, Fault.ERROR_AFTER_CREATE, rented=True),
    Fault.PREEMPTED: lambda stand: fails(stand, Fault.PREEMPTED),
    Fault.RECLAIMED: reclaimed,
    Fault.DIES_BOOTING: lambda stand: fails(stand, Fault.DIES_BOOTING),
    Fault.DEARER: dearer,
    Fault.WRONG_GPU: wrong_gpu,
    Fault.STATUS_LIES: status_lies,
    Fault.BILLS_ON: bills_on,
    Fault.TOO_MANY_CALLS: lambda stand: passing(stand, Fault.TOO_MANY_CALLS),
    Fault.SERVER_ERROR: lambda stand: passing(stand, Fault.SERVER_ERROR),
    Fault.MALFORMED: lambda stand: passing(stand, Fault.MALFORMED),
}


class TruthfulFaults:
    """Inherit, and give a `stand` fixture."""

    def test_no_fault_is_forgotten(self) -> None:
        """Each kind of trouble that there is has its test here."""
        assert set(TROUBLES) == set(Fault)

    @pytest.mark.parametrize("fault", TROUBLES, ids=lambda fault: fault.value)
    async def test_every_armed_fault_is_told_truthfully(self, stand: Standing, fault: Fault) -> None:
        """It happens, it is told as what it is, and what is rented by then can be released."""
        await TROUBLES[fault](stand)
        happened = {fault.value: None} if fault is Fault.WRONG_GPU else {}
        assert stand.faults.armed() == happened, "the fault never happened"
        for rental in await stand.market.rentals():
            await stand.market.release(rental.rental_id)
            await stand.world.until(rental.rental_id, RentalStatus.GONE)
        assert all(rental.ended_ms is not None for rental in stand.yard.rentals.values())
