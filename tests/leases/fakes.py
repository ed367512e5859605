"""Honest stand-ins for what surrounds the engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from jupyter_gpumarket.api import JournalLine, Linked, Prepared, Probed
from jupyter_gpumarket.clock import Clock, SystemClock
from jupyter_gpumarket.errors import NoMatchingOffer, OfferGone
from jupyter_gpumarket.journal import NewEntry
from jupyter_gpumarket.leases import LeaseEngine, Policy
from jupyter_gpumarket.models import (
    ENDED_STATES,
    Balance,
    Capabilities,
    Lease,
    LeaseRequest,
    LeaseState,
    Machine,
    MarketCharge,
    NodeAddress,
    Offer,
    OfferQuery,
    Quote,
    Rental,
    RentalStatus,
    SelfStop,
)

SECRET = b"a secret of this installation"
QUICK = Policy(
    poll_boot_s=0.005,
    poll_ready_s=0.01,
    retry_first_s=0.005,
    retry_most_s=0.02,
    absent_grace_s=0.02,
    sweep_every_s=0.02,
    timer_step_s=0.01,
)


def offer(number: int = 1, price: int = 350_000_000, **changes: object) -> Offer:
    """An offer of the fake marketplace."""
    fields = {"marketplace": "fake", "offer_id": f"o{number}", "machine_id": f"m{number}", "seen_ms": 0}
    return Offer(**{**fields, "price_nusd_hour": price, **changes})


def request(number: int = 1, **changes: object) -> LeaseRequest:
    """A wish for any node, an hour, a dollar."""
    fields = {"request_id": f"r{number}", "query": OfferQuery(), "budget_nusd": 1_000_000_000, "max_s": 3600}
    return LeaseRequest(**{**fields, **changes})


class MemoryStore:
    """A store without a disk."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.lines: list[JournalLine] = []
        self.rows: dict[str, Lease] = {}
        self.judged: dict[tuple[str, str], Machine] = {}
        self._clock = clock or SystemClock()

    def append(self, entries: Sequence[NewEntry]) -> list[JournalLine]:
        new = []
        for entry in entries:
            line = JournalLine(
                seq=len(self.lines) + 1,
                at_ms=self._clock.now_ms(),
                kind=entry.kind,
                subject=entry.subject,
                body=entry.body,
            )
            self.lines.append(line)
            new.append(line)
            for row in entry.rows:
                if isinstance(row, Lease):
                    self.rows[row.lease_id] = row
                elif isinstance(row, Machine):
                    self.judged[row.marketplace, row.machine_id] = row
        return new

    def entries(
        self,
        *,
        after: int = 0,
        subject: str | None = None,
        kinds: Collection[str] | None = None,
        limit: int | None = None,
    ) -> list[JournalLine]:
        found = [
            line
            for line in self.lines
            if line.seq > after and subject in (None, line.subject) and (kinds is None or line.kind in kinds)
        ]
        return found[:limit]

    def kinds(self) -> list[str]:
        return [line.kind for line in self.lines]

    def lease(self, lease_id: str) -> Lease | None:
        return self.rows.get(lease_id)

    def leases(self, *, open_only: bool = False) -> list[Lease]:
        return [lease for lease in self.rows.values() if not open_only or lease.state not in ENDED_STATES]

    def lease_by_request(self, request_id: str) -> Lease | None:
        return next((lease for lease in self.rows.values() if lease.request.request_id == request_id), None)

    def machines(self) -> list[Machine]:
        return list(self.judged.values())


class FakeMarket:
    """A marketplace that does what it says. Tests subclass it to lie in one point."""

    name = "fake"
    capabilities = Capabilities()

    def __init__(self, *offers: Offer) -> None:
        self.listed = {o.offer_id: o for o in offers or (offer(1), offer(2))}
        self.live: dict[str, Rental] = {}
        self.calls: list[str] = []

    async def offers(self, query: OfferQuery) -> list[Offer]:
        taken = {rental.machine_id for rental in self.live.values()}
        return [o for o in self.listed.values() if o.machine_id not in taken]

    async def quote(self, offer: Offer) -> Quote:
        self.calls.append(f"quote {offer.offer_id}")
        return Quote(marketplace=self.name, offer=offer, price_nusd_hour=offer.price_nusd_hour, expires_ms=2**60)

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        self.calls.append(f"rent {quote.offer.offer_id}")
        if any(rental.machine_id == quote.offer.machine_id for rental in self.live.values()):
            raise OfferGone("taken")
        return self.start(quote, label)

    def start(self, quote: Quote, label: str) -> Rental:
        rental = Rental(
            marketplace=self.name,
            rental_id=f"rental-{len(self.calls)}-{len(self.live)}",
            label=label,
            status=RentalStatus.RUNNING,
            price_nusd_hour=quote.price_nusd_hour,
            kind=quote.kind,
            machine_id=quote.offer.machine_id,
            address=NodeAddress(host="127.0.0.1", port=22, user="root"),
        )
        self.live[rental.rental_id] = rental
        return rental

    async def find(self, label: str) -> Rental | None:
        self.calls.append("find")
        return next((rental for rental in self.live.values() if rental.label == label), None)

    async def rentals(self) -> list[Rental]:
        return list(self.live.values())

    async def rental(self, rental_id: str) -> Rental:
        gone = Rental(marketplace=self.name, rental_id=rental_id, label="", status=RentalStatus.GONE)
        return self.live.get(rental_id, gone)

    async def release(self, rental_id: str) -> None:
        self.calls.append("release")
        self.live.pop(rental_id, None)

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        return []

    async def balance(self) -> Balance | None:
        return None

    def self_stop(self, rental: Rental) -> SelfStop | None:
        return None

    async def aclose(self) -> None:
        return None


class FakeOffers:
    """A catalogue over fake marketplaces."""

    def __init__(self, *markets: FakeMarket) -> None:
        self._markets = markets

    async def candidates(
        self, query: OfferQuery, *, exclude: frozenset[tuple[str, str]], hours: float = 1.0
    ) -> list[Offer]:
        found = [o for market in self._markets for o in await market.offers(query)]
        fitting = [o for o in found if (o.marketplace, o.machine_id) not in exclude]
        if not fitting:
            raise NoMatchingOffer("nothing is offered")
        return sorted(fitting, key=lambda o: (o.price_nusd_hour, o.offer_id))


class FakeClusters:
    """Cluster processes whose nodes come up at once and are as sold."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.engine: LeaseEngine | None = None
        self.calls: list[str] = []
        self.differences: tuple[str, ...] = ()
        self.saved_s: float | None = None
        self._clock = clock or SystemClock()

    async def attach(self, lease: Lease, *, self_stop: SelfStop | None, resume: bool) -> None:
        self.calls.append("resume" if resume else "attach")
        if not resume:
            asyncio.get_running_loop().call_soon(self._come_up, lease.lease_id)

    def _come_up(self, lease_id: str) -> None:
        self._task = asyncio.get_running_loop().create_task(self._facts(lease_id))

    async def _facts(self, lease_id: str) -> None:
        assert self.engine is not None
        at_ms = self._clock.now_ms()
        await self.engine.report(Linked(lease_id=lease_id, at_ms=at_ms, host_key="key", first_sight=True))
        await self.engine.report(Prepared(lease_id=lease_id, at_ms=at_ms, python="3", versions={}, steps_ms={}))
        await self.engine.report(Probed(lease_id=lease_id, at_ms=at_ms, report={}, differences=self.differences))

    async def detach(self, lease: Lease, *, save_s: float) -> None:
        self.calls.append("detach")
        self.saved_s = save_s

    async def warn(self, lease: Lease) -> None:
        self.calls.append("warn" if lease.notice is not None else "all clear")

    async def set_deadline(self, lease: Lease) -> None:
        self.calls.append("set_deadline")


class FakeKeys:
    """Key pairs without keys."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    def create(self, lease_id: str) -> str:
        self.held.add(lease_id)
        return "ssh-ed25519 AAAA"

    def wipe(self, lease_id: str) -> None:
        self.held.discard(lease_id)


class Bench:
    """An engine with everything around it."""

    def __init__(
        self,
        market: FakeMarket | None = None,
        policy: Policy = QUICK,
        clock: Clock | None = None,
        clusters: FakeClusters | None = None,
        store: Any = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.market = market or FakeMarket()
        self.store: Any = store or MemoryStore(self.clock)
        self.clusters = clusters or FakeClusters(self.clock)
        self.keys = FakeKeys()
        self.policy = policy
        self.engine = self.new_engine()

    def new_engine(self, *, without_market: bool = False) -> LeaseEngine:
        """The next broker's engine, over the same store and world."""
        self.engine = LeaseEngine(
            store=self.store,
            marketplaces={} if without_market else {self.market.name: self.market},
            offers=FakeOffers(self.market),
            clusters=self.clusters,
            keys=self.keys,
            clock=self.clock,
            rng=random.Random(1),
            label_secret=SECRET,
            policy=self.policy,
        )
        self.clusters.engine = self.engine
        return self.engine

    async def reaches(self, lease_id: str, *states: LeaseState, within_s: float = 5) -> Lease:
        """Wait until the lease is in one of the states."""
        seq = 0
        async with asyncio.timeout(within_s):
            while True:
                lease, seq = await self.engine.wait_changed(lease_id, seq, within_s)
                if lease.state in states:
                    return lease


def replaced(record: object, **changes: object) -> object:
    """A copy of a record with some fields changed."""
    return msgspec.structs.replace(record, **changes)
