"""A stand-in for Shadeform's API: its paths, its error bodies, and its odd habits."""

from __future__ import annotations

import secrets
import uuid
from decimal import ROUND_UP, Decimal
from typing import Any

from jupyter_gpumarket.clock import iso_utc, text_in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import cost_nusd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.figures import Figure, figures
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "shadeform"
API = "/v1"
CENT = 10_000_000
CLOUD = "labcloud"
PRETENDED = ("A6000", 48)
NEVER = "0001-01-01T00:00:00Z"
NEEDED = ("cloud", "region", "shade_instance_type", "shade_cloud", "name")
STATUSES = {
    Phase.BOOTING: "pending",
    Phase.RUNNING: "active",
    Phase.STOPPED: "error",
    Phase.DEAD: "error",
    Phase.ENDED: "deleted",
}


class ShadeformStandIn:
    """One marketplace with one account, whose key is `key`."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key
        self._figures = figures(NAME) if show_figures else ()
        self._ssh_keys: dict[str, dict[str, Any]] = {}

    def routes(self) -> list[Route]:
        one = API + r"/instances/([^/]+)"
        return [
            Route(method="GET", pattern=API + r"/instances/types", action=self._types),
            Route(method="GET", pattern=API + r"/instances", action=self._list),
            Route(method="POST", pattern=API + r"/instances/create", action=self._create, creates=True),
            Route(method="GET", pattern=one + "/info", action=self._show),
            Route(method="POST", pattern=one + "/update", action=self._update),
            Route(method="POST", pattern=one + "/delete", action=self._delete),
            Route(method="GET", pattern=API + r"/sshkeys", action=self._list_keys),
            Route(method="POST", pattern=API + r"/sshkeys/add", action=self._add_key),
            Route(method="POST", pattern=API + r"/sshkeys/([^/]+)/delete", action=self._forget_key),
        ]

    def check_key(self, call: Call) -> Reply | None:
        """The key comes in X-API-KEY alone."""
        told = call.headers.get("x-api-key", "")
        if secrets.compare_digest(told.encode(), self._key.reveal().encode()):
            return None
        return failure(401, "UNAUTHORIZED", "Missing or invalid X-API-KEY")

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return Reply(
                status=429, body={"code": "RATE_LIMITED", "message": "slow down"}, headers={"Retry-After": "1"}
            )
        return failure(503, "UNAVAILABLE", "Service temporarily unavailable")

    def no_such_path(self, call: Call) -> Reply:
        return failure(404, "NOT_FOUND", f"no route {call.path}")

    # ── offers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _types(self, call: Call) -> Reply:
        rows = await self._rows()
        for name, value in call.query.items():
            if name in ("cloud", "shade_instance_type"):
                rows = [row for row in rows if row[name] == value]
            elif name in ("num_gpus", "gpu_type"):
                rows = [row for row in rows if str(row["configuration"][name]) == value]
            elif name == "region":
                rows = [row for row in rows if any(place["region"] == value for place in row["availability"])]
            elif name == "available":
                wanted = value == "true"
                rows = [row for row in rows if any(place["available"] is wanted for place in row["availability"])]
        if call.query.get("sort") == "price":
            rows.sort(key=lambda row: row["hourly_price"])
        return Reply(body={"instance_types": rows})

    async def _rows(self) -> list[dict[str, Any]]:
        pretend = self.faults.is_armed(Fault.WRONG_GPU)
        rows = [row_of(offer, pretend=pretend) for offer in await self.yard.free()]
        return rows + [row_of_figure(figure) for figure in self._figures]

    # ── instances ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _create(self, call: Call) -> Reply:
        body = call.body()
        missing = [name for name in NEEDED if not isinstance(body, dict) or not body.get(name)]
        if missing:
            return failure(400, "INVALID_REQUEST", f"{missing[0]} is required")
        threshold = (body.get("auto_delete") or {}).get("date_threshold")
        ends_ms = None if threshold is None else text_in_ms(str(threshold))
        if threshold is not None and ends_ms is None:
            return failure(400, "INVALID_REQUEST", "auto_delete.date_threshold is not a date")
        wanted = (body["cloud"], body["shade_instance_type"], body["region"])
        offer = next((offer for offer in await self.yard.free() if self._sold_as(offer) == wanted), None)
        if offer is None or self.faults.take(Fault.SOLD_TWICE):
            return failure(409, "OUT_OF_STOCK", "The requested instance type is not available in this region")
        key = self._ssh_keys.get(str(body.get("ssh_key_id")))
        rental = SimRental(
            rental_id=str(uuid.uuid4()),
            label=str(body["name"]),
            offer=offer,
            rate_nusd_hour=cents_of(offer) * CENT,
            disk_rate_nusd_hour=0,
            disk_gb=int(offer.disk_gib),
            own_key=secrets.token_hex(16),
            created_ms=self.yard.now_ms(),
            ssh_keys=[key["public_key"]] if key else [],
            extra={"row": row_of(offer, pretend=self.faults.is_armed(Fault.WRONG_GPU))},
        )
        self.yard.start(rental)
        self.yard.end_at(rental, ends_ms)
        return Reply(body={"id": rental.rental_id, "cloud_assigned_id": f"lab-{rental.rental_id[:8]}"})

    def _sold_as(self, offer: Offer) -> tuple[str, str, str]:
        row = row_of(offer, pretend=self.faults.is_armed(Fault.WRONG_GPU))
        return row["cloud"], row["shade_instance_type"], row["availability"][0]["region"]

    def _found(self, call: Call) -> SimRental | None:
        return self.yard.rentals.get(call.names[0])

    async def _list(self, _call: Call) -> Reply:
        """Deleted ones are not listed; their own page is there all the same."""
        present = [rental for rental in self.yard.rentals.values() if rental.phase is not Phase.ENDED]
        return Reply(body={"instances": [self._instance(rental) for rental in present]})

    async def _show(self, call: Call) -> Reply:
        found = self._found(call)
        return nowhere() if found is None else Reply(body=self._instance(found))

    async def _update(self, call: Call) -> Reply:
        found, body = self._found(call), call.body()
        if found is None or found.phase is Phase.ENDED:
            return nowhere()
        threshold = (body.get("auto_delete") or {}).get("date_threshold")
        if threshold is not None:
            ends_ms = text_in_ms(str(threshold))
            if ends_ms is None:
                return failure(400, "INVALID_REQUEST", "auto_delete.date_threshold is not a date")
            self.yard.end_at(found, ends_ms)
        if body.get("name"):
            found.label = str(body["name"])
        return Reply(body=b"")

    async def _delete(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return nowhere()
        self.yard.end(found)
        return Reply(body=b"")

    def _instance(self, rental: SimRental) -> dict[str, Any]:
        row: Any = rental.extra["row"]
        status = STATUSES[rental.phase]
        active = status == "active"
        return {
            "id": rental.rental_id,
            "cloud": row["cloud"],
            "region": row["availability"][0]["region"],
            "shade_instance_type": row["shade_instance_type"],
            "cloud_instance_type": row["cloud_instance_type"],
            "cloud_assigned_id": f"lab-{rental.rental_id[:8]}",
            "shade_cloud": True,
            "name": rental.label,
            "configuration": row["configuration"],
            "ip": "127.0.0.1" if active else "",
            "ssh_user": rental.login if active else "shadeform",
            "ssh_port": rental.port if active else 0,
            "status": status,
            "status_details": rental.detail if status == "error" else "",
            "cost_estimate": str(cost_estimate(rental, self.yard.now_ms())),
            "hourly_price": rental.rate_nusd_hour // CENT,
            "tags": [],
            "port_mappings": [],
            "created_at": iso_utc(rental.created_ms),
            "active_at": NEVER if rental.running_ms is None else iso_utc(rental.running_ms),
            "deleted_at": NEVER if rental.ended_ms is None else iso_utc(rental.ended_ms),
            "boot_time": row["boot_time"],
        }

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _list_keys(self, _call: Call) -> Reply:
        return Reply(body={"ssh_keys": list(self._ssh_keys.values())})

    async def _add_key(self, call: Call) -> Reply:
        body = call.body()
        if not isinstance(body, dict) or not body.get("name") or not body.get("public_key"):
            return failure(400, "INVALID_REQUEST", "name and public_key are required")
        key = {"id": str(uuid.uuid4()), "name": body["name"], "public_key": body["public_key"], "is_default": False}
        self._ssh_keys[key["id"]] = key
        return Reply(body={"id": key["id"]})

    async def _forget_key(self, call: Call) -> Reply:
        return nowhere() if self._ssh_keys.pop(call.names[0], None) is None else Reply(body=b"")


def cents_of(offer: Offer) -> int:
    """A pool host's price in whole cents, rounded up: Shadeform has no smaller ones."""
    return -(-offer.price_nusd_hour // CENT)


def row_of(offer: Offer, *, pretend: bool) -> dict[str, Any]:
    """A host of the pool as Shadeform lists it; `pretend` gives it a GPU that it does not have."""
    kind, memory, count = "", 0, offer.gpu_count
    if count:
        kind, memory = offer.gpu_raw.removeprefix("NVIDIA ").removeprefix("GeForce "), round(offer.vram_gib)
    if pretend:
        (kind, memory), count = PRETENDED, 1
    row = machine_type(CLOUD, cents_of(offer), kind, count, memory)
    row["configuration"] |= {
        "memory_in_gb": int(offer.memory_gib),
        "storage_in_gb": int(offer.disk_gib),
        "vcpus": offer.cpu_cores,
    }
    region = {"region": offer.region or "lab-1", "available": True, "display_name": "a lab"}
    return row | {"cloud_instance_type": offer.machine_id, "availability": [region]}


def row_of_figure(figure: Figure) -> dict[str, Any]:
    """A machine that was seen once. It is listed, and a create call finds it gone."""
    cloud = figure.source_id.partition("_")[0]
    row = machine_type(cloud, figure.price_nusd_hour // CENT, figure.gpu_raw, figure.gpu_count, round(figure.vram_gib))
    row["configuration"] |= {"memory_in_gb": int(figure.ram_gib), "vcpus": int(figure.vcpus)}
    region = {"region": figure.region, "available": True, "display_name": figure.region}
    return row | {"cloud_instance_type": figure.source_id, "availability": [region]}


def machine_type(cloud: str, cents: int, gpu: str, count: int, memory_gb: int) -> dict[str, Any]:
    kind = gpu or "CPU"
    return {
        "cloud": cloud,
        "shade_instance_type": kind if count < 2 else f"{kind}x{count}",
        "cloud_instance_type": kind,
        "configuration": {
            "memory_in_gb": 0,
            "storage_in_gb": 100,
            "vcpus": 0,
            "num_gpus": count,
            "gpu_type": gpu,
            "gpu_manufacturer": "nvidia",
            "interconnect": "pcie",
            "nvlink": False,
            "vram_per_gpu_in_gb": memory_gb,
            "os_options": ["ubuntu22.04_cuda12.2_shade_os"],
        },
        "hourly_price": cents,
        "deployment_type": "vm",
        "availability": [],
        "boot_time": {"min_boot_in_sec": 30, "max_boot_in_sec": 60},
    }


def cost_estimate(rental: SimRental, now_ms: int) -> Decimal:
    """Dollars so far: by begun seconds from when it was active to when it was deleted; an error bills on."""
    if rental.running_ms is None:
        return Decimal("0.000000")
    seconds = -((rental.running_ms - (rental.ended_ms or now_ms)) // 1000)
    nusd = cost_nusd(rental.rate_nusd_hour, max(0, seconds) * 1000)
    return in_dollars(nusd).quantize(Decimal("0.000001"), ROUND_UP)


def failure(status: int, code: str, message: str) -> Reply:
    return Reply(status=status, body={"code": code, "message": message})


def nowhere() -> Reply:
    return failure(404, "NOT_FOUND", "instance not found")
