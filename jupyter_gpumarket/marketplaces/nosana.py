"""Nosana: jobs on a network of hosts, paid by credits. What is known and what is not: docs/marketplaces/nosana.md."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from jupyter_gpumarket.clock import Clock, SystemClock, in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    GpuMarketError,
    InsufficientFunds,
    MarketplaceError,
    OfferGone,
    OutcomeUnknown,
    Temporary,
)
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.marketplaces.http import Absent, MarketplaceHttp
from jupyter_gpumarket.marketplaces.identifiers import path_part
from jupyter_gpumarket.marketplaces.nosana_job import STOP, job_definition
from jupyter_gpumarket.marketplaces.nosana_replies import (
    Credits,
    Deployment,
    DeploymentPage,
    Job,
    JobPage,
    JobRow,
    Market,
    address_of,
    price_of,
    status_of,
)
from jupyter_gpumarket.models import (
    Balance,
    Billing,
    Capabilities,
    MarketCharge,
    NativePrice,
    Offer,
    OfferQuery,
    PriceKind,
    Quote,
    Rental,
    RentalStatus,
    SelfStop,
    Tier,
)

NAME = "nosana"
TIERS = {"PREMIUM": Tier.VERIFIED, "COMMUNITY": Tier.COMMUNITY}
LIST_ROWS = 100
MAX_LIST_PAGES = 200
QUOTE_MS = 60_000
LEAST_MINUTES = 60
MINUTE_MS = 60_000
LOOK_S = 0.5
STOP_WAIT_S = 30.0
NOT_THERE = frozenset({404})
CREDITS = "credits"
RATE_SOURCE = "Nosana: one credit is one US dollar"


class NosanaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[marketplaces.nosana]` takes; each has a default."""

    url: str = "https://dashboard.k8s.prd.nos.ci"
    prefix: str = "/api"
    image: str = "docker.io/pytorch/pytorch:2.4.0-cuda12.4-cudnn9-runtime"
    types: tuple[str, ...] = ("PREMIUM", "COMMUNITY")
    queue_s: float = 30.0
    calls_per_s: float = 4.0
    listing_lag_s: int = 45
    charge_delay_s: int = 300


class NosanaMarketplace:
    """One Nosana account that pays by credits."""

    def __init__(self, options: NosanaOptions, key: Secret, clock: Clock | None = None) -> None:
        unknown = [kind for kind in options.types if kind not in TIERS]
        if unknown or options.queue_s < 0 or options.calls_per_s <= 0:
            raise ConfigError(f"{NAME}: types are {' and '.join(TIERS)}; queue_s and calls_per_s are not negative")
        self._options = options
        self._clock = clock or SystemClock()
        self._http = MarketplaceHttp(NAME, options.url, key=key, rate=options.calls_per_s, burst=20, clock=self._clock)
        self._fees: dict[str, Decimal] = {}

    @property
    def name(self) -> str:
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        options = self._options
        return Capabilities(
            https_only=True,
            own_timer=True,
            self_stop=True,
            charge_delay_s=options.charge_delay_s,
            listing_lag_s=options.listing_lag_s,
        )

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """One for each market. A market is a queue: whether a host is idle there shows only when a job is listed."""
        del query
        markets: tuple[Market, ...] = await self._http.call("GET", self._path("/markets/"), tuple[Market, ...])
        seen_ms = self._clock.now_ms()
        return [offer for market in markets if (offer := self._offer(market, seen_ms)) is not None]

    async def quote(self, offer: Offer) -> Quote:
        """The market's price now; a job keeps the price that it was listed with."""
        path = self._path(f"/markets/{safe(offer.offer_id)}/")
        market: Market | None = await self._http.call("GET", path, Market, absent=NOT_THERE)
        fresh = None if market is None else self._offer(market, self._clock.now_ms())
        if fresh is None or fresh.offer_id != offer.offer_id:
            raise OfferGone(f"{NAME}: the market {offer.offer_id} is not there any more")
        return Quote(
            marketplace=NAME,
            offer=fresh,
            price_nusd_hour=fresh.price_nusd_hour,
            expires_ms=fresh.seen_ms + QUOTE_MS,
            quote_id=fresh.offer_id,
        )

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Record the deployment, which costs nothing, then start it once; leave the queue again if nobody is idle."""
        offer = quote.offer
        body = {
            "name": label,
            "market": quote.quote_id,
            "replicas": 1,
            "timeout": minutes(deadline_ms - self._clock.now_ms()),
            "strategy": "SIMPLE",
            "job_definition": job_definition(self._options.image, ssh_public_key, offer.vram_gib),
        }
        # Newer servers may start by themselves what is created: its reply is as precious as that of the start.
        made: Deployment = await self._http.call(
            "POST", self._path("/deployments/create"), Deployment, body=body, may_cost=True
        )
        path = self._path(f"/deployments/{safe(made.id)}/start")
        await self._http.call("POST", path, Started, may_cost=True)
        return await self._once_out_of_the_queue(made.id)

    async def find(self, label: str) -> Rental | None:
        """Names are not unique at Nosana, but our labels are; the oldest of several is the one."""
        same = [rental for rental in await self.rentals() if rental.label == label]
        return min(same, key=lambda rental: rental.created_ms or 0, default=None)

    async def rentals(self) -> list[Rental]:
        found: dict[str, Deployment] = {}
        query: dict[str, str | int] = {"limit": LIST_ROWS}
        for _ in range(MAX_LIST_PAGES):
            page = await self._page(query)
            found.update({deployment.id: deployment for deployment in page.deployments})
            cursor = page.pagination.cursor_next
            if not cursor or cursor == query.get("cursor"):
                rentals = [rental_of(deployment, None, None, None) for deployment in found.values()]
                return [rental for rental in rentals if rental.status is not RentalStatus.GONE]
            query = {"limit": LIST_ROWS, "cursor": cursor}
        raise Temporary(NAME, f"GET /deployments: more than {MAX_LIST_PAGES} pages, so the listing is not whole")

    async def rental(self, rental_id: str) -> Rental:
        path = self._path(f"/deployments/{safe(rental_id)}")
        deployment: Deployment | None = await self._http.call("GET", path, Deployment, absent=NOT_THERE)
        if deployment is None:
            # A deployment's own page may lag behind the create call: only the listing decides.
            listed = [rental for rental in await self.rentals() if rental.rental_id == rental_id]
            return listed[0] if listed else gone(rental_id)
        row = next(iter(await self._jobs(rental_id)), None)
        job = None if row is None or row.state == "QUEUED" else await self._job(row.job)
        price = None if job is None else await self._price(job)
        return rental_of(deployment, row, job, price)

    async def release(self, rental_id: str) -> None:
        path = self._path(f"/deployments/{safe(rental_id)}/stop")
        await self._http.call("POST", path, None, may_cost=True, urgent=True, judge=judge_stop)

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Their timer counts minutes from the job's start."""
        rental = await self.rental(rental_id)
        start_ms = rental.billed_from_ms or rental.created_ms or self._clock.now_ms()
        path = self._path(f"/deployments/{safe(rental_id)}/update-timeout")
        await self._http.call("PATCH", path, None, body={"timeout": minutes(deadline_ms - start_ms)})

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """Nosana bills a job's seconds at the price it was listed with; the job's own page tells both."""
        now_s = self._clock.now_ms() // 1000
        lines = []
        for row in await self._jobs(rental_id):
            job = await self._job(row.job)
            price = await self._price(job)
            if price is None or not job.time_start:
                continue
            end_s = max(job.time_start, job.time_end or now_s)
            credit = price * (end_s - job.time_start) / 3600
            lines.append(
                MarketCharge(
                    charge_id=f"{rental_id}-{row.job}",
                    rental_id=rental_id,
                    amount_nusd=amount_nusd(NAME, credit),
                    start_ms=job.time_start * 1000,
                    end_ms=end_s * 1000,
                    native_amount=str(credit),
                    native_currency=CREDITS,
                    final=bool(job.time_end) and now_s - end_s >= self._options.charge_delay_s,
                )
            )
        return lines

    async def balance(self) -> Balance | None:
        told: Credits = await self._http.call("GET", self._path("/credits/balance"), Credits)
        left = told.assigned_credits - told.reserved_credits - told.settled_credits
        return Balance(amount_nusd=amount_nusd(NAME, left), native_amount=str(left), native_currency=CREDITS)

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """A job ends with its container's first process, and its bill with it."""
        del rental
        return SelfStop(argv=STOP)

    async def aclose(self) -> None:
        await self._http.aclose()

    def _path(self, rest: str) -> str:
        return self._options.prefix.rstrip("/") + rest

    def _offer(self, market: Market, seen_ms: int) -> Offer | None:
        reward = market.usd_reward_per_hour
        if market.type not in self._options.types or reward is None or not reward.is_finite() or reward < 0:
            return None
        self._fees[market.address] = market.network_fee_percentage
        price = price_of(reward, market.network_fee_percentage)
        has_gpu = bool(market.gpu_types)
        return Offer(
            marketplace=NAME,
            offer_id=market.address,
            machine_id=market.address,
            price_nusd_hour=price_nusd(NAME, price),
            seen_ms=seen_ms,
            kind=PriceKind.ON_DEMAND,
            gpu_raw=market.gpu_types[0] if has_gpu else "",
            gpu_count=market.gpu_count if has_gpu else 0,
            vram_gib=market.lowest_vram or 0.0 if has_gpu else 0.0,
            tier=TIERS[market.type],
            billing=Billing(quantum_s=1),
            provider=market.name or market.slug,
            native=NativePrice(
                amount_hour=f"{price:f}", currency=CREDITS, rate="1", source=RATE_SOURCE, rate_ms=seen_ms
            ),
            extra={"market": market.slug, "nos_per_s": str(market.nos_job_price_per_second or "")},
        )

    async def _page(self, query: dict[str, str | int]) -> DeploymentPage:
        """Older servers answer with a bare list."""
        told: DeploymentPage | tuple[Deployment, ...] = await self._http.call(
            "GET", self._path("/deployments"), DeploymentPage | tuple[Deployment, ...], query=query
        )
        return DeploymentPage(deployments=told) if isinstance(told, tuple) else told

    async def _jobs(self, deployment_id: str) -> tuple[JobRow, ...]:
        """Newest first; a deployment of one replica has one, but for restarts."""
        path = self._path(f"/deployments/{safe(deployment_id)}/jobs")
        query: dict[str, str | int] = {"limit": LIST_ROWS, "sort_order": "desc"}
        told: JobPage | tuple[JobRow, ...] | None = await self._http.call(
            "GET", path, JobPage | tuple[JobRow, ...], query=query, absent=NOT_THERE
        )
        if told is None:
            return ()
        return told if isinstance(told, tuple) else told.jobs

    async def _job(self, address: str) -> Job:
        job: Job = await self._http.call("GET", self._path(f"/jobs/{safe(address)}"), Job)
        return job

    async def _price(self, job: Job) -> Decimal | None:
        """Dollars an hour for a job; None where its reward is not told."""
        if job.usd_reward_per_hour is None:
            return None
        if job.market not in self._fees:
            market: Market = await self._http.call("GET", self._path(f"/markets/{safe(job.market)}/"), Market)
            self._fees[job.market] = market.network_fee_percentage
        return price_of(job.usd_reward_per_hour, self._fees[job.market])

    async def _once_out_of_the_queue(self, deployment_id: str) -> Rental:
        """The rental, when a host has taken the job, or none was asked in time to say.

        Raises:
            OfferGone: the job waited too long, and was taken back.
            InsufficientFunds: there is no credit for it.
            OutcomeUnknown: it was started, and what became of it is not to be seen now.
        """
        try:
            deployment, row = await self._leaving_the_queue(deployment_id)
            broke = deployment.status == "INSUFFICIENT_FUNDS"
            waits = row is not None and row.state == "QUEUED"
            if broke or waits:
                await self._taken_back(deployment_id)
        except OutcomeUnknown:
            raise
        except MarketplaceError as error:
            raise OutcomeUnknown(NAME, f"the deployment {deployment_id} was started; then {error}") from None
        if broke:
            raise InsufficientFunds(NAME, f"there is not enough credit for the deployment {deployment_id}")
        if waits:
            raise OfferGone(f"{NAME}: no host of this market was idle within {self._options.queue_s:g} s")
        return rental_of(deployment, row, None, None)

    async def _leaving_the_queue(self, deployment_id: str) -> tuple[Deployment, JobRow | None]:
        """How it stands when a host has the job, or something else became of it, or the patience is at its end."""
        patience_s = self._clock.monotonic_s() + self._options.queue_s
        path = self._path(f"/deployments/{safe(deployment_id)}")
        while True:
            deployment: Deployment = await self._http.call("GET", path, Deployment)
            row = next(iter(await self._jobs(deployment_id)), None)
            taken = row is not None and row.state != "QUEUED"
            if taken or deployment.status not in ("STARTING", "RUNNING") or self._clock.monotonic_s() >= patience_s:
                return deployment, row
            await self._clock.sleep(LOOK_S)

    async def _taken_back(self, deployment_id: str) -> None:
        """Stop it, and see that it has stopped."""
        await self.release(deployment_id)
        until_s = self._clock.monotonic_s() + STOP_WAIT_S
        while (await self.rental(deployment_id)).status is not RentalStatus.GONE:
            if self._clock.monotonic_s() >= until_s:
                raise OutcomeUnknown(NAME, f"the deployment {deployment_id} left the queue, but has not stopped yet")
            await self._clock.sleep(LOOK_S)


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a start."""

    status: str


def judge_stop(status: int, content: bytes) -> type[GpuMarketError | Absent] | None:
    """500 is also what Nosana says of a deployment that cannot be stopped as it is: it has ended, or is still starting.

    Neither is an error here: whoever asks looks at the deployment next, and asks again while it is there.
    """
    return Absent if status == 404 or (status == 500 and b"incorrect state" in content) else None


def rental_of(deployment: Deployment, row: JobRow | None, job: Job | None, price: Decimal | None) -> Rental:
    """A deployment and its job as the contract tells it. It bills while a job runs."""
    status = status_of(deployment, row)
    start_s = job.time_start if job is not None else 0
    ended = status is RentalStatus.GONE and job is not None and job.time_end
    well = status in (RentalStatus.PENDING, RentalStatus.RUNNING)
    if status is RentalStatus.GONE and job is not None and not job.time_start:
        # It only ever stood in the queue: no second of it is billed.
        start_s = ended_s = (in_ms(deployment.created_at) or 0) // 1000
    else:
        ended_s = job.time_end if ended and job is not None else 0
    return Rental(
        marketplace=NAME,
        rental_id=deployment.id,
        label=deployment.name,
        status=status,
        price_nusd_hour=None if price is None else price_nusd(NAME, price),
        kind=PriceKind.ON_DEMAND,
        address=address_of(deployment) if status is RentalStatus.RUNNING else None,
        created_ms=in_ms(deployment.created_at),
        billed_from_ms=start_s * 1000 if start_s else None,
        ended_ms=ended_s * 1000 if ended_s else None,
        detail="" if well else f"Nosana says {deployment.status[:50]}" + (f", job {row.state[:20]}" if row else ""),
    )


def gone(rental_id: str) -> Rental:
    """What Nosana does not know (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="Nosana does not know it"
    )


def minutes(span_ms: int) -> int:
    """Their timer, rounded up; jobs that are paid by credits must be allowed an hour at least."""
    return max(LEAST_MINUTES, -(-span_ms // MINUTE_MS))


def safe(identifier: str) -> str:
    """An identifier that can only be one part of a path: base 58."""
    return path_part(identifier, "a deployment of Nosana", marks="")
