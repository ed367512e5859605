"""A marketplace that lies: what is really rented (`Cloud`), and what a caller gets to hear of it (`Line`)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jupyter_gpumarket.errors import MarketplaceError, OfferGone, OutcomeUnknown, Temporary
from jupyter_gpumarket.models import (
    Balance,
    Capabilities,
    MarketCharge,
    NodeAddress,
    Offer,
    OfferQuery,
    PriceKind,
    Quote,
    Rental,
    RentalStatus,
    SelfStop,
)
from jupyter_gpumarket.money import cost_nusd
from tests.leases.simulation.loop import VirtualClock
from tests.leases.simulation.options import Options

NAME = "cloud"


@dataclass
class Truth:
    """One rental as it really is."""

    rental_id: str
    label: str
    offer: Offer
    price_nusd_hour: int
    kind: PriceKind
    created_ms: int
    listed_ms: int
    boots_ms: int | None
    dies_ms: int | None = None
    told_from_ms: int | None = None
    gone_ms: int | None = None
    stubborn: int = 0
    colleague: bool = False
    wrong_gpu: bool = False
    failed: bool = False

    tells_begin: bool = False

    def cost_nusd(self, now_ms: int) -> int:
        end_ms = now_ms if self.gone_ms is None else self.gone_ms
        return cost_nusd(self.price_nusd_hour, max(0, end_ms - self.bills_from_ms))

    @property
    def bills_from_ms(self) -> int:
        """From the call, or on a marketplace that tells it from when the machine has booted."""
        return self.boots_ms if self.tells_begin and self.boots_ms is not None else self.created_ms


@dataclass
class Cloud:
    """The account and its machines. `calm` ends all faults but those already under way."""

    options: Options
    clock: VirtualClock
    rng: random.Random
    trace: Callable[[str], None]
    on_create: Callable[[Truth], None] = lambda truth: None
    on_release: Callable[[Truth], None] = lambda truth: None
    rentals: dict[str, Truth] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    calm: bool = False
    storm_until_s: float = -1.0
    dirty: bool = True

    def __post_init__(self) -> None:
        self.listed = [
            Offer(
                marketplace=NAME,
                offer_id=f"o{n}",
                machine_id=f"m{n}",
                price_nusd_hour=300_000_000 + 50_000_000 * n,
                seen_ms=0,
            )
            for n in range(self.options.machines)
        ]

    def happens(self, chance: float) -> bool:
        return not self.calm and self.rng.random() < chance

    def live(self) -> list[Truth]:
        return [truth for truth in self.rentals.values() if truth.gone_ms is None]

    def ours(self) -> list[Truth]:
        return [truth for truth in self.rentals.values() if not truth.colleague]

    def taken(self, offer_id: str) -> bool:
        return any(truth.offer.offer_id == offer_id for truth in self.live())

    def settle(self) -> None:
        """What happens by itself: rentals that die."""
        now_ms = self.clock.now_ms()
        for truth in self.rentals.values():
            if truth.gone_ms is None and truth.dies_ms is not None and truth.dies_ms <= now_ms:
                self.end(truth, truth.dies_ms)

    def end(self, truth: Truth, at_ms: int) -> None:
        truth.gone_ms = at_ms
        self.dirty = True
        self.trace(f"gone {truth.rental_id}")

    def add(self, label: str, offer: Offer, *, colleague: bool = False, price: int | None = None) -> Truth:
        now_ms = self.clock.now_ms()
        options = self.options
        boots_ms: int | None = now_ms + round(self.rng.uniform(1, 60) * 1000)
        dies_ms = None
        if not colleague:
            if self.happens(options.never_boots):
                boots_ms = None
            elif self.happens(options.dies_booting):
                dies_ms = now_ms + round(self.rng.uniform(1, 90) * 1000)
            elif self.happens(options.preempted):
                dies_ms = now_ms + round(self.rng.uniform(60, 1800) * 1000)
        truth = Truth(
            rental_id=f"r{len(self.rentals)}",
            label=label,
            offer=offer,
            price_nusd_hour=offer.price_nusd_hour if price is None else price,
            kind=offer.kind,
            created_ms=now_ms,
            listed_ms=now_ms + round(self.rng.uniform(0, options.lag_s) * 1000),
            boots_ms=boots_ms,
            dies_ms=dies_ms,
            stubborn=self.rng.randint(1, 4) if self.happens(options.stubborn) else 0,
            colleague=colleague,
            wrong_gpu=not colleague and self.happens(options.wrong_gpu),
            tells_begin=options.tells_begin,
        )
        if dies_ms is not None and self.happens(options.noticed):
            truth.told_from_ms = dies_ms - round(self.rng.uniform(0, 1800) * 1000)
        self.rentals[truth.rental_id] = truth
        self.dirty = True
        self.trace(f"create {truth.rental_id} {label} {offer.offer_id}")
        return truth

    # ── what calls do when they arrive ───────────────────────────────────────────────────────────────────────────────

    def rent(self, quote: Quote, label: str) -> Rental:
        self.settle()
        if self.taken(quote.offer.offer_id) and not self.happens(self.options.sold_twice):
            raise OfferGone(f"{quote.offer.offer_id} is taken")
        price = quote.price_nusd_hour * 2 if self.happens(self.options.dearer) else quote.price_nusd_hour
        truth = self.add(label, quote.offer, price=price)
        if self.happens(self.options.spot):
            truth.kind = PriceKind.SPOT
        self.on_create(truth)
        return self.told(truth)

    def release(self, rental_id: str) -> None:
        self.settle()
        truth = self.rentals.get(rental_id)
        if truth is None:
            return
        self.on_release(truth)
        if truth.gone_ms is not None:
            return
        if truth.stubborn > 0:
            truth.stubborn -= 1
            return
        if truth.dies_ms is None or truth.dies_ms > self.clock.now_ms() + 5000:
            truth.dies_ms = self.clock.now_ms() + self.rng.choice([0, 3000])
        self.settle()

    def told(self, truth: Truth) -> Rental:
        """The rental as the marketplace shows it."""
        now_ms = self.clock.now_ms()
        status = RentalStatus.PENDING
        if truth.gone_ms is not None:
            status = RentalStatus.GONE
        elif truth.failed:
            status = RentalStatus.FAILED
        elif truth.boots_ms is not None and truth.boots_ms <= now_ms:
            status = RentalStatus.RUNNING
        return Rental(
            marketplace=NAME,
            rental_id=truth.rental_id,
            label=truth.label,
            status=status,
            price_nusd_hour=truth.price_nusd_hour,
            kind=truth.kind,
            machine_id=truth.offer.machine_id,
            address=NodeAddress(host="10.0.0.1", port=22, user="root") if status is RentalStatus.RUNNING else None,
            created_ms=truth.created_ms,
            billed_from_ms=truth.bills_from_ms if truth.tells_begin and status is RentalStatus.RUNNING else None,
            ends_ms=truth.dies_ms if self.announces_end(truth) and status is RentalStatus.RUNNING else None,
            ends_why="the owner wants it back",
        )

    def announces_end(self, truth: Truth) -> bool:
        """Whether the marketplace has given notice by now."""
        return truth.told_from_ms is not None and truth.told_from_ms <= self.clock.now_ms()

    def shown(self, truth: Truth) -> bool:
        """Whether the listing has it: late when it is new, and, when it is gone, still for a while."""
        now_ms = self.clock.now_ms()
        if now_ms < truth.listed_ms:
            return False
        return truth.gone_ms is None or now_ms < truth.gone_ms + (truth.listed_ms - truth.created_ms) // 4

    def listing(self) -> list[Rental]:
        self.settle()
        rows = []
        for truth in self.rentals.values():
            if self.shown(truth):
                row = self.told(truth)
                rows.append(row if row.status is not RentalStatus.GONE else _still_running(row))
        return rows

    def find(self, label: str) -> Rental | None:
        return next((row for row in self.listing() if row.label == label), None)

    def rental(self, rental_id: str) -> Rental:
        self.settle()
        truth = self.rentals.get(rental_id)
        if truth is None or self.clock.now_ms() < truth.listed_ms:
            return Rental(marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE)
        return self.told(truth)

    def quote(self, offer: Offer) -> Quote:
        self.settle()
        if self.taken(offer.offer_id) and not self.happens(self.options.sold_twice):
            raise OfferGone(f"{offer.offer_id} is taken")
        return Quote(
            marketplace=NAME,
            offer=offer,
            price_nusd_hour=offer.price_nusd_hour,
            expires_ms=self.clock.now_ms() + 60_000,
            kind=offer.kind,
        )

    def offers(self) -> list[Offer]:
        self.settle()
        return [offer for offer in self.listed if not self.taken(offer.offer_id) or self.happens(0.3)]


def _still_running(row: Rental) -> Rental:
    return Rental(marketplace=row.marketplace, rental_id=row.rental_id, label=row.label, status=RentalStatus.ENDING)


class Line:
    """One broker incarnation's way to the cloud: requests and replies are lost, late, doubled and refused.

    A request under way arrives whether or not the caller is still there.
    """

    name = NAME

    def __init__(self, cloud: Cloud, gate: Callable[[], None], *, tells_lag: bool) -> None:
        self._cloud = cloud
        self._gate = gate
        self.capabilities = Capabilities(listing_lag_s=int(cloud.options.lag_s) if tells_lag else 0)

    async def _send(self, name: str, effect: Callable[[], Any], *, pays: bool = False) -> Any:
        self._gate()
        answer = await self._travel(name, effect, pays=pays)
        self._gate()
        if isinstance(answer, Temporary) and pays:
            raise OutcomeUnknown(NAME, str(answer))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _travel(self, name: str, effect: Callable[[], Any], *, pays: bool) -> asyncio.Future[Any]:
        """Send the request on its way, with its fate drawn; the reply may never come."""
        cloud, options = self._cloud, self._cloud.options
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        lost = cloud.happens(options.lost_request)
        late = not lost and cloud.happens(options.late_request)
        silent = late or cloud.happens(options.lost_reply)

        def arrive() -> None:
            answer = self._answered(effect, pays=pays, late=late)
            if not silent:
                loop.call_later(cloud.rng.uniform(0, options.slow_s), deliver, reply, answer)

        if not lost:
            travel_s = cloud.rng.uniform(0, options.slow_s) + (cloud.rng.uniform(30, 600) if late else 0)
            loop.call_later(travel_s, arrive)
            if cloud.happens(options.doubled):
                loop.call_later(travel_s + cloud.rng.uniform(0, 30), arrive)
        if (lost or silent) and cloud.happens(0.5):
            error = OutcomeUnknown(NAME, f"502 for {name}") if pays else Temporary(NAME, f"502 for {name}")
            loop.call_later(cloud.rng.uniform(0, options.slow_s * 2), deliver, reply, error)
        return reply

    def _answered(self, effect: Callable[[], Any], *, pays: bool, late: bool) -> Any:
        """The request has arrived: what the marketplace does and says."""
        cloud = self._cloud
        try:
            if not late and cloud.clock.monotonic_s() < cloud.storm_until_s:
                raise Temporary(NAME, "429 too many requests", retry_after_s=5)
            if not pays and cloud.happens(cloud.options.refused_5xx):
                raise Temporary(NAME, "503 unavailable")
            return effect()
        except (MarketplaceError, OfferGone) as error:
            return error

    async def offers(self, query: OfferQuery) -> list[Offer]:
        return await self._send("offers", self._cloud.offers)  # type: ignore[no-any-return]

    async def quote(self, offer: Offer) -> Quote:
        return await self._send("quote", lambda: self._cloud.quote(offer))  # type: ignore[no-any-return]

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        self._cloud.trace(f"call rent {label}")
        self._cloud.calls[label] = self._cloud.calls.get(label, 0) + 1
        return await self._send("rent", lambda: self._cloud.rent(quote, label), pays=True)  # type: ignore[no-any-return]

    async def find(self, label: str) -> Rental | None:
        return await self._send("find", lambda: self._cloud.find(label))  # type: ignore[no-any-return]

    async def rentals(self) -> list[Rental]:
        return await self._send("rentals", self._cloud.listing)  # type: ignore[no-any-return]

    async def rental(self, rental_id: str) -> Rental:
        return await self._send("rental", lambda: self._cloud.rental(rental_id))  # type: ignore[no-any-return]

    async def release(self, rental_id: str) -> None:
        await self._send("release", lambda: self._cloud.release(rental_id), pays=True)

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        return []

    async def balance(self) -> Balance | None:
        return None

    def self_stop(self, rental: Rental) -> SelfStop | None:
        return SelfStop(argv=("stop", rental.rental_id))

    async def aclose(self) -> None:
        return None


def deliver(reply: asyncio.Future[Any], answer: Any) -> None:
    """The first answer counts."""
    if not reply.done():
        reply.set_result(answer)
