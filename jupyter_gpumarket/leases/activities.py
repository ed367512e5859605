"""Performs the machine's instructions: each is a task that talks to the world and feeds back what happened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from jupyter_gpumarket.errors import (
    BadRequest,
    GpuMarketError,
    MarketplaceError,
    NoMatchingOffer,
    OfferGone,
    OutcomeUnknown,
    Permanent,
)
from jupyter_gpumarket.leases import terms
from jupyter_gpumarket.leases.events import (
    Attach,
    Detach,
    Detached,
    Event,
    FindOffer,
    Instruction,
    NoOffer,
    OfferChosen,
    Release,
    ReleaseUnproven,
    Rent,
    RentalAbsent,
    RentalSeen,
    Rented,
    RentRefused,
    RentUnclear,
    Search,
    SetDeadline,
    Warn,
    Watch,
)
from jupyter_gpumarket.leases.labels import new_label
from jupyter_gpumarket.leases.locks import OfferLocks
from jupyter_gpumarket.leases.world import World
from jupyter_gpumarket.models import Lease, LeaseState, Offer, Quote, Rental, RentalStatus

log = logging.getLogger(__name__)

LOOKS_AFTER_RELEASE = 5


class Desk(Protocol):
    """The engine, as its activities see it."""

    def current(self, lease_id: str) -> Lease:
        """The lease as it is now."""

    async def feed(self, lease_id: str, event: Event) -> Lease:
        """Hand in what happened; returns the lease afterwards."""


class Activities:
    """One coroutine for each kind of instruction."""

    def __init__(self, world: World, desk: Desk, locks: OfferLocks) -> None:
        self._world = world
        self._desk = desk
        self._locks = locks
        self._by_kind: dict[type, Callable[[str, Any], Coroutine[Any, Any, None]]] = {
            FindOffer: self._find_offer,
            Rent: self._rent,
            Search: self._search,
            Watch: self._watch,
            Attach: self._attach,
            SetDeadline: self._set_deadline,
            Warn: self._warn,
            Detach: self._detach,
            Release: self._release,
        }

    async def perform(self, lease_id: str, instruction: Instruction) -> None:
        """Carry out one instruction to its end."""
        await self._by_kind[type(instruction)](lease_id, instruction)

    # ── finding and renting ──────────────────────────────────────────────────────────────────────────────────────────

    async def _find_offer(self, lease_id: str, _instruction: FindOffer) -> None:
        failures = 0
        while True:
            lease = self._desk.current(lease_id)
            try:
                offers = await self._candidates(lease)
            except (NoMatchingOffer, BadRequest) as error:
                await self._desk.feed(lease_id, NoOffer(reason=str(error)))
                return
            chosen, reasons, may_change = await self._first_firm(lease, offers)
            if chosen is not None:
                label = new_label(self._world.label_secret, self._world.rng)
                await self._desk.feed(lease_id, OfferChosen(quote=chosen, label=label))
                return
            if not may_change:
                told = "; ".join(reasons) or "none that this lease has not tried yet"
                await self._desk.feed(lease_id, NoOffer(reason=f"no fitting offer can be rented: {told}"))
                return
            await self._world.back_off(failures)
            failures += 1

    async def _candidates(self, lease: Lease) -> list[Offer]:
        """Fitting offers without the machines that failed this lease; those that failed others come only if need be."""
        tried = frozenset((a.marketplace, a.machine_id) for a in lease.attempts if a.rental_id and a.machine_id)
        since_ms = self._world.clock.now_ms() - self._world.policy.bad_machine_s * 1000
        bad = frozenset(
            (machine.marketplace, machine.machine_id)
            for machine in self._world.store.machines()
            if machine.last_bad_ms is not None and machine.last_bad_ms >= since_ms
        )
        query, hours = lease.request.query, lease.request.max_s / 3600
        try:
            return await self._world.offers.candidates(query, exclude=tried | bad, hours=hours)
        except NoMatchingOffer:
            if not bad - tried:
                raise
        return await self._world.offers.candidates(query, exclude=tried, hours=hours)

    async def _first_firm(self, lease: Lease, offers: list[Offer]) -> tuple[Quote | None, list[str], bool]:
        """The first offer with a firm, fitting quote, locked; why others were not taken; whether waiting may help."""
        refused_before = {(a.marketplace, a.offer_id) for a in lease.attempts}
        reasons: list[str] = []
        may_change = False
        for offer in offers:
            if (offer.marketplace, offer.offer_id) in refused_before:
                continue
            if not self._locks.take(offer.marketplace, offer.offer_id, lease.lease_id):
                may_change = True
                continue
            quote, reason, transient = await self._firm(lease, offer)
            if quote is not None:
                return quote, reasons, False
            self._locks.free(lease.lease_id)
            reasons.append(f"{offer.marketplace} {offer.offer_id}: {reason}")
            may_change = may_change or transient
        return None, reasons, may_change

    async def _firm(self, lease: Lease, offer: Offer) -> tuple[Quote | None, str, bool]:
        """A quote that may be taken; or why not, and whether that may pass."""
        try:
            market = self._world.marketplace(offer.marketplace)
            patience_s = self._world.policy.auction_s if market.capabilities.auction else None
            quote = await self._world.call(market.name, market.quote(offer), patience_s)
        except (OfferGone, Permanent) as error:
            return None, str(error), False
        except MarketplaceError as error:
            return None, str(error), True
        reason = terms.unfit(
            quote,
            lease.request,
            terms.left_nusd(lease),
            listed_nusd_hour=offer.price_nusd_hour,
            least_paid_s=self._world.policy.least_paid_s,
        )
        return (None, reason, False) if reason else (quote, "", False)

    async def _rent(self, lease_id: str, _instruction: Rent) -> None:
        """The one create call. Whatever is not a clear yes or no is unclear, also a bug of the adapter."""
        lease = self._desk.current(lease_id)
        assert lease.quote is not None
        assert lease.deadline_ms is not None
        outcome: Event
        try:
            market = self._world.marketplace(lease.quote.marketplace)
            public_key = self._world.keys.create(lease_id)
        except (GpuMarketError, OSError) as error:
            await self._desk.feed(lease_id, RentRefused(reason=f"not asked for: {error}"))
            return
        try:
            async with asyncio.timeout(self._world.policy.rent_timeout_s):
                rental = await market.rent(
                    lease.quote, label=lease.label, ssh_public_key=public_key, deadline_ms=lease.deadline_ms
                )
            outcome = Rented(rental=rental)
        except TimeoutError:
            outcome = RentUnclear(reason=f"{market.name} did not answer the create call in time")
        except OutcomeUnknown as error:
            outcome = RentUnclear(reason=str(error))
        except (OfferGone, Permanent) as error:
            outcome = RentRefused(reason=str(error))
        except Exception as error:
            log.exception("the create call for lease %s failed in an unforeseen way", lease_id)
            outcome = RentUnclear(reason=f"{type(error).__name__} in the create call")
        await self._desk.feed(lease_id, outcome)

    async def _search(self, lease_id: str, _instruction: Search) -> None:
        """Look for the label until it is there, or until enough listings far enough apart do not have it."""
        lease = self._desk.current(lease_id)
        assert lease.quote is not None
        market = self._world.marketplace(lease.quote.marketplace)
        gap_s = self._world.policy.clean_gap_s(market.capabilities)
        clean, last_clean_s, failures = 0, -gap_s, 0
        while True:
            asked_s = self._world.clock.monotonic_s()
            try:
                found = await self._world.call(market.name, market.find(lease.label))
            except MarketplaceError as error:
                log.warning("lease %s: looking for its label: %s", lease_id, error)
                await self._world.back_off(failures, error)
                failures += 1
                continue
            if found is not None:
                await self._desk.feed(lease_id, RentalSeen(rental=found))
                return
            if not clean or asked_s - last_clean_s >= gap_s:
                clean, last_clean_s = clean + 1, asked_s
            if clean >= self._world.policy.clean_lists:
                await self._desk.feed(lease_id, RentalAbsent())
                return
            await self._world.clock.sleep(max(self._world.policy.poll_boot_s, gap_s / 4))

    # ── a rental ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self, lease_id: str, _instruction: Watch) -> None:
        state, failures, looks = self._desk.current(lease_id).state, 0, 0
        while True:
            error: MarketplaceError | None = None
            try:
                rental = await self._world.look(self._desk.current(lease_id))
                failures = 0
            except MarketplaceError as caught:
                error, failures = caught, failures + 1
                log.warning("lease %s: looking at its rental: %s", lease_id, caught)
            else:
                lease = await self._desk.feed(lease_id, RentalSeen(rental=rental))
                if lease.state is not state:
                    return
            if error is not None:
                await self._world.back_off(failures - 1, error)
            else:
                await self._world.clock.sleep(self._look_again_s(self._desk.current(lease_id), looks))
                looks += 1

    def _look_again_s(self, lease: Lease, looks: int) -> float:
        policy = self._world.policy
        if lease.state is LeaseState.BOOTING:
            return policy.look_s(looks)
        market = self._world.marketplaces.get(lease.offer.marketplace) if lease.offer is not None else None
        hasty = market is not None and market.capabilities.gives_notice
        return min(policy.poll_notice_s, policy.poll_ready_s) if hasty else policy.poll_ready_s

    async def _attach(self, lease_id: str, instruction: Attach) -> None:
        lease = self._desk.current(lease_id)
        assert lease.offer is not None
        market = self._world.marketplace(lease.offer.marketplace)
        rental = Rental(
            marketplace=market.name,
            rental_id=lease.rental_id,
            label=lease.label,
            status=RentalStatus.RUNNING,
            machine_id=lease.offer.machine_id,
            address=lease.address,
        )
        await self._world.clusters.attach(lease, self_stop=market.self_stop(rental), resume=instruction.resume)

    async def _set_deadline(self, lease_id: str, _instruction: SetDeadline) -> None:
        lease = self._desk.current(lease_id)
        await self._world.clusters.set_deadline(lease)
        assert lease.offer is not None
        market = self._world.marketplace(lease.offer.marketplace)
        if market.capabilities.own_timer and lease.deadline_ms is not None:
            # Else the marketplace would end an extended lease at the deadline it was rented with.
            await self._world.call(market.name, market.set_deadline(lease.rental_id, lease.deadline_ms))

    async def _warn(self, lease_id: str, _instruction: Warn) -> None:
        await self._world.clusters.warn(self._desk.current(lease_id))

    async def _detach(self, lease_id: str, _instruction: Detach) -> None:
        """Say good-bye, within bounds: no trouble with a cluster process may keep a node rented.

        A node that still lives is first asked for what its cells have declared as outputs.
        """
        policy, lease = self._world.policy, self._desk.current(lease_id)
        save_s = policy.save_s if lease.ready_ms is not None and lease.billed_to_ms is None else 0
        try:
            async with asyncio.timeout(policy.detach_s + save_s):
                await self._world.clusters.detach(lease, save_s=save_s)
        except TimeoutError:
            log.warning("lease %s: its cluster process did not let go of the node in time", lease_id)
        except Exception as error:  # noqa: BLE001  the release must go on
            log.warning("lease %s: its cluster process could not let go of the node: %s", lease_id, error)
        await self._desk.feed(lease_id, Detached())

    async def _release(self, lease_id: str, instruction: Release) -> None:
        """Ask for the end and look for its proof; without proof, the machine says when to ask again."""
        lease = self._desk.current(lease_id)
        assert lease.offer is not None
        if instruction.patient:
            await self._world.back_off(lease.release_asks - 1)
        reason = "the marketplace still shows the rental"
        try:
            market = self._world.marketplace(lease.offer.marketplace)
            await self._world.call(market.name, market.release(lease.rental_id))
        except GpuMarketError as error:
            reason = str(error)
        except Exception as error:  # people must be told that it may still bill, whatever the adapter's bug is
            log.exception("the release call for lease %s failed in an unforeseen way", lease_id)
            reason = f"{type(error).__name__} in the release call"
        for looks in range(LOOKS_AFTER_RELEASE):
            try:
                rental = await self._world.look(lease)
            except GpuMarketError as error:
                reason = str(error)
                break
            if rental.status is RentalStatus.GONE:
                await self._desk.feed(lease_id, RentalSeen(rental=rental))
                return
            await self._world.clock.sleep(self._world.policy.look_s(looks))
        log.warning("lease %s: release not confirmed: %s", lease_id, reason)
        await self._desk.feed(lease_id, ReleaseUnproven(reason=reason))
