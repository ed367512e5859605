"""A stand-in for Basilica (Bittensor's subnet 39): paths, error envelope, and an account's one SSH key."""

from __future__ import annotations

import re
import secrets
import uuid
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import MS_PER_HOUR, cost_nusd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "basilica"
IDS = uuid.UUID("3f7f2c54-9f55-4a9c-8b36-5f2f4f0d7a10")
CREDIT_NUSD = 100 * 1_000_000_000
PRETENDED = ("h100", 80)
RENTAL_NAME = re.compile(r"[a-z0-9_-]{1,64}")
STATUSES = {
    Phase.BOOTING: "provisioning",
    Phase.RUNNING: "running",
    Phase.STOPPED: "error",
    Phase.DEAD: "error",
    Phase.ENDED: "stopped",
}


class BasilicaStandIn:
    """One marketplace with one account, whose key is `key`. `show_figures` lists an offering of which there is none."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key
        self._show_figures = show_figures
        self._ssh_key: dict[str, str] | None = None

    def routes(self) -> list[Route]:
        gpus, cpus = r"/v2/secure-cloud/(rentals)", r"/v2/secure-cloud/(cpu-rentals)"
        kinds = []
        for path in (gpus, cpus):
            kinds += [
                Route(method="GET", pattern=path, action=self._list),
                Route(method="POST", pattern=path + "/start", action=self._start, creates=True),
                Route(method="POST", pattern=path + "/([^/]+)/stop", action=self._stop),
            ]
        return [
            *kinds,
            Route(method="GET", pattern=r"/health", action=self._health),
            Route(method="GET", pattern=r"/v2/secure-cloud/gpu-prices", action=self._gpu_prices),
            Route(method="GET", pattern=r"/v2/secure-cloud/cpu-prices", action=self._cpu_prices),
            Route(method="GET", pattern=r"/ssh-keys", action=self._show_key),
            Route(method="POST", pattern=r"/ssh-keys", action=self._add_key),
            Route(method="DELETE", pattern=r"/ssh-keys", action=self._delete_key),
            Route(method="GET", pattern=r"/billing/balance", action=self._balance),
            Route(method="GET", pattern=r"/billing/usage", action=self._usage),
        ]

    def check_key(self, call: Call) -> Reply | None:
        if secrets.compare_digest(call.key.encode(), self._key.reveal().encode()):
            return None
        return failure(401, "BASILICA_API_AUTH_MISSING", "Authentication failed", self.yard.now_ms())

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            reply = failure(429, "BASILICA_API_RATE_LIMIT", "Rate limit exceeded", self.yard.now_ms())
            return Reply(status=reply.status, body=reply.body, headers={"Retry-After": "1"})
        return failure(503, "BASILICA_API_SERVICE_UNAVAILABLE", "Service temporarily unavailable", self.yard.now_ms())

    def no_such_path(self, call: Call) -> Reply:
        return failure(404, "BASILICA_API_NOT_FOUND", f"no route {call.path}", self.yard.now_ms())

    def _refused(self, status: int, message: str) -> Reply:
        return failure(status, f"BASILICA_API_{status}", message, self.yard.now_ms())

    async def _health(self, _call: Call) -> Reply:
        told = {"status": "healthy", "version": "0.36.8", "timestamp": iso_utc(self.yard.now_ms())}
        return Reply(body=told | {"healthy_validators": 1, "total_validators": 1})

    # ── offerings ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _is_gpu(self, offer: Offer) -> bool:
        return bool(offer.gpu_count) or self.faults.is_armed(Fault.WRONG_GPU)

    def _sold_as(self, offer: Offer) -> Offer:
        """The host as it is listed; WRONG_GPU gives it the GPU that hosts without one are listed with."""
        wrong = self.faults.is_armed(Fault.WRONG_GPU)
        return msgspec.structs.replace(offer, gpu_count=0) if wrong else offer

    async def _gpu_prices(self, call: Call) -> Reply:
        rows = [
            gpu_row(self._sold_as(offer), self.yard.now_ms()) for offer in await self.yard.free() if self._is_gpu(offer)
        ]
        if self._show_figures and call.query.get("available_only") != "true":
            rows.append(sold_out(self.yard.now_ms()))
        if wanted := call.query.get("region"):
            rows = [row for row in rows if row["region"] == wanted]
        return Reply(body={"nodes": rows, "count": len(rows)})

    async def _cpu_prices(self, _call: Call) -> Reply:
        rows = [cpu_row(offer, self.yard.now_ms()) for offer in await self.yard.free() if not self._is_gpu(offer)]
        return Reply(body={"nodes": rows, "count": len(rows)})

    # ── rentals ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self, call: Call) -> Reply:
        kind, body = call.names[0], call.body()
        if not isinstance(body, dict) or not body.get("offering_id"):
            return self._refused(400, "missing field `offering_id`")
        name = body.get("name") or f"rental-{secrets.token_hex(4)}"
        if not RENTAL_NAME.fullmatch(str(name)):
            return self._refused(400, "name must be lowercase letters, digits, dash or underscore, at most 64")
        if self._ssh_key is None or body.get("ssh_public_key_id") != self._ssh_key["id"]:
            return self._refused(400, "SSH key not found")
        wanted = kind == "rentals"
        fitting = [o for o in await self.yard.free() if offering_of(o) == body["offering_id"]]
        if self.faults.take(Fault.SOLD_TWICE) or not fitting or self._is_gpu(fitting[0]) != wanted:
            return self._refused(404, f"Offering {body['offering_id']} not found or no longer available")
        if self._left() <= 0:
            return self._refused(402, "Insufficient balance")
        rental = self._rental(fitting[0], kind, str(name))
        self.yard.start(rental)
        told = {name: self._listed(rental)[name] for name in STARTED_FIELDS}
        return Reply(status=201, body=told | {"deployment_id": rental.rental_id})

    def _rental(self, offer: Offer, kind: str, name: str) -> SimRental:
        assert self._ssh_key is not None
        return SimRental(
            rental_id=str(uuid.uuid4()),
            label=name,
            offer=offer,
            rate_nusd_hour=offer.price_nusd_hour,
            disk_rate_nusd_hour=0,
            disk_gb=0,
            own_key=secrets.token_hex(8),
            created_ms=self.yard.now_ms(),
            ssh_keys=[self._ssh_key["public_key"]],
            extra={"kind": kind},
        )

    async def _list(self, call: Call) -> Reply:
        """All that are there; what has ended is in the usage alone."""
        there = [r for r in self.yard.rentals.values() if r.extra["kind"] == call.names[0]]
        rows = [self._listed(rental) for rental in there if rental.phase is not Phase.ENDED]
        return Reply(body={"rentals": rows, "total_count": len(rows)})

    async def _stop(self, call: Call) -> Reply:
        """By id or by name."""
        kind, wanted = call.names
        there = [r for r in self.yard.rentals.values() if r.extra["kind"] == kind and r.phase is not Phase.ENDED]
        found = next((rental for rental in there if wanted in (rental.rental_id, rental.label)), None)
        if found is None:
            return self._refused(404, f"Rental {wanted} not found")
        self.yard.end(found)
        now_ms = self.yard.now_ms()
        hours = Decimal((found.ended_ms or now_ms) - found.created_ms) / MS_PER_HOUR
        told = {"name": found.label, "rental_id": found.rental_id, "status": "stopped", "duration_hours": hours}
        return Reply(body=told | {"total_cost": in_dollars(cost(found, now_ms))})

    def _listed(self, rental: SimRental) -> dict[str, Any]:
        status, offer, ready = STATUSES[rental.phase], rental.offer, rental.phase is Phase.RUNNING and rental.port
        return {
            "name": rental.label,
            "rental_id": rental.rental_id,
            "provider": "hyperstack",
            "provider_instance_id": None,
            "gpu_type": offer.gpu_raw,
            "gpu_count": offer.gpu_count,
            "instance_type": offering_of(offer),
            "location_code": offer.region or None,
            "status": status,
            "ip_address": "127.0.0.1" if ready else None,
            "hourly_cost": in_dollars(rental.rate_nusd_hour),
            "created_at": iso_utc(rental.created_ms),
            "stopped_at": None if rental.ended_ms is None else iso_utc(rental.ended_ms),
            "ssh_command": f"ssh -p {rental.port} {rental.login}@127.0.0.1" if ready else None,
            "ssh_public_key": rental.ssh_keys[0],
            "vcpu_count": offer.cpu_cores,
            "system_memory_gb": int(offer.memory_gib),
            "accumulated_cost": str(in_dollars(cost(rental, self.yard.now_ms()))),
            "is_vip": False,
            "is_spot": False,
        }

    # ── the key, account, bills ──────────────────────────────────────────────────────────────────────────────────────

    async def _show_key(self, _call: Call) -> Reply:
        return Reply(body=self._ssh_key)

    async def _add_key(self, call: Call) -> Reply:
        body = call.body()
        if not isinstance(body, dict) or not body.get("name") or not body.get("public_key"):
            return self._refused(400, "missing field `public_key`")
        if self._ssh_key is not None:
            return self._refused(409, "User already has an SSH key registered")
        now = iso_utc(self.yard.now_ms())
        key = {"id": str(uuid.uuid4()), "user_id": "u1", "created_at": now, "updated_at": now}
        self._ssh_key = key | {"name": str(body["name"]), "public_key": str(body["public_key"]).strip()}
        return Reply(status=201, body=self._ssh_key)

    async def _delete_key(self, _call: Call) -> Reply:
        if self._ssh_key is None:
            return self._refused(404, "No SSH key registered")
        self._ssh_key = None
        return Reply(status=204)

    def _left(self) -> int:
        now_ms = self.yard.now_ms()
        return CREDIT_NUSD - sum(cost(rental, now_ms) for rental in self.yard.rentals.values())

    async def _balance(self, _call: Call) -> Reply:
        return Reply(body={"balance": str(in_dollars(self._left())), "last_updated": iso_utc(self.yard.now_ms())})

    async def _usage(self, call: Call) -> Reply:
        now_ms = self.yard.now_ms()
        rows = [usage_row(rental, now_ms) for rental in reversed(self.yard.rentals.values())]
        start, limit = int(call.query.get("offset") or 0), int(call.query.get("limit") or 50)
        return Reply(body={"rentals": rows[start : start + limit], "total_count": len(rows)})


STARTED_FIELDS = ("name", "rental_id", "provider", "status", "ip_address", "ssh_command", "hourly_cost", "is_spot")


def cost(rental: SimRental, now_ms: int) -> int:
    """What a rental has cost in nano-dollars: from its creation to its end."""
    return cost_nusd(rental.rate_nusd_hour, (rental.ended_ms or now_ms) - rental.created_ms)


def usage_row(rental: SimRental, now_ms: int) -> dict[str, Any]:
    """Amounts are texts here."""
    return {
        "rental_id": rental.rental_id,
        "node_id": offering_of(rental.offer),
        "status": STATUSES[rental.phase],
        "hourly_rate": str(in_dollars(rental.rate_nusd_hour)),
        "current_cost": str(in_dollars(cost(rental, now_ms))),
        "start_time": iso_utc(rental.created_ms),
        "last_updated": iso_utc(rental.ended_ms or now_ms),
    }


def offering_of(offer: Offer) -> str:
    return str(uuid.uuid5(IDS, offer.offer_id))


def gpu_row(offer: Offer, now_ms: int) -> dict[str, Any]:
    """A host of the pool as an offering with GPUs; one that has none is given one that it does not have."""
    gpu, vram = (offer.gpu_raw, round(offer.vram_gib)) if offer.gpu_count else PRETENDED
    count = max(1, offer.gpu_count)
    return {
        "id": offering_of(offer),
        "provider": "hyperstack",
        "gpu_type": gpu,
        "gpu_memory_gb_per_gpu": vram,
        "gpu_count": count,
        "interconnect": None,
        "storage": f"{int(offer.disk_gib)}",
        "deployment_type": "vm",
        "system_memory_gb": int(offer.memory_gib),
        "vcpu_count": offer.cpu_cores,
        "region": offer.region or "nowhere",
        "hourly_rate_per_gpu": str(in_dollars(offer.price_nusd_hour) / count),
        "availability": True,
        "is_spot": False,
        "fetched_at": iso_utc(now_ms),
    }


def cpu_row(offer: Offer, now_ms: int) -> dict[str, Any]:
    return {
        "id": offering_of(offer),
        "provider": "hyperstack",
        "vcpu_count": offer.cpu_cores,
        "system_memory_gb": int(offer.memory_gib),
        "storage_gb": int(offer.disk_gib),
        "region": offer.region or "nowhere",
        "hourly_rate": str(in_dollars(offer.price_nusd_hour)),
        "availability": True,
        "fetched_at": iso_utc(now_ms),
    }


def sold_out(now_ms: int) -> dict[str, Any]:
    """An offering that is listed without being there."""
    facts = {"id": str(uuid.uuid5(IDS, "sold out")), "provider": "verda", "gpu_type": "h200", "gpu_count": 8}
    more = {"gpu_memory_gb_per_gpu": 141, "interconnect": "SXM5", "storage": None, "deployment_type": "vm"}
    machine = {"system_memory_gb": 1536, "vcpu_count": 176, "region": "FIN-01", "hourly_rate_per_gpu": "2.59"}
    return facts | more | machine | {"availability": False, "is_spot": False, "fetched_at": iso_utc(now_ms)}


def failure(status: int, code: str, message: str, now_ms: int) -> Reply:
    """Basilica's envelope of an error."""
    retryable = status >= 500 or status == 429
    error = {"code": code, "message": message, "timestamp": iso_utc(now_ms), "retryable": retryable}
    return Reply(status=status, body={"error": error})
