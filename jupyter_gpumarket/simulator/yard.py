"""The machines behind a stand-in: hosts of a real pool, and the rentals on them from create call to last bill."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import GpuMarketError, OutcomeUnknown
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import Offer, OfferQuery, Rental, RentalStatus
from jupyter_gpumarket.money import MS_PER_HOUR
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.relay import Relay

log = logging.getLogger(__name__)

POLL_S = 0.2
# A machine that is reclaimed runs so long before its owner says so, and so long after that.
RECLAIM_AFTER_S = 1.5
RECLAIM_NOTICE_S = 1.5
DAY_MS = 24 * MS_PER_HOUR
END_TRIES = 60


class Phase(StrEnum):
    """Where a rental is in its life."""

    BOOTING = "booting"
    RUNNING = "running"
    STOPPED = "stopped"
    DEAD = "dead"
    ENDED = "ended"


@dataclass(kw_only=True, eq=False)
class SimRental:
    """One rental of a stand-in. Rates are nano-dollars an hour; it computes from `running_ms` to `stopped_ms`.

    `login` is the user name that its host knows it by; hosts can know others as well. `reclaim_ms`: when its owner, who
    has said so at `reclaimed_ms`, takes it back.
    """

    rental_id: str
    label: str
    offer: Offer
    rate_nusd_hour: int
    disk_rate_nusd_hour: int
    disk_gb: int
    own_key: str
    created_ms: int
    ssh_keys: list[str] = field(default_factory=list)
    extra: dict[str, object] = field(default_factory=dict)
    phase: Phase = Phase.BOOTING
    running_ms: int | None = None
    stopped_ms: int | None = None
    ended_ms: int | None = None
    reclaimed_ms: int | None = None
    reclaim_ms: int | None = None
    relay: Relay | None = None
    detail: str = ""
    pool_rental_id: str = ""
    login: str = "root"

    @property
    def computed_ms(self) -> tuple[int, int | None] | None:
        """From when to when it computed; None for never, an open end for still."""
        if self.running_ms is None:
            return None
        return self.running_ms, self.stopped_ms or self.ended_ms

    @property
    def port(self) -> int:
        """The public port that leads to its SSH server; 0 for none."""
        return self.relay.port if self.relay is not None else 0


class Yard:
    """Rents, watches and ends. `boot_s` is how long a machine seems to start, beside what the pool needs."""

    def __init__(
        self,
        pool: Marketplace,
        clock: Clock,
        faults: FaultBoard,
        *,
        boot_s: float = 1.0,
        yards: list[Yard] | None = None,
    ) -> None:
        # Yards on one pool share this list: a host that one has just sold is not offered by the others.
        self._yards = [] if yards is None else yards
        self._yards.append(self)
        self._pool = pool
        self._clock = clock
        self._faults = faults
        self._boot_s = boot_s
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._renting: dict[str, asyncio.Future[Rental]] = {}
        self._ends: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.Task[None]] = {}
        self.rentals: dict[str, SimRental] = {}

    async def free(self) -> list[Offer]:
        """The hosts that the pool offers now and that nobody here is about to get."""
        offers = await self._pool.offers(OfferQuery())
        everybody = [rental for yard in self._yards for rental in yard.rentals.values()]
        taken = {rental.offer.offer_id for rental in everybody if rental.phase is not Phase.ENDED}
        return [offer for offer in offers if offer.offer_id not in taken]

    def now_ms(self) -> int:
        """The wall clock."""
        return self._clock.now_ms()

    def start(self, rental: SimRental) -> None:
        """Take a rental in; it boots by itself from here."""
        if self._faults.take(Fault.DEARER):
            rental.rate_nusd_hour = rental.rate_nusd_hour * 3 // 2
        self.rentals[rental.rental_id] = rental
        self._lives[rental.rental_id] = asyncio.create_task(self._live(rental))

    def end(self, rental: SimRental) -> None:
        """End a rental now; its host is given back in the background."""
        if rental.phase is Phase.ENDED or self._faults.take(Fault.BILLS_ON):
            return
        rental.phase, rental.ended_ms = Phase.ENDED, self._clock.now_ms()
        self._in_background(self._give_back(rental))

    def end_at(self, rental: SimRental, at_ms: int | None) -> None:
        """The marketplace's own timer: end it by itself at that time; None takes the timer away."""
        if (timer := self._timers.pop(rental.rental_id, None)) is not None:
            timer.cancel()
        if at_ms is not None:
            self._timers[rental.rental_id] = asyncio.create_task(self._end_at(rental, at_ms))

    async def _end_at(self, rental: SimRental, at_ms: int) -> None:
        await self._clock.sleep(max(0, at_ms - self._clock.now_ms()) / 1000)
        self.end(rental)

    def stop(self, rental: SimRental, detail: str) -> None:
        """Take the machine away without ending the rental: it computes no more, and its disk bills on."""
        if rental.phase in (Phase.RUNNING, Phase.BOOTING):
            rental.phase, rental.stopped_ms, rental.detail = Phase.STOPPED, self._clock.now_ms(), detail
            self._in_background(self._give_back(rental))

    async def rebind(self, rental: SimRental) -> None:
        """Give a running rental another public port, as happens when a container is started anew."""
        if rental.relay is not None:
            await rental.relay.open()

    async def aclose(self) -> None:
        """End everything and wait until the pool has it all back."""
        for timer in self._timers.values():
            timer.cancel()
        for rental in self.rentals.values():
            if rental.phase is not Phase.ENDED:
                rental.phase, rental.ended_ms = Phase.ENDED, self._clock.now_ms()
                self._in_background(self._give_back(rental))
        await asyncio.gather(*self._ends)

    def _in_background(self, end: object) -> None:
        task = asyncio.ensure_future(end)  # type: ignore[call-overload]
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    async def _live(self, rental: SimRental) -> None:
        if self._faults.take(Fault.STATUS_LIES):
            await self._run_with(rental, Relay(None))
            return
        await self._clock.sleep(self._boot_s)
        if self._faults.take(Fault.DIES_BOOTING):
            rental.phase, rental.detail = Phase.DEAD, "OCI runtime create failed: no such device"
            return
        try:
            target = await self._rent(rental)
        except GpuMarketError as error:
            log.warning("rental %s got no host of the pool: %s", rental.rental_id, error)
            rental.phase, rental.detail = Phase.DEAD, "OCI runtime create failed: the host is gone"
            return
        await self._run_with(rental, Relay(target))
        if self._faults.take(Fault.PREEMPTED):
            self.stop(rental, "outbid")
        elif self._faults.take(Fault.RECLAIMED):
            await self.reclaim(rental)

    async def reclaim(self, rental: SimRental, *, notice_s: float | None = None) -> None:
        """Take the machine away some time after its owner has said so; only some marketplaces tell that."""
        await self._clock.sleep(RECLAIM_AFTER_S)
        notice_s = RECLAIM_NOTICE_S if notice_s is None else notice_s
        rental.reclaimed_ms = self._clock.now_ms()
        rental.reclaim_ms = rental.reclaimed_ms + round(notice_s * 1000)
        await self._clock.sleep(notice_s)
        self.stop(rental, "reclaimed by its owner")

    async def _run_with(self, rental: SimRental, relay: Relay) -> None:
        rental.relay = relay
        await relay.open()
        rental.phase, rental.running_ms, rental.detail = Phase.RUNNING, self._clock.now_ms(), "success, running"

    async def _rent(self, rental: SimRental) -> tuple[str, int]:
        quote = await self._pool.quote(rental.offer)
        # Set before the call, so that a rental that is ended meanwhile is looked for.
        rental.pool_rental_id = "unknown"
        key = rental.ssh_keys[0] if rental.ssh_keys else nobodys_key()
        call = self._pool.rent(
            quote, label=self._label(rental), ssh_public_key=key, deadline_ms=self._clock.now_ms() + DAY_MS
        )
        # It goes on when the rental is ended meanwhile: a call cut short may arrive after its label was looked for.
        renting = self._renting[rental.rental_id] = asyncio.ensure_future(call)
        rented = await asyncio.shield(renting)
        rental.pool_rental_id = rented.rental_id
        while rented.status is not RentalStatus.RUNNING or rented.address is None:
            if rented.status in (RentalStatus.FAILED, RentalStatus.GONE):
                raise OutcomeUnknown(self._pool.name, f"the host did not serve: {rented.detail}")
            await self._clock.sleep(POLL_S)
            rented = await self._pool.rental(rented.rental_id)
        rental.login = rented.address.user
        return rented.address.host, rented.address.port

    async def _give_back(self, rental: SimRental) -> None:
        life = self._lives.pop(rental.rental_id, None)
        if life is not None and life is not asyncio.current_task():
            life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await life
        if (renting := self._renting.pop(rental.rental_id, None)) is not None:
            await asyncio.gather(renting, return_exceptions=True)
        if rental.relay is not None:
            await rental.relay.close()
        if rental.pool_rental_id:
            for _ in range(END_TRIES):
                if await self._is_given_back(rental):
                    return
                await self._clock.sleep(POLL_S)
            log.error("the pool still has the host of rental %s", rental.rental_id)

    async def _is_given_back(self, rental: SimRental) -> bool:
        try:
            found = await self._pool.find(self._label(rental))
            if found is None or found.status is RentalStatus.GONE:
                return True
            await self._pool.release(found.rental_id)
        except GpuMarketError as error:
            log.warning("giving the host of rental %s back: %s", rental.rental_id, error)
        return False

    def _label(self, rental: SimRental) -> str:
        return f"simulated-{rental.rental_id}-{rental.own_key[:8]}"


def nobodys_key() -> str:
    """A public key whose private half is forgotten: a machine that was rented without a key opens to nobody."""
    public = Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
