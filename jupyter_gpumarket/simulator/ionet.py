"""A stand-in for io.net's virtual machines: prepaid hours, FastAPI's error bodies, ids as numbers and texts."""

from __future__ import annotations

import uuid
import zlib
from decimal import Decimal
from secrets import compare_digest
from typing import Any

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import MS_PER_HOUR
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "ionet"
PRETENDED = ("GeForce RTX 4090", 24)
FEE = Decimal("0.0025")
CONVERSION_FEE = Decimal("0.02")
MINUTE_MS = 60_000
CREDITS_NUSD = 100 * 1_000_000_000
ENTERPRISE = "/enterprise/v1/io-cloud/vmaas"
DEPLOY_FIELDS = {
    "resource_private_name",
    "node_pool_id",
    "duration_hours",
    "gpus_per_vm",
    "hardware_id",
    "location_ids",
    "vms_qty",
    "ssh_keys",
    "github_ids",
    "vm_image_type",
    "network_services",
}
STATUSES = {
    Phase.BOOTING: "deployment requested",
    Phase.RUNNING: "running",
    Phase.STOPPED: "failed",
    Phase.DEAD: "failed",
    Phase.ENDED: "destroyed",
}
WORDS = ["running", "completed", "failed", "deployment requested", "termination requested", "destroyed"]


class IonetStandIn:
    """One marketplace with one account, whose key is `key`. Every host of the pool is one configuration."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key

    def routes(self) -> list[Route]:
        one = ENTERPRISE + r"/deployment/([^/]+)"
        return [
            Route(method="GET", pattern=r"/v1/io-cloud/vmaas/hardware", action=self._hardware, open=True),
            Route(method="GET", pattern=r"/v1/io-explorer/network/market-snapshot", action=self._market, open=True),
            Route(method="GET", pattern=ENTERPRISE + "/hardware", action=self._hardware),
            Route(method="GET", pattern=ENTERPRISE + "/price", action=self._price),
            Route(method="POST", pattern=ENTERPRISE + "/deploy", action=self._deploy, creates=True),
            Route(method="GET", pattern=ENTERPRISE + "/deployments", action=self._list),
            Route(method="GET", pattern=one, action=self._show),
            Route(method="DELETE", pattern=one, action=self._destroy),
            Route(method="GET", pattern=one + "/vms", action=self._vms),
            Route(method="POST", pattern=one + "/extend", action=self._extend),
        ]

    def check_key(self, call: Call) -> Reply | None:
        if compare_digest(call.headers.get("x-api-key", "").encode(), self._key.reveal().encode()):
            return None
        return detail(401, "Invalid API key")

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return detail(429, "Too many requests", {"Retry-After": "1"})
        return detail(503, "Service unavailable")

    def no_such_path(self, call: Call) -> Reply:
        del call
        return detail(404, "Not Found")

    # ── the market ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _rows(self) -> list[tuple[Offer, dict[str, Any]]]:
        pretend = self.faults.is_armed(Fault.WRONG_GPU)
        return [(offer, row_of(offer, pretend=pretend)) for offer in await self.yard.free()]

    async def _hardware(self, _call: Call) -> Reply:
        """Rows that nobody can rent stand among the others."""
        rows = [row for _, row in await self._rows()]
        more = {"vram_per_card": 80, "interconnect": "sxm5", "nvlink": True, "storage": 2000, "vcpu": 176}
        odd = {"name": "H100", "num_cards": 8, "supplier": "external", "sold_out": True, "price": 27.88} | more
        odd |= {"id": "8H100.80S.176V__FI", "deploy_id": "8H100.80S.176V", "memory": 1480, "location": "FI"}
        return Reply(body={"data": {"hardware": [*rows, odd, odd | {"id": "x__1", "sold_out": False, "price": 0}]}})

    async def _market(self, _call: Call) -> Reply:
        """Dollars for one card and hour, beside the list of configurations."""
        rows = [row for _, row in await self._rows() if row["num_cards"]]
        told = [
            {"id": n, "hardware_name": f"NVIDIA {row['name']}", "brand_name": "NVIDIA", "total": 1, "hired": 0}
            | {"idle": 1, "available": 1, "busy_percent": 0, "is_trending": False}
            | {"price": row["price"] / row["num_cards"]}
            for n, row in enumerate(rows)
        ]
        return Reply(body={"data": told, "status": "succeeded"})

    async def _price(self, call: Call) -> Reply:
        asked = call.query
        names = ("location_ids", "hardware_id", "currency", "duration_hours", "gpus_per_vm", "replica_count")
        for name in names:
            if name not in asked:
                return wrong("query", name, "missing")
        rows = [row for _, row in await self._rows() if str(row["deploy_id"]) == asked["hardware_id"]]
        rows = [row for row in rows if max(1, row["num_cards"]) == int(asked["gpus_per_vm"])]
        base = (rows[0]["price"] if rows else Decimal(1)) * int(asked["duration_hours"])
        fee, conversion = base * FEE, base * CONVERSION_FEE if asked["currency"] == "usdc" else Decimal(0)
        told = {
            "replica_count": int(asked["replica_count"]),
            "gpus_per_vm": int(asked["gpus_per_vm"]),
            "available_replica_count": [len(rows)],
            "discount": Decimal(0),
            "ionet_fee": fee,
            "ionet_fee_percent": FEE * 100,
            "currency_conversion_fee": conversion,
            "currency_conversion_fee_percent": CONVERSION_FEE * 100,
            "total_cost_usdc": base + fee + conversion,
        }
        return Reply(body={"data": told})

    # ── deployments ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _deploy(self, call: Call) -> Reply:
        body = call.body()
        refused = unfit(body)
        if refused is not None:
            return refused
        if any(r.label == body["resource_private_name"] for r in self.yard.rentals.values()):
            return detail(409, "Resource name is already used")
        wanted = (body["hardware_id"], body.get("location_ids"), body["gpus_per_vm"])
        rows = [
            (offer, row)
            for offer, row in await self._rows()
            if (row["deploy_id"], [row["location"]], max(1, row["num_cards"])) == wanted
        ]
        if self.faults.take(Fault.SOLD_TWICE) or not rows:
            return detail(400, "Selected hardware is not available")
        offer, row = rows[0]
        hours = body["duration_hours"]
        if in_nusd(row["price"]) * hours > CREDITS_NUSD:
            return detail(402, "Insufficient credits")
        rental = SimRental(
            rental_id=str(uuid.uuid4()),
            label=body["resource_private_name"],
            offer=offer,
            rate_nusd_hour=offer.price_nusd_hour,
            disk_rate_nusd_hour=0,
            disk_gb=100,
            own_key=uuid.uuid4().hex,
            created_ms=self.yard.now_ms(),
            ssh_keys=list((body.get("ssh_keys") or {}).values()),
            extra={"hours": hours, "row": row, "keys": body.get("ssh_keys") or {}},
        )
        self.yard.start(rental)
        self._set_timer(rental)
        return Reply(body={"status": "deployment requested", "deployment_id": rental.rental_id})

    def _set_timer(self, rental: SimRental) -> None:
        """It ends with the hours that were paid."""
        self.yard.end_at(rental, rental.created_ms + hours_of(rental) * MS_PER_HOUR)

    def _found(self, call: Call) -> SimRental | None:
        return self.yard.rentals.get(call.names[0])

    async def _list(self, call: Call) -> Reply:
        """Everything that ever was, in pages that begin with 0."""
        page, size = int(call.query.get("page") or 0), min(100, int(call.query.get("page_size") or 10))
        wanted = call.query.get("status")
        rentals = [r for r in self.yard.rentals.values() if wanted in (None, STATUSES[r.phase])]
        rows = [self._listed(rental) for rental in rentals[page * size : (page + 1) * size]]
        return Reply(body={"data": {"deployments": rows, "total": len(rentals), "statuses": WORDS}})

    def _listed(self, rental: SimRental) -> dict[str, Any]:
        row: Any = rental.extra["row"]
        served, left = self._minutes(rental)
        return {
            "id": rental.rental_id,
            "status": STATUSES[rental.phase],
            "name": rental.label,
            "completed_percent": percent(served, left),
            "hardware_quantity": row["num_cards"],
            "brand_name": "NVIDIA",
            "hardware_name": row["name"],
            "compute_minutes_served": served,
            "compute_minutes_remaining": left,
        }

    def _minutes(self, rental: SimRental) -> tuple[int, int]:
        """Whole minutes used and left; they count from when it runs."""
        total = hours_of(rental) * 60
        if (computed := rental.computed_ms) is None:
            return 0, total
        served = min(total, ((computed[1] or self.yard.now_ms()) - computed[0]) // MINUTE_MS)
        return served, total - served

    async def _show(self, call: Call) -> Reply:
        found = self._found(call)
        return nowhere() if found is None else Reply(body={"data": self._details(found)})

    def _details(self, rental: SimRental) -> dict[str, Any]:
        row: Any = rental.extra["row"]
        served, left = self._minutes(rental)
        per_hour = in_dollars(rental.rate_nusd_hour) * (1 + FEE + CONVERSION_FEE)
        computed = rental.computed_ms
        ended_ms = rental.ended_ms if rental.phase is Phase.ENDED else None
        return {
            "id": rental.rental_id,
            "status": STATUSES[rental.phase],
            "created_at": iso_utc(rental.created_ms),
            "started_at": None if computed is None else iso_utc(computed[0]),
            "finished_at": None if ended_ms is None else iso_utc((computed or (0, 0))[1] or ended_ms),
            "amount_paid": per_hour * hours_of(rental),
            "completed_percent": percent(served, left),
            "total_gpus": row["num_cards"],
            "gpus_per_vm": row["num_cards"],
            "total_vms": 1,
            "hardware_name": row["name"],
            "hardware_id": row["deploy_id"],
            "locations": [{"id": 1, "iso2": row["location"], "name": row["location"]}],
            "brand_name": "NVIDIA",
            "compute_minutes_served": served,
            "compute_minutes_remaining": left,
            "ssh_keys": rental.extra["keys"],
            "github_ids": [],
        }

    async def _vms(self, call: Call) -> Reply:
        """No machine is listed before it runs."""
        found = self._found(call)
        if found is None:
            return nowhere()
        row: Any = found.extra["row"]
        worker = {
            "device_id": str(uuid.UUID(int=zlib.crc32(found.rental_id.encode()))),
            "vm_id": "vm-1",
            "hardware": row["name"],
            "brand_name": "NVIDIA",
            "created_at": iso_utc(found.created_ms),
            "uptime_percent": 100.0,
            "gpus_per_vm": row["num_cards"],
            "status": "running",
            "vm_events": None,
            "network_services": {},
            "ssh_access": f"ssh {found.login}@127.0.0.1 -p {found.port}",
            "is_external": False,
        }
        workers = [worker] if found.phase is Phase.RUNNING and found.port else []
        return Reply(body={"data": {"total": len(workers), "workers": workers}})

    async def _destroy(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return nowhere()
        self.yard.end(found)
        return Reply(body={"status": "termination requested", "deployment_id": found.rental_id})

    async def _extend(self, call: Call) -> Reply:
        found, hours = self._found(call), call.body().get("duration_hours")
        if found is None:
            return nowhere()
        if not isinstance(hours, int) or hours < 1:
            return wrong("body", "duration_hours", "greater_than")
        if found.phase is not Phase.RUNNING:
            return detail(400, "Deployment cannot be extended")
        found.extra["hours"] = hours_of(found) + hours
        self._set_timer(found)
        return Reply(body={"data": self._details(found)})


def hours_of(rental: SimRental) -> int:
    hours = rental.extra["hours"]
    assert isinstance(hours, int)
    return hours


def in_nusd(dollars: Decimal) -> int:
    return int(dollars * 1_000_000_000)


def percent(served: int, left: int) -> float:
    return round(100 * served / max(1, served + left), 2)


def row_of(offer: Offer, *, pretend: bool) -> dict[str, Any]:
    """A host of the pool as a configuration; without a GPU it has no cards and no name, as such rows have there."""
    name, memory = PRETENDED if pretend else (offer.gpu_raw.removeprefix("NVIDIA "), round(offer.vram_gib))
    cards = 1 if pretend else offer.gpu_count
    number = zlib.crc32(offer.offer_id.encode()) % 10_000
    return {
        "id": f"{number}__{cards}",
        "deploy_id": number,
        "name": name if cards else "",
        "num_cards": cards,
        "supplier": "internal",
        "sold_out": False,
        "price": in_dollars(offer.price_nusd_hour),
        "vram_per_card": memory if cards else None,
        "interconnect": None,
        "nvlink": False,
        "storage": int(offer.disk_gib),
        "vcpu": offer.cpu_cores,
        "memory": int(offer.memory_gib),
        "location": offer.country or "SE",
    }


def unfit(body: Any) -> Reply | None:
    """Why a deploy body is refused before anything is looked for."""
    if not isinstance(body, dict):
        return wrong("body", "", "dict_type")
    for name in ("resource_private_name", "duration_hours", "gpus_per_vm", "hardware_id"):
        if body.get(name) in (None, ""):
            return wrong("body", name, "missing")
    if unknown := set(body) - DEPLOY_FIELDS:
        return wrong("body", min(unknown), "extra_forbidden")
    for name, most in (("duration_hours", 8760), ("gpus_per_vm", 8)):
        if not isinstance(body[name], int) or not 1 <= body[name] <= most:
            return wrong("body", name, "less_than_equal")
    keys = body.get("ssh_keys") or {}
    if not isinstance(keys, dict) or not all(str(key).startswith(("ssh-", "ecdsa-")) for key in keys.values()):
        return wrong("body", "ssh_keys", "value_error")
    return None


def wrong(where: str, name: str, kind: str) -> Reply:
    return Reply(status=422, body={"detail": [{"loc": [where, name], "msg": kind, "type": kind}]})


def detail(status: int, words: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status=status, body={"detail": words}, headers=headers or {})


def nowhere() -> Reply:
    return detail(404, "Deployment not found")
