"""A stand-in for Hyperbolic: nodes of suppliers and virtual machines, prices in cents, ssh commands for people."""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import Any

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import MS_PER_HOUR
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.figures import Figure, figures
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "hyperbolic"
CLUSTER = "circular-snapdragon-worm"
PRETENDED = ("NVIDIA-GeForce-RTX-4090", 24_564)
CENTS = 100
CREDIT_CENTS = 10_000
VMS = "/v2/marketplace/virtual-machine-rentals"
STATUSES = {
    Phase.BOOTING: "starting",
    Phase.RUNNING: "online",
    Phase.STOPPED: "failed",
    Phase.DEAD: "error",
    Phase.ENDED: "terminated",
}


class HyperbolicStandIn:
    """One marketplace with one account, whose key is `key`. Hosts of the pool are nodes, and on wish virtual ones."""

    name = NAME

    def __init__(
        self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False, with_vms: bool = False
    ) -> None:
        self.yard = yard
        self.faults = faults
        self.tells_metadata = True
        self._key = key
        self._figures = figures(NAME) if show_figures else ()
        self._with_vms = with_vms
        self._next_vm = 41

    def routes(self) -> list[Route]:
        nodes, instances = "/v1/marketplace", "/v1/marketplace/instances"
        return [
            Route(method="POST", pattern=nodes, action=self._nodes, open=True),
            Route(method="POST", pattern=instances + "/create", action=self._rent_node, creates=True),
            Route(method="GET", pattern=instances, action=self._instances),
            Route(method="GET", pattern=instances + "/history", action=self._history),
            Route(method="POST", pattern=instances + "/terminate", action=self._end_node),
            Route(method="GET", pattern="/v2/marketplace/virtual-machine-options", action=self._vm_options),
            Route(method="POST", pattern=VMS, action=self._rent_vm, creates=True),
            Route(method="GET", pattern=VMS, action=self._vms),
            Route(method="POST", pattern=VMS + "/terminate", action=self._end_vm),
            Route(method="GET", pattern="/billing/get_current_balance", action=self._balance),
        ]

    def check_key(self, call: Call) -> Reply | None:
        if secrets.compare_digest(call.key.encode(), self._key.reveal().encode()):
            return None
        return refused(401, "Could not validate credentials")

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return refused(429, "Too many requests", {"Retry-After": "1"})
        return refused(500, "Internal server error")

    def no_such_path(self, call: Call) -> Reply:
        return Reply(status=404, body=f"Cannot {call.method} {call.path}".encode(), content_type="text/plain")

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _nodes(self, _call: Call) -> Reply:
        pretend = self.faults.is_armed(Fault.WRONG_GPU)
        rows = [node_row(offer, pretend=pretend) for offer in await self.yard.free()]
        seen = [figure_row(figure, number) for number, figure in enumerate(self._figures)]
        return Reply(body={"instances": [*rows, *seen]})

    async def _rent_node(self, call: Call) -> Reply:
        body = call.body()
        if not isinstance(body, dict) or not body.get("cluster_name") or not body.get("node_name"):
            return refused(400, "cluster_name and node_name are required")
        hosts = [offer for offer in await self.yard.free() if node_name(offer) == body["node_name"]]
        if self.faults.take(Fault.SOLD_TWICE) or not hosts or body["cluster_name"] != CLUSTER:
            return refused(400, "Node is not available")
        rental = self._start(hosts[0], secrets.token_hex(4) + "-rose-pelican", body, vm=False)
        return Reply(body={"status": "success", "instance_id": rental.rental_id, "message": "renting"})

    def _start(self, host: Offer, rental_id: str, body: dict[str, Any], *, vm: bool) -> SimRental:
        metadata = body.get("userMetadata")
        key = str(body.get("publicKey") or "").strip()
        rental = SimRental(
            rental_id=rental_id,
            label=str(((metadata or {}).get("gpumarket") or {}).get("label", "")),
            offer=host,
            rate_nusd_hour=host.price_nusd_hour,
            disk_rate_nusd_hour=0,
            disk_gb=100,
            own_key=secrets.token_hex(16),
            created_ms=self.yard.now_ms(),
            ssh_keys=[key] if key else [],
            extra={"vm": vm, "metadata": metadata, "count": int(body.get("gpu_count") or body.get("gpuCount") or 1)},
        )
        self.yard.start(rental)
        return rental

    def _present(self, *, vm: bool) -> list[SimRental]:
        return [r for r in self.yard.rentals.values() if r.extra["vm"] is vm and r.phase is not Phase.ENDED]

    async def _instances(self, _call: Call) -> Reply:
        """What has ended has vanished; an instance without an address has null for its command."""
        return Reply(body={"instances": [self._instance(rental) for rental in self._present(vm=False)]})

    def _instance(self, rental: SimRental) -> dict[str, Any]:
        row = node_row(rental.offer, pretend=self.faults.is_armed(Fault.WRONG_GPU))
        node = {
            "id": row["id"],
            "status": STATUSES[rental.phase],
            "gpu_count": rental.extra["count"],
            "hardware": row["hardware"],
            "pricing": {"price": {"amount": in_cents(rental.rate_nusd_hour), "period": "hourly"}},
        }
        began = rental.running_ms or rental.created_ms
        return {
            "id": rental.rental_id,
            "start": iso_utc(began),
            "end": None,
            "created": iso_utc(rental.created_ms),
            "sshCommand": command(rental),
            "portMappings": [],
            "instance": node,
            "userMetadata": rental.extra["metadata"] if self.tells_metadata else None,
        }

    async def _history(self, _call: Call) -> Reply:
        ended = [r for r in self.yard.rentals.values() if r.extra["vm"] is False and r.phase is Phase.ENDED]
        rows = [
            {
                "instance_name": rental.rental_id,
                "started_at": iso_utc(rental.running_ms or rental.created_ms),
                "terminated_at": iso_utc(rental.stopped_ms or rental.ended_ms or 0),
                "price": {"amount": in_cents(rental.rate_nusd_hour)},
                "hardware": node_row(rental.offer, pretend=False)["hardware"],
                "gpu_count": rental.extra["count"],
            }
            for rental in ended
        ]
        return Reply(body={"instance_history": rows})

    async def _end_node(self, call: Call) -> Reply:
        return self._end(str(call.body().get("id")))

    def _end(self, rental_id: str) -> Reply:
        found = self.yard.rentals.get(rental_id)
        if found is None or found.phase is Phase.ENDED:
            return Reply(status=404, body=b"instance not found", content_type="text/plain")
        self.yard.end(found)
        return Reply(body={"status": "success"})

    # ── virtual machines ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _vm_hosts(self) -> list[Offer]:
        return await self.yard.free() if self._with_vms else []

    async def _vm_options(self, _call: Call) -> Reply:
        hosts = await self._vm_hosts()
        best = min((host.price_nusd_hour for host in hosts), default=None)
        return Reply(body=[] if best is None else [{"gpuCount": 1, "costPerHour": in_cents(best)}])

    async def _rent_vm(self, call: Call) -> Reply:
        body = call.body()
        hosts = sorted(await self._vm_hosts(), key=lambda host: host.price_nusd_hour)
        if str(body.get("gpuCount")) != "1" or self.faults.take(Fault.SOLD_TWICE) or not hosts:
            return refused(400, "No available virtual machine")
        self._next_vm += 1
        return Reply(body=self._vm(self._start(hosts[0], str(self._next_vm), body, vm=True)))

    async def _vms(self, _call: Call) -> Reply:
        """Also those that have ended."""
        return Reply(body=[self._vm(rental) for rental in self.yard.rentals.values() if rental.extra["vm"]])

    def _vm(self, rental: SimRental) -> dict[str, Any]:
        metadata = rental.extra["metadata"] if self.tells_metadata else None
        ended_ms = rental.ended_ms
        return {
            "id": int(rental.rental_id),
            "createdAt": iso_utc(rental.created_ms),
            "startedAt": None if rental.running_ms is None else iso_utc(rental.running_ms),
            "terminatedAt": None if ended_ms is None else iso_utc(ended_ms),
            "externalId": f"ext-{rental.rental_id}",
            "costPerHour": in_cents(rental.rate_nusd_hour),
            "status": STATUSES[rental.phase].replace("online", "running"),
            "meta": {"name": "vm", "ssh_command": command(rental), "userMetadata": metadata},
        }

    async def _end_vm(self, call: Call) -> Reply:
        return self._end(str(call.body().get("rentalId")))

    async def _balance(self, _call: Call) -> Reply:
        now_ms = self.yard.now_ms()
        spent = Decimal(0)
        for rental in self.yard.rentals.values():
            if (computed := rental.computed_ms) is not None:
                hours = Decimal((computed[1] or now_ms) - computed[0]) / MS_PER_HOUR
                spent += in_cents(rental.rate_nusd_hour) * hours
        return Reply(body={"credits": round(CREDIT_CENTS - spent, 4)})


def node_name(offer: Offer) -> str:
    """A host as a node of its supplier."""
    return "node-" + "".join(c if c.isalnum() else "-" for c in offer.machine_id.lower())


def node_row(offer: Offer, *, pretend: bool) -> dict[str, Any]:
    """A host of the pool as Hyperbolic lists it; prices are for one GPU."""
    model, memory_mb = PRETENDED if pretend else (offer.gpu_raw.replace(" ", "-"), round(offer.vram_gib * 1024))
    count = 1 if pretend else offer.gpu_count
    gpu = {"model": model, "ram": memory_mb, "interface": "PCIeX16", "clock_speed": 1000, "compute_power": 82}
    return {
        "id": node_name(offer),
        "status": "node_ready",
        "cluster_name": CLUSTER,
        "supplier_id": "sup_1",
        "reserved": False,
        "has_persistent_storage": True,
        "gpus_total": count,
        "gpus_reserved": 0,
        "location": {"region": "region-1"},
        "hardware": {
            "cpus": [{"model": "amd64", "cores": offer.cpu_cores, "virtual_cores": offer.cpu_cores}],
            "gpus": [gpu] * count,
            "storage": [{"capacity": offer.disk_gib}],
            "ram": [{"capacity": offer.memory_gib}],
        },
        "pricing": {
            "price": {
                "amount": in_cents(offer.price_nusd_hour) / max(1, count),
                "period": "hourly",
                "agent": "platform",
            }
        },
    }


def figure_row(figure: Figure, number: int) -> dict[str, Any]:
    """A machine that was seen once. Whoever asks for it finds it taken."""
    gpu = {"model": figure.gpu_raw, "ram": round(figure.vram_gib * 1024), "interface": "PCIeX16"}
    return {
        "id": f"seen-node-{number}",
        "status": "node_ready",
        "cluster_name": CLUSTER,
        "supplier_id": "sup_2",
        "reserved": False,
        "gpus_total": figure.gpu_count,
        "gpus_reserved": 0,
        "location": {"region": figure.region or "default"},
        "hardware": {
            "cpus": [{"model": "amd64", "cores": figure.vcpus, "virtual_cores": figure.vcpus}],
            "gpus": [gpu] * figure.gpu_count,
            "storage": [{"capacity": 1000}],
            "ram": [{"capacity": figure.ram_gib}],
        },
        "pricing": {"price": {"amount": in_cents(figure.price_nusd_hour) / figure.gpu_count, "period": "hourly"}},
    }


def command(rental: SimRental) -> str | None:
    if rental.phase is not Phase.RUNNING or not rental.port:
        return None
    return f"ssh {rental.login}@127.0.0.1 -p {rental.port}"


def in_cents(nusd: int) -> Decimal:
    return in_dollars(nusd) * CENTS


def refused(status: int, words: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status=status, body={"message": words}, headers=headers or {})
