"""A stand-in for Akash's Console API: auctions, leases, escrow and blocks, with its error bodies and odd habits."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import MS_PER_HOUR
from jupyter_gpumarket.simulator.akash_words import (
    CODES,
    AskedFor,
    akash_gpu,
    asked_for,
    block_row,
    coin,
    escrow_of,
    group_row,
    offered,
    party,
    provider_row,
    uact,
)
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.web import Call, Refusal, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "akash"
OWNER = "akash1" + "q" * 32 + "renter"
BLOCK_MS = 5883
# So that today's heights look like today's.
FIRST_BLOCK_MS = 1_600_000_000_000
BID_LIFE_MS = 300_000
ALONE_MS = 600_000
HOURS_PER_MONTH = Decimal("730.488")
CREDIT_UACT = Decimal(100_000_000)


@dataclass(kw_only=True, eq=False)
class Auction:
    """A deployment: first an auction, and a rental once a bid was accepted."""

    dseq: str
    wish: AskedFor
    name: str
    created_ms: int
    limit_h: int | None
    closed_ms: int | None = None
    provider: str = ""
    leased_ms: int = 0
    rental: SimRental | None = None
    lost_ms: int | None = None
    looks: int = 0


class AkashStandIn:
    """One marketplace with one account, whose key is `key`. Every host of the pool is a provider of its own."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, bid_ms: int = 200) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key
        self._bid_ms = bid_ms
        self._auctions: dict[str, Auction] = {}

    def routes(self) -> list[Route]:
        one = r"/v1/deployments/([^/]+)"
        settings = r"/v2/deployment-settings/([^/]+)"
        return [
            Route(method="GET", pattern=r"/v1/gpu-prices", action=self._gpu_prices, open=True),
            Route(method="GET", pattern=r"/v1/providers", action=self._providers, open=True),
            Route(method="POST", pattern=r"/v1/pricing", action=self._pricing, open=True),
            Route(method="GET", pattern=r"/v1/blocks", action=self._blocks, open=True),
            Route(method="GET", pattern=r"/v1/blocks/(\d+)", action=self._block, open=True),
            Route(method="GET", pattern=r"/akash/deployment/v1beta4/deployments/list", action=self._chain, open=True),
            Route(method="POST", pattern=r"/v1/deployments", action=self._create),
            Route(method="GET", pattern=r"/v1/deployments", action=self._list),
            Route(method="GET", pattern=one, action=self._show),
            Route(method="DELETE", pattern=one, action=self._close),
            Route(method="GET", pattern=r"/v1/bids(?:/(\d+))?", action=self._bids),
            Route(method="POST", pattern=r"/v1/leases", action=self._lease, creates=True),
            Route(method="GET", pattern=r"/v1/balances", action=self._balances),
            Route(method="GET", pattern=settings, action=self._settings),
            Route(method="PATCH", pattern=settings, action=self._change_settings),
        ]

    def check_key(self, call: Call) -> Reply | None:
        """The key comes in `x-api-key`, and in nothing else beside it."""
        if "authorization" in call.headers and "x-api-key" in call.headers:
            return error(400, "Authorization and X-Api-Key headers are mutually exclusive")
        given = call.headers.get("x-api-key", "")
        if secrets.compare_digest(given.encode(), self._key.reveal().encode()):
            return None
        return error(401, "Invalid API key")

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return error(429, "Too many requests", headers={"Retry-After": "1"})
        return error(503, "Service temporarily unavailable")

    def no_such_path(self, call: Call) -> Reply:
        return error(404, f"{call.path} not found")

    # ── the market ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _hosts(self) -> tuple[dict[str, Offer], dict[str, Offer]]:
        """All hosts by the address that they have as providers, and those of them that are free."""
        free = {address(offer): offer for offer in await self.yard.free()}
        rented = {address(r.offer): r.offer for r in self.yard.rentals.values() if r.phase is not Phase.ENDED}
        return rented | free, free

    def _gpu(self, host: Offer) -> tuple[str, str, str, int]:
        return akash_gpu(host, pretend=self.faults.is_armed(Fault.WRONG_GPU))

    async def _gpu_prices(self, call: Call) -> Reply:
        hosts, free = await self._hosts()
        kinds: dict[tuple[str, str, str], list[tuple[str, Offer, int]]] = {}
        for owner, host in hosts.items():
            model, ram, interface, count = self._gpu(host)
            if count:
                kinds.setdefault((model, ram, interface), []).append((owner, host, count))
        models = [self._model(kind, rows, free, call.query.get("debug") == "true") for kind, rows in kinds.items()]
        total = sum(row["availability"]["total"] for row in models)
        left = sum(row["availability"]["available"] for row in models)
        return Reply(body={"availability": {"total": total, "available": left}, "models": models})

    def _model(
        self, kind: tuple[str, str, str], rows: list[tuple[str, Offer, int]], free: dict[str, Offer], debug: bool
    ) -> dict[str, Any]:
        prices = sorted(in_dollars(host.price_nusd_hour // count) for _, host, count in rows)
        total = sum(count for *_, count in rows)
        left = sum(count for owner, _, count in rows if owner in free)
        price = {"currency": "USD", "min": prices[0], "max": prices[-1]}
        price |= dict.fromkeys(("avg", "weightedAverage", "med"), prices[len(prices) // 2])
        told: dict[str, Any] = {
            "vendor": "nvidia",
            "model": kind[0],
            "ram": kind[1],
            "interface": kind[2],
            "availability": {"total": total, "available": left},
            "providerAvailability": {"total": len(rows), "available": sum(owner in free for owner, *_ in rows)},
            "price": price,
        }
        if debug:
            told["providerAvailability"]["providers"] = [
                {"owner": owner, "hostUri": "", "allocated": 0 if owner in free else count, "allocatable": count}
                for owner, _, count in rows
            ]
            told["providersWithBestBid"] = [
                {"provider": {"owner": owner}, "bestBid": {"hourlyPrice": in_dollars(host.price_nusd_hour // count)}}
                for owner, host, count in rows
            ]
        return told

    async def _providers(self, _call: Call) -> Reply:
        hosts, _ = await self._hosts()
        return Reply(body=[provider_row(owner, host, self._gpu(host)) for owner, host in hosts.items()])

    async def _pricing(self, call: Call) -> Reply:
        """The same for everybody, so it is what the dearest host without a GPU asks."""
        spec = call.body()
        hosts, _ = await self._hosts()
        dearest = max((host.price_nusd_hour for host in hosts.values() if not self._gpu(host)[3]), default=10**7)
        month = in_dollars(dearest) * HOURS_PER_MONTH
        others = dict.fromkeys(("aws", "gcp", "azure"), round(month * 3, 2))
        return Reply(body={"spec": spec, "akash": round(month, 2), **others})

    # ── auctions and leases ──────────────────────────────────────────────────────────────────────────────────────────

    async def _create(self, call: Call) -> Reply:
        data = call.body().get("data")
        if not isinstance(data, dict) or not isinstance(data.get("sdl"), str):
            return invalid("data.sdl")
        try:
            wish = asked_for(data["sdl"])
        except (msgspec.MsgspecError, KeyError, IndexError, ValueError) as problem:
            return error(400, f"Invalid SDL: {problem}")
        limit = data.get("runtimeLimitHours")
        if limit is not None and not (isinstance(limit, int) and 1 <= limit <= 48):
            return invalid("data.runtimeLimitHours")
        now_ms = self.yard.now_ms()
        dseq = str(max([now_ms, *(int(known) + 1 for known in self._auctions)]))
        self._auctions[dseq] = Auction(
            dseq=dseq, wish=wish, name=str(data.get("name") or ""), created_ms=now_ms, limit_h=limit
        )
        signed = {"code": 0, "transactionHash": secrets.token_hex(32).upper(), "rawLog": ""}
        return Reply(status=201, body={"data": {"dseq": dseq, "manifest": f"[{dseq}]", "signTx": signed}})

    async def _bids(self, call: Call) -> Reply:
        dseq = call.names[0] or call.query.get("dseq", "")
        auction = self._auctions.get(dseq)
        if not dseq.isdecimal():
            return invalid("dseq")
        return Reply(body={"data": [] if auction is None else await self._bid_rows(auction)})

    async def _bid_rows(self, auction: Auction) -> list[dict[str, Any]]:
        age_ms = self.yard.now_ms() - auction.created_ms
        if age_ms < self._bid_ms:
            return []
        _, free = await self._hosts()
        rows = []
        for owner, host in free.items():
            price = uact(host.price_nusd_hour, BLOCK_MS)
            model, _, _, count = self._gpu(host)
            if auction.wish.gpus > count or auction.wish.model not in ("", model) or price > auction.wish.most_uact:
                continue
            open_ = auction.closed_ms is None and auction.rental is None and age_ms < BID_LIFE_MS
            state = "active" if owner == auction.provider else "open" if open_ else "lost"
            bid = {
                "id": party(OWNER, auction.dseq, owner),
                "state": state,
                "price": coin(price),
                "created_at": str(height_at(auction.created_ms + self._bid_ms)),
                "resources_offer": [{"resources": offered(auction.wish), "count": 1}],
            }
            xid = f"{OWNER}/{auction.dseq}/1/1/{owner}"
            rows.append(
                {
                    "bid": bid,
                    "escrow_account": escrow_of("bid", xid, owner, paid=Decimal(0), funds=Decimal(500_000), settled=1),
                }
            )
        return rows

    async def _lease(self, call: Call) -> Reply:
        body = call.body()
        wishes = body.get("leases") if isinstance(body, dict) else None
        if not wishes or not isinstance(body.get("manifest"), str):
            return invalid("leases")
        auction = self._auctions.get(str(wishes[0].get("dseq")))
        if auction is None:
            return error(404, "Deployment not found")
        if auction.rental is None:
            provider = str(wishes[0].get("provider"))
            open_now = {row["bid"]["id"]["provider"] for row in await self._bid_rows(auction)}
            _, free = await self._hosts()
            sold = self.faults.take(Fault.SOLD_TWICE)
            if sold or auction.closed_ms is not None or provider not in open_now or provider not in free:
                return error(400, "Cannot create lease: The selected bid is no longer open. Please refresh the bids.")
            self._start(auction, provider, free[provider])
        return Reply(body={"data": self._holding(auction, live=True)})

    def _start(self, auction: Auction, provider: str, host: Offer) -> None:
        now_ms = self.yard.now_ms()
        auction.provider, auction.leased_ms = provider, now_ms
        auction.rental = SimRental(
            rental_id=auction.dseq,
            label=auction.wish.name,
            offer=host,
            rate_nusd_hour=host.price_nusd_hour,
            disk_rate_nusd_hour=0,
            disk_gb=auction.wish.disk_gib,
            own_key=secrets.token_hex(16),
            created_ms=now_ms,
            ssh_keys=[auction.wish.ssh_key] if auction.wish.ssh_key else [],
        )
        self.yard.start(auction.rental)
        if auction.limit_h is not None:
            self.yard.end_at(auction.rental, now_ms + auction.limit_h * MS_PER_HOUR)

    def _is_open(self, auction: Auction) -> bool:
        """An auction that nobody takes is closed after ten minutes."""
        if auction.rental is not None:
            return auction.rental.phase is not Phase.ENDED
        if auction.closed_ms is None and self.yard.now_ms() - auction.created_ms > ALONE_MS:
            auction.closed_ms = self.yard.now_ms()
        return auction.closed_ms is None

    def _found(self, call: Call) -> Auction:
        if not call.names[0].isdecimal():
            raise Refusal(invalid("dseq"))
        auction = self._auctions.get(call.names[0])
        if auction is None:
            raise Refusal(error(404, "Deployment not found"))
        return auction

    async def _show(self, call: Call) -> Reply:
        return Reply(body={"data": self._holding(self._found(call), live=True)})

    async def _list(self, call: Call) -> Reply:
        skip, limit = int(call.query.get("skip") or 0), int(call.query.get("limit") or 1000)
        held = [self._holding(auction, live=False) for auction in self._auctions.values() if self._is_open(auction)]
        page = held[skip : skip + limit]
        more = {"total": len(held), "skip": skip, "limit": limit, "hasMore": skip + limit < len(held)}
        return Reply(body={"data": {"deployments": page, "pagination": more}})

    async def _close(self, call: Call) -> Reply:
        """Closing what is closed is a success too."""
        auction = self._found(call)
        if auction.rental is not None:
            self.yard.end(auction.rental)
        elif auction.closed_ms is None:
            auction.closed_ms = self.yard.now_ms()
        return Reply(body={"data": {"success": True}})

    async def _chain(self, call: Call) -> Reply:
        """The deployments as the chain has them: the only place where their groups have names."""
        state = call.query.get("filters.state", "active")
        rows = []
        for auction in self._auctions.values():
            if self._is_open(auction) == (state == "active") and call.query.get("filters.owner") in (None, OWNER):
                whole = self._holding(auction, live=False)
                groups = [group_row(OWNER, auction.dseq, auction.wish, str(height_at(auction.created_ms)))]
                rows.append({k: whole[k] for k in ("deployment", "escrow_account")} | {"groups": groups})
        return Reply(body={"deployments": rows, "pagination": {"next_key": None, "total": str(len(rows))}})

    def _holding(self, auction: Auction, *, live: bool) -> dict[str, Any]:
        open_ = self._is_open(auction)
        identity = {"owner": OWNER, "dseq": auction.dseq}
        state = "active" if open_ else "closed"
        deployment = {"id": identity, "state": state, "hash": "q83v", "created_at": str(height_at(auction.created_ms))}
        rate, spent, until = self._bill(auction)
        settled = height_at(until) if until is not None else height_at(auction.leased_ms or auction.created_ms)
        xid = f"{OWNER}/{auction.dseq}"
        escrow = escrow_of("deployment", xid, OWNER, paid=spent, funds=Decimal(5_000_000), settled=settled, open_=open_)
        leases = [] if auction.rental is None else [self._lease_row(auction, rate, until, live=live)]
        return {"deployment": deployment, "leases": leases, "escrow_account": escrow, "name": auction.name}

    def _bill(self, auction: Auction) -> tuple[Decimal, Decimal, int | None]:
        """The price of a block, what was paid, and when it was settled for good; nothing is paid before that."""
        rental = auction.rental
        if rental is None:
            return Decimal(0), Decimal(0), auction.closed_ms
        if rental.phase is Phase.DEAD and auction.lost_ms is None:
            auction.lost_ms = self.yard.now_ms()
        rate = uact(rental.rate_nusd_hour, BLOCK_MS)
        until = rental.stopped_ms or auction.lost_ms or rental.ended_ms
        if until is None:
            return rate, Decimal(0), None
        return rate, rate * (height_at(until) - height_at(auction.leased_ms)), until

    def _lease_row(self, auction: Auction, rate: Decimal, until: int | None, *, live: bool) -> dict[str, Any]:
        assert auction.rental is not None
        taken = auction.rental.phase in (Phase.STOPPED, Phase.DEAD)
        reason = "lease_closed_reason_unstable" if taken else "lease_closed_owner" if until else "lease_closed_invalid"
        reclaiming = until is None and auction.rental.reclaim_ms is not None
        if reclaiming:
            reason = "lease_closed_reason_decommission"
        row = {
            "id": party(OWNER, auction.dseq, auction.provider),
            "state": "reclaiming" if reclaiming else "active" if until is None else "closed",
            "price": coin(rate),
            "created_at": str(height_at(auction.leased_ms)),
            "closed_on": "0" if until is None else str(height_at(until)),
            "reason": reason,
        }
        if reclaiming:
            row["reclamation"] = reclamation(auction.rental, reason)
        return row | {"status": self._status(auction)} if live else row

    def _status(self, auction: Auction) -> dict[str, Any] | None:
        """What the provider says: nothing at the first look; and a service without a hostname has null for its URIs."""
        rental = auction.rental
        assert rental is not None
        auction.looks += 1
        if auction.looks < 2 or rental.phase not in (Phase.BOOTING, Phase.RUNNING):
            return None
        up = int(rental.phase is Phase.RUNNING and rental.port > 0)
        counts = dict.fromkeys(("replicas", "updated_replicas", "ready_replicas", "available_replicas"), up)
        service = {"name": "node", "available": up, "total": 1, "uris": None, "observed_generation": 1, **counts}
        port = {"host": "127.0.0.1", "port": 22, "externalPort": rental.port, "proto": "TCP", "name": "node"}
        return {"services": {"node": service}, "forwarded_ports": {"node": [port]} if up else None, "ips": None}

    # ── settings, blocks, money ──────────────────────────────────────────────────────────────────────────────────────

    async def _settings(self, call: Call) -> Reply:
        return Reply(body={"data": settings_row(self._found(call))})

    async def _change_settings(self, call: Call) -> Reply:
        auction, hours = self._found(call), (call.body().get("data") or {}).get("runtimeLimitHours")
        if not isinstance(hours, int) or hours < (auction.limit_h or 1) or hours > (auction.limit_h or 0) + 48:
            return invalid("data.runtimeLimitHours")
        auction.limit_h = hours
        if auction.rental is not None:
            self.yard.end_at(auction.rental, auction.leased_ms + hours * MS_PER_HOUR)
        return Reply(body={"data": settings_row(auction)})

    async def _blocks(self, call: Call) -> Reply:
        last = height_at(self.yard.now_ms())
        count = min(100, int(call.query.get("limit") or 20))
        return Reply(body=[block_row(number, iso_utc(time_of(number))) for number in range(last, last - count, -1)])

    async def _block(self, call: Call) -> Reply:
        number = int(call.names[0])
        if number > height_at(self.yard.now_ms()):
            return error(404, "Block not found")
        more = {"hash": secrets.token_hex(32).upper(), "gasUsed": 0, "gasWanted": 0, "transactions": []}
        return Reply(body=block_row(number, iso_utc(time_of(number))) | more)

    async def _balances(self, _call: Call) -> Reply:
        """Dollars, as Akash's documentation says."""
        spent = sum((self._bill(auction)[1] for auction in self._auctions.values()), Decimal(0))
        left = round((CREDIT_UACT - spent) / 10**6, 6)
        return Reply(body={"data": {"balance": left, "deployments": Decimal(0), "total": left}})


def height_at(at_ms: int) -> int:
    """The last block at that time."""
    return (at_ms - FIRST_BLOCK_MS) // BLOCK_MS


def time_of(height: int) -> int:
    return FIRST_BLOCK_MS + height * BLOCK_MS


def reclamation(rental: SimRental, reason: str) -> dict[str, Any]:
    """The notice that a provider has given (AEP-82): when it began, and when it closes the lease."""
    began_s, deadline_s = (rental.reclaimed_ms or 0) // 1000, (rental.reclaim_ms or 0) // 1000
    return {"window": f"{deadline_s - began_s}s", "started_at": began_s, "deadline": deadline_s, "reason": reason}


def address(host: Offer) -> str:
    """The provider that a host of the pool is."""
    return "akash1" + re.sub("[^a-z0-9]", "", hashlib.sha256(host.machine_id.encode()).hexdigest())[:38]


def settings_row(auction: Auction) -> dict[str, Any]:
    nobody = "00000000-0000-4000-8000-000000000000"
    moment = iso_utc(auction.created_ms)
    funding = {"autoTopUpEnabled": True, "estimatedTopUpAmount": 0, "topUpFrequencyMs": MS_PER_HOUR}
    times = {"createdAt": moment, "updatedAt": moment, "runtimeLimitHours": auction.limit_h}
    return {"id": nobody, "userId": nobody, "dseq": auction.dseq, **funding, **times}


def error(status: int, message: str, *, headers: dict[str, str] | None = None) -> Reply:
    name, code, kind = CODES.get(status, ("HttpError", "unknown_error", "client_error"))
    body = {"error": name, "message": message, "code": code, "type": kind}
    return Reply(status=status, body=body, headers=headers or {})


def invalid(where: str) -> Reply:
    issue = {"code": "invalid_type", "path": where.split("."), "message": "Invalid input"}
    body = {"error": "BadRequestError", "message": "Validation error", "code": "validation_error"}
    return Reply(status=400, body=body | {"type": "validation_error", "data": [issue]})
