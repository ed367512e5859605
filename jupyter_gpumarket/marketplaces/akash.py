"""Akash by its Console API with a managed wallet: every price is an auction. See docs/marketplaces/akash.md."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from decimal import ROUND_CEILING, Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    GpuMarketError,
    OfferGone,
    OutcomeUnknown,
    Temporary,
)
from jupyter_gpumarket.marketplaces.akash_market import Listing, machine_in, offers_in
from jupyter_gpumarket.marketplaces.akash_meaning import (
    address_of,
    gone,
    judge_accept,
    judge_create,
    judge_one,
    reclaim_of,
    safe,
    status_of,
)
from jupyter_gpumarket.marketplaces.akash_money import BlockTime, bill, plain_balance
from jupyter_gpumarket.marketplaces.akash_replies import (
    UACT,
    BalanceReply,
    Bid,
    Bids,
    Block,
    ChainPage,
    Created,
    CreatedReply,
    Estimate,
    GpuPrices,
    Holding,
    HoldingReply,
    HoldingsReply,
    Provider,
    SettingsReply,
    height,
)
from jupyter_gpumarket.marketplaces.akash_sdl import Machine, sdl
from jupyter_gpumarket.marketplaces.http import MarketplaceHttp
from jupyter_gpumarket.models import (
    Balance,
    Capabilities,
    MarketCharge,
    Offer,
    OfferQuery,
    PriceKind,
    Quote,
    Rental,
    RentalStatus,
    SelfStop,
)
from jupyter_gpumarket.money import MS_PER_HOUR

log = logging.getLogger(__name__)

NAME = "akash"
LIST_ROWS = 100
CHAIN_ROWS = 500
MAX_LIST_PAGES = 200
# A provider takes an open bid back after five minutes.
QUOTE_MS = 240_000
LONGEST_TIMER_H = 48
CLOSE_TRIES = 8
MOST_BLOCKS = 1000


class AkashOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.akash]` takes; each has a default."""

    url: str = "https://console-api.akash.network"
    image: str = "pytorch/pytorch:2.4.0-cuda12.4-cudnn9-runtime"
    cpu_cores: int = 4
    memory_gib: int = 16
    disk_gib: int = 32
    gpu_counts: tuple[int, ...] = (1, 2, 4, 8)
    # Text, so that no float comes near a price.
    block_s: str = "5.883"
    price_margin_percent: int = 10
    tee: str = ""
    bid_wait_s: float = 45.0
    bid_poll_s: float = 3.0
    runtime_limit: bool = True
    balance_unit: str = "auto"
    calls_per_s: float = 3.0
    listing_lag_s: int = 30


class AkashMarketplace:
    """One account of Akash's Console. With an empty key it lists what there is, and nothing else."""

    def __init__(self, options: AkashOptions, key: Secret, clock: Clock | None = None) -> None:
        self._block = BlockTime(options.block_s)
        sizes = (options.cpu_cores, options.memory_gib, options.disk_gib, *options.gpu_counts)
        if min(sizes) < 1 or min(options.calls_per_s, options.bid_wait_s, options.bid_poll_s) <= 0:
            raise ConfigError("akash: sizes, gpu_counts, calls_per_s, bid_wait_s and bid_poll_s must be above 0")
        if options.tee not in ("", "cpu", "cpu-gpu") or options.balance_unit not in ("auto", "usd", "uact"):
            raise ConfigError("akash: tee is empty, cpu or cpu-gpu; balance_unit is auto, usd or uact")
        self._options = options
        self._clock = clock or SystemClock()
        self._block_times: dict[int, int] = {}
        self._auctions_closing: set[asyncio.Task[None]] = set()
        self._http = MarketplaceHttp(
            NAME,
            options.url,
            key=key if key.reveal() else None,
            key_header="x-api-key",
            key_prefix="",
            rate=options.calls_per_s,
            burst=10,
            read_timeout_s=75.0,
            clock=self._clock,
        )

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        options = self._options
        return Capabilities(
            auction=True,
            tee=bool(options.tee),
            own_timer=options.runtime_limit,
            listing_lag_s=options.listing_lag_s,
        )

    # ── offers and quotes ────────────────────────────────────────────────────────────────────────────────────────────

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """What providers were bidding lately; nothing is firm before an auction. Needs no key."""
        del query
        prices: GpuPrices = await self._http.call("GET", "/v1/gpu-prices", GpuPrices, query={"debug": "true"})
        providers: tuple[Provider, ...] = await self._http.call("GET", "/v1/providers", tuple[Provider, ...])
        estimate: Estimate = await self._http.call("POST", "/v1/pricing", Estimate, body=self._size_for_pricing())
        machine = Machine(
            cpu_cores=self._options.cpu_cores, memory_gib=self._options.memory_gib, disk_gib=self._options.disk_gib
        )
        listing = Listing(
            machine=machine,
            gpu_counts=self._options.gpu_counts,
            tee=self._options.tee,
            rest_usd_month=estimate.akash,
            margin_percent=self._options.price_margin_percent,
            block=self._block,
            seen_ms=self._clock.now_ms(),
        )
        return offers_in(prices, providers, listing)

    async def quote(self, offer: Offer) -> Quote:
        """Hold an auction: a deployment is made for its bids, and closed when they were read. It costs nothing.

        It cannot be the one that is rented, because neither the lease's label nor its key is known yet.
        """
        machine = machine_in(offer)
        name = f"quote-{secrets.token_hex(8)}"
        # Where a provider asks for more than was listed, its bid says by how much; so there is room for it.
        most = self._block.uact(offer.price_nusd_hour) * 2
        text = self._sdl(machine, name, "none", most)
        try:
            created = await self._create({"sdl": text, "deposit": 1, "name": name})
        except OutcomeUnknown as error:
            self._in_background(self._close_auctions_named(name))
            raise Temporary(NAME, f"the auction for {offer.offer_id} may not have begun: {error}") from None
        try:
            bid = await self._bid(str(created.dseq), offer.machine_id)
        finally:
            self._in_background(self._close(str(created.dseq)))
        price = self._block.nusd_hour(bid.price)
        now_ms = self._clock.now_ms()
        firm = msgspec.structs.replace(
            offer,
            price_nusd_hour=price,
            machine_id=bid.id.provider,
            native=self._block.native(bid.price, now_ms),
            seen_ms=now_ms,
        )
        return Quote(
            marketplace=NAME,
            offer=firm,
            price_nusd_hour=price,
            expires_ms=now_ms + QUOTE_MS,
            quote_id=bid.id.provider,
        )

    async def _bid(self, dseq: str, provider: str, most_nusd_hour: int | None = None) -> Bid:
        """The provider's open bid, as soon as it is there.

        Raises:
            OfferGone: it did not come in time, or is dearer.
        """
        until_s = self._clock.monotonic_s() + self._options.bid_wait_s
        dearest = ""
        while True:
            found: Bids = await self._http.call("GET", "/v1/bids", Bids, query={"dseq": dseq})
            bids = [row.bid for row in found.data if row.bid.state == "open" and row.bid.id.provider == provider]
            priced = sorted((self._block.nusd_hour(bid.price), index) for index, bid in enumerate(bids))
            if priced and (most_nusd_hour is None or priced[0][0] <= most_nusd_hour):
                return bids[priced[0][1]]
            dearest = ", and its bid is dearer than before" if priced else dearest
            if self._clock.monotonic_s() >= until_s:
                raise OfferGone(f"{NAME}: no bid of {provider} within {self._options.bid_wait_s:g} s{dearest}")
            await self._clock.sleep(self._options.bid_poll_s)

    # ── renting ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """An auction under our label, and then the one call that costs: to accept the quoted provider's bid."""
        hours = max(1, -(-(deadline_ms - self._clock.now_ms()) // MS_PER_HOUR))
        most = self._block.uact(quote.price_nusd_hour)
        escrow = Decimal(quote.price_nusd_hour) / 10**9 * hours
        body: dict[str, Any] = {
            "sdl": self._sdl(machine_in(quote.offer), label, ssh_public_key, most),
            # What a lease of the agreed length needs; the rest comes back. Newer versions fund the escrow themselves.
            "deposit": max(1, int(escrow.to_integral_value(ROUND_CEILING))),
            "name": label,
        }
        if self._options.runtime_limit and hours <= LONGEST_TIMER_H:
            body["runtimeLimitHours"] = hours
        created = await self._create(body)
        dseq, asked = str(created.dseq), False
        try:
            bid = await self._bid(dseq, quote.quote_id, quote.price_nusd_hour)
            asked = True
            return await self._accept(created, bid, label)
        except OutcomeUnknown:
            raise
        except BaseException as error:
            # A call that was cut off may have made a lease: then the label finds the truth.
            if not asked or isinstance(error, GpuMarketError):
                self._in_background(self._close(dseq))
            raise

    async def _create(self, data: dict[str, Any]) -> Created:
        reply: CreatedReply = await self._http.call(
            "POST", "/v1/deployments", CreatedReply, body={"data": data}, may_cost=True, judge=judge_create
        )
        if not str(reply.data.dseq).isdecimal():
            raise OutcomeUnknown(NAME, f"POST /v1/deployments: {reply.data.dseq!r:.60} is no deployment's number")
        return reply.data

    async def _accept(self, created: Created, bid: Bid, label: str) -> Rental:
        dseq = str(created.dseq)
        lease = {"dseq": dseq, "gseq": bid.id.gseq, "oseq": bid.id.oseq, "provider": bid.id.provider}
        body = {"manifest": created.manifest, "leases": [lease]}
        # Blocks are billed from the lease on, not from the auction.
        asked_ms = self._clock.now_ms()
        reply: HoldingReply = await self._http.call(
            "POST", "/v1/leases", HoldingReply, body=body, may_cost=True, judge=judge_accept
        )
        if reply.data.dseq != dseq or not reply.data.leases:
            raise OutcomeUnknown(NAME, f"POST /v1/leases: an answer without a lease of deployment {dseq}")
        return msgspec.structs.replace(self._rental(reply.data, label), billed_from_ms=asked_ms)

    # ── what there is ────────────────────────────────────────────────────────────────────────────────────────────────

    async def find(self, label: str) -> Rental | None:
        """Looked for by the name of its group on the chain. An auction under our label that was never leased costs
        nothing; it is closed, so that none can come of it any more, and counts as none."""
        for holding, name in await self._named():
            if name == label and holding.leases:
                return self._rental(holding, label)
            if name == label:
                await self._close_now(holding.dseq, urgent=True)
        return None

    async def rentals(self) -> list[Rental]:
        return [self._rental(holding, name) for holding, name in await self._named()]

    async def rental(self, rental_id: str) -> Rental:
        holding = await self._holding(rental_id)
        if holding is None:
            return gone(rental_id)
        rental = self._rental(holding, holding.name or "")
        lease = next(iter(holding.leases or ()), None)
        if lease is None:
            return rental
        ended = height(lease.closed_on) if rental.status is RentalStatus.GONE else 0
        began_ms, ended_ms = [await self._known_block_ms(number) for number in (height(lease.created_at), ended)]
        return msgspec.structs.replace(rental, billed_from_ms=began_ms, ended_ms=ended_ms)

    async def release(self, rental_id: str) -> None:
        """Closing a deployment settles its bill, and the rest of the escrow comes back."""
        await self._close_now(rental_id, urgent=True, may_cost=True)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Akash's timer counts hours from the lease's start, and can only be put off, by two days at once."""
        holding = await self._holding(rental_id)
        lease = next((row for row in (holding.leases if holding else None) or () if row.state == "active"), None)
        if lease is None:
            return
        began_ms = await self._block_ms(height(lease.created_at))
        hours = max(1, -(-(deadline_ms - began_ms) // MS_PER_HOUR))
        path = f"/v2/deployment-settings/{safe(rental_id)}"
        reply: SettingsReply = await self._http.call("GET", path, SettingsReply)
        known = reply.data.runtime_limit_hours
        while known is not None and known < hours:
            known = min(hours, known + LONGEST_TIMER_H)
            await self._http.call("PATCH", path, None, body={"data": {"runtimeLimitHours": known}})

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """What the escrow has paid to the provider, and what it owes by now: Akash bills by the block."""
        holding = await self._holding(rental_id)
        lease = next(iter((holding.leases if holding else None) or ()), None)
        if holding is None or lease is None:
            return []
        over = holding.deployment.state != "active" or lease.state in ("closed", "insufficient_funds")
        settled = height(holding.escrow_account.state.settled_at)
        last = (height(lease.closed_on) or settled) if over else await self._latest_height()
        start_ms = await self._block_ms(height(lease.created_at))
        end_ms = max(start_ms, await self._block_ms(last))
        owed_blocks = 0 if over else max(0, last - settled)
        return [bill(holding, lease, owed_blocks=owed_blocks, start_ms=start_ms, end_ms=end_ms, final=over)]

    async def balance(self) -> Balance | None:
        reply: BalanceReply = await self._http.call("GET", "/v1/balances", BalanceReply)
        return plain_balance(reply.data.balance, self._options.balance_unit)

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """None: a container has no key of its account, and one that exits is started again."""
        del rental
        return None

    async def aclose(self) -> None:
        """An auction that is not closed yet is closed by Akash after ten minutes."""
        for task in self._auctions_closing:
            task.cancel()
        await asyncio.gather(*self._auctions_closing, return_exceptions=True)
        await self._http.aclose()

    def _sdl(self, machine: Machine, name: str, key: str, most: Decimal) -> str:
        options = self._options
        return sdl(machine, name=name, image=options.image, ssh_public_key=key, most_uact_block=most, tee=options.tee)

    def _size_for_pricing(self) -> dict[str, int]:
        options = self._options
        gib = 2**30
        return {"cpu": options.cpu_cores * 1000, "memory": options.memory_gib * gib, "storage": options.disk_gib * gib}

    async def _holding(self, rental_id: str) -> Holding | None:
        path = f"/v1/deployments/{safe(rental_id)}"
        reply: HoldingReply | None = await self._http.call("GET", path, HoldingReply, judge=judge_one(rental_id))
        return None if reply is None else reply.data

    async def _named(self) -> list[tuple[Holding, str]]:
        """All that is open on the account, with the names of their groups.

        Raises:
            Temporary: also where a name is not known, because then nobody can say that a label is absent.
        """
        found: dict[str, Holding] = {}
        for page in range(MAX_LIST_PAGES):
            query = {"skip": page * LIST_ROWS, "limit": LIST_ROWS}
            reply: HoldingsReply = await self._http.call("GET", "/v1/deployments", HoldingsReply, query=query)
            held = [holding for holding in reply.data.deployments if holding.deployment.state == "active"]
            found.update({holding.dseq: holding for holding in held})
            if not reply.data.pagination.has_more or not reply.data.deployments:
                break
        else:
            raise Temporary(NAME, "GET /v1/deployments: too many pages, so the listing is not whole")
        names: dict[str, str] = {}
        for owner in {holding.deployment.id.owner for holding in found.values()}:
            names |= await self._names_on_chain(owner)
        for dseq in sorted(set(found) - set(names)):
            now = await self._holding(dseq)
            if now is not None and now.deployment.state == "active":
                raise Temporary(NAME, f"the chain does not tell the name of deployment {dseq} (yet)")
            # Closed between the two listings, as auctions are all the time.
            del found[dseq]
        return [(holding, names[dseq]) for dseq, holding in found.items()]

    async def _names_on_chain(self, owner: str) -> dict[str, str]:
        query: dict[str, str | int] = {
            "filters.owner": owner,
            "filters.state": "active",
            "pagination.limit": CHAIN_ROWS,
        }
        names: dict[str, str] = {}
        for _ in range(MAX_LIST_PAGES):
            page: ChainPage = await self._http.call(
                "GET", "/akash/deployment/v1beta4/deployments/list", ChainPage, query=query
            )
            names |= {str(row.deployment.id.dseq): row.name for row in page.deployments}
            key = page.pagination.next_key
            if not key or key == query.get("pagination.key"):
                return names
            query["pagination.key"] = key
        raise Temporary(NAME, "the chain lists too many deployments of this account")

    def _rental(self, holding: Holding, label: str) -> Rental:
        """A deployment as the contract tells it; what others rent in another coin has no price here."""
        lease = next(iter(holding.leases or ()), None)
        status, detail = status_of(holding, lease)
        ends_ms, ends_why = reclaim_of(lease)
        return Rental(
            marketplace=NAME,
            rental_id=holding.dseq,
            label=label,
            status=status,
            price_nusd_hour=self._block.nusd_hour(lease.price)
            if lease is not None and lease.price.denom == UACT
            else None,
            kind=PriceKind.ON_DEMAND,
            machine_id="" if lease is None else lease.id.provider,
            address=address_of(lease) if status is RentalStatus.RUNNING else None,
            detail=detail,
            ends_ms=ends_ms,
            ends_why=ends_why,
        )

    async def _latest_height(self) -> int:
        blocks: tuple[Block, ...] = await self._http.call("GET", "/v1/blocks", tuple[Block, ...], query={"limit": 1})
        if not blocks:
            raise Temporary(NAME, "GET /v1/blocks: no block at all")
        return max(block.height for block in blocks)

    async def _block_ms(self, number: int) -> int:
        """When a block was made; that never changes."""
        if number not in self._block_times:
            block: Block = await self._http.call("GET", f"/v1/blocks/{number}", Block)
            while len(self._block_times) >= MOST_BLOCKS:
                del self._block_times[next(iter(self._block_times))]
            self._block_times[number] = in_ms(block.datetime)
        return self._block_times[number]

    async def _known_block_ms(self, number: int) -> int | None:
        """The same, or None: a rental's state is not kept back for it."""
        if not number:
            return None
        try:
            return await self._block_ms(number)
        except GpuMarketError:
            return None

    async def _close_now(self, dseq: str, *, urgent: bool, may_cost: bool = False) -> None:
        path = f"/v1/deployments/{safe(dseq)}"
        await self._http.call("DELETE", path, None, may_cost=may_cost, urgent=urgent, judge=judge_one(dseq))

    # ── auctions that nobody takes ───────────────────────────────────────────────────────────────────────────────────

    def _in_background(self, closing: Any) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._auctions_closing.add(task)
        task.add_done_callback(self._auctions_closing.discard)

    async def _close(self, dseq: str) -> None:
        """It costs nothing, but its deposit is locked up; and Akash closes it after ten minutes."""
        for attempt in range(CLOSE_TRIES):
            with contextlib.suppress(GpuMarketError):
                await self._close_now(dseq, urgent=True)
                return
            await self._clock.sleep(2**attempt)
        log.warning("akash: the auction %s could not be closed; Akash closes it after ten minutes", dseq)

    async def _close_auctions_named(self, name: str) -> None:
        for attempt in range(CLOSE_TRIES):
            await self._clock.sleep(2**attempt)
            with contextlib.suppress(GpuMarketError):
                for holding, told in await self._named():
                    if told == name:
                        await self._close(holding.dseq)
                        return
