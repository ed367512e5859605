"""A stand-in for Targon (Bittensor's subnet 4): its paths, its errors, and that registering is not deploying."""

from __future__ import annotations

import secrets
import zlib
from typing import Any

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import cost_nusd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "targon"
CREDIT_NUSD = 100 * 1_000_000_000
PRETENDED = "H200"
STATES = {
    Phase.BOOTING: "provisioning",
    Phase.RUNNING: "running",
    Phase.STOPPED: "suspended",
    Phase.DEAD: "error",
    Phase.ENDED: "deleted",
}
# Kinds that the real inventory has, and that are sold out here.
SOLD_OUT = {
    "h100-small": (("H100", 1, 24, 196_608, 512), 1.9),
    "h200-xlarge": (("H200", 8, 192, 1_572_864, 4096), 19.2),
    "rtx4090-small": (("RTX4090", 1, 8, 49_152, 256), 0.35),
}


class TargonStandIn:
    """One marketplace with one account, whose key is `key`. `show_figures` lists kinds of which there is none."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key
        self._show_figures = show_figures
        self._ssh_keys: dict[str, dict[str, str]] = {}
        # What was registered: the workload's body, and its rental once it was deployed.
        self._workloads: dict[str, dict[str, Any]] = {}

    def routes(self) -> list[Route]:
        workload, key = r"/tha/v2/workloads/([^/]+)", r"/tha/v2/ssh-keys/([^/]+)"
        return [
            Route(method="GET", pattern=r"/tha/v2/inventory", action=self._inventory, open=True),
            Route(method="POST", pattern=r"/tha/v2/workloads", action=self._register),
            Route(method="GET", pattern=r"/tha/v2/workloads", action=self._list),
            Route(method="GET", pattern=workload, action=self._show),
            Route(method="DELETE", pattern=workload, action=self._delete),
            Route(method="POST", pattern=workload + "/deploy", action=self._deploy, creates=True),
            Route(method="POST", pattern=workload + "/suspend", action=self._suspend),
            Route(method="GET", pattern=workload + "/state", action=self._state),
            Route(method="POST", pattern=r"/tha/v2/ssh-keys", action=self._add_key),
            Route(method="GET", pattern=r"/tha/v2/ssh-keys", action=self._list_keys),
            Route(method="DELETE", pattern=key, action=self._delete_key),
            Route(method="GET", pattern=r"/tha/v2/me/credits", action=self._credits),
        ]

    def check_key(self, call: Call) -> Reply | None:
        if secrets.compare_digest(call.key.encode(), self._key.reveal().encode()):
            return None
        return failure(401, "unauthorized", "invalid API key")

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return failure(429, "rate_limited", "too many requests", {"Retry-After": "1"})
        return failure(503, "internal", "try again later")

    def no_such_path(self, call: Call) -> Reply:
        return failure(404, "not_found", f"no route {call.path}")

    async def _inventory(self, call: Call) -> Reply:
        pretend = self.faults.is_armed(Fault.WRONG_GPU)
        rows: dict[str, dict[str, Any]] = {}
        for offer in await self.yard.free():
            row = kind_of(offer, pretend=pretend)
            rows.setdefault(row["name"], row)["available"] += 1
        listed = list(rows.values()) + (
            [kind_row(name, *kind) for name, kind in SOLD_OUT.items()] if self._show_figures else []
        )
        if "gpu" in call.query:
            listed = [row for row in listed if row["gpu"] == (call.query["gpu"] == "true")]
        return Reply(body=listed)

    # ── workloads ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _register(self, call: Call) -> Reply:
        """Nothing is reserved and nothing costs."""
        body = call.body()
        if not isinstance(body, dict) or not all(body.get(name) for name in ("name", "image", "resource_name", "type")):
            return failure(400, "invalid_request", "name, image, resource_name and type are required")
        if unknown := [uid for uid in body.get("ssh_keys") or [] if uid not in self._ssh_keys]:
            return failure(400, "invalid_request", f"unknown ssh key {unknown[0]}")
        uid = f"wrk-{secrets.token_hex(6)}"
        self._workloads[uid] = {"body": body, "rental": None, "created_ms": self.yard.now_ms()}
        return Reply(status=201, body=self._workload(uid))

    async def _deploy(self, call: Call) -> Reply:
        uid, held = call.names[0], self._present(call)
        if held is None:
            return nowhere()
        if held["rental"] is not None:
            return failure(409, "invalid_state", "the workload is deployed already")
        body, pretend = held["body"], self.faults.is_armed(Fault.WRONG_GPU)
        fitting = [o for o in await self.yard.free() if kind_of(o, pretend=pretend)["name"] == body["resource_name"]]
        if self.faults.take(Fault.SOLD_TWICE) or not fitting:
            return failure(409, "insufficient_capacity", f"no {body['resource_name']} available")
        if self._left() <= 0:
            return failure(402, "insufficient_credits", "insufficient credits")
        offer = fitting[0]
        rental = SimRental(
            rental_id=uid,
            label=str(body["name"]),
            offer=offer,
            rate_nusd_hour=offer.price_nusd_hour,
            disk_rate_nusd_hour=0,
            disk_gb=0,
            own_key=secrets.token_hex(8),
            created_ms=self.yard.now_ms(),
            ssh_keys=[self._ssh_keys[key]["public_key_raw"] for key in body.get("ssh_keys") or []],
        )
        held["rental"] = rental
        self.yard.start(rental)
        return Reply(status=202, body=self._workload(uid))

    def _present(self, call: Call) -> dict[str, Any] | None:
        held = self._workloads.get(call.names[0])
        if held is None or (held["rental"] is not None and held["rental"].phase is Phase.ENDED):
            return None
        return held

    async def _list(self, call: Call) -> Reply:
        """Oldest first, deleted ones too, in pages whose cursor is the last uid."""
        uids, cursor = list(self._workloads), call.query.get("cursor")
        limit = int(call.query.get("limit") or 50)
        start = uids.index(cursor) + 1 if cursor in uids else 0
        page = uids[start : start + limit]
        more = start + limit < len(uids)
        rows = [self._workload(uid) for uid in page]
        return Reply(body={"items": rows, "next_cursor": page[-1] if more else None})

    async def _show(self, call: Call) -> Reply:
        return nowhere() if self._present(call) is None else Reply(body=self._workload(call.names[0]))

    async def _state(self, call: Call) -> Reply:
        if self._present(call) is None:
            return nowhere()
        whole = self._workload(call.names[0])
        return Reply(body={"uid": whole["uid"], "workload_type": "RENTAL", **whole["state"]})

    async def _delete(self, call: Call) -> Reply:
        held = self._present(call)
        if held is None:
            return nowhere()
        if held["rental"] is None:
            del self._workloads[call.names[0]]
        else:
            self.yard.end(held["rental"])
        return Reply(status=204)

    async def _suspend(self, call: Call) -> Reply:
        held = self._present(call)
        if held is None or held["rental"] is None:
            return nowhere()
        self.yard.stop(held["rental"], "suspended by the user")
        return Reply(body=self._workload(call.names[0]))

    def _workload(self, uid: str) -> dict[str, Any]:
        held = self._workloads[uid]
        body, rental = held["body"], held["rental"]
        status = "registered" if rental is None else STATES[rental.phase]
        running = status == "running" and rental.port
        state: dict[str, Any] = {
            "status": status,
            "message": rental.detail if rental is not None and rental.phase is Phase.DEAD else "",
            "urls": [],
            "public_ip": "127.0.0.1" if running else None,
            "ssh_port": rental.port if running else None,
            "ready_replicas": 1 if running else 0,
            "total_replicas": 1,
            "updated_at": iso_utc(self.yard.now_ms()),
        }
        return {
            "uid": uid,
            "name": body["name"],
            "type": body["type"],
            "image": body["image"],
            "resource_name": body["resource_name"],
            "ports": body.get("ports") or [],
            "envs": body.get("envs") or [],
            "commands": body.get("commands") or [],
            "args": body.get("args") or [],
            "volumes": [],
            "ssh_keys": [self._ssh_keys[key] for key in body.get("ssh_keys") or [] if key in self._ssh_keys],
            "state": state,
            "cost_per_hour": None if rental is None else in_dollars(rental.rate_nusd_hour),
            "created_at": iso_utc(held["created_ms"]),
            "updated_at": iso_utc(self.yard.now_ms()),
        }

    # ── keys, account ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _add_key(self, call: Call) -> Reply:
        body = call.body()
        if not isinstance(body, dict) or not body.get("name") or not body.get("ssh_key"):
            return failure(400, "invalid_request", "name and ssh_key are required")
        uid = f"shk-{secrets.token_hex(6)}"
        self._ssh_keys[uid] = {"uid": uid, "name": str(body["name"]), "public_key_raw": str(body["ssh_key"]).strip()}
        return Reply(status=201, body=self._ssh_keys[uid])

    async def _list_keys(self, _call: Call) -> Reply:
        return Reply(body={"items": list(self._ssh_keys.values()), "next_cursor": None})

    async def _delete_key(self, call: Call) -> Reply:
        return nowhere() if self._ssh_keys.pop(call.names[0], None) is None else Reply(status=204)

    def _left(self) -> int:
        now_ms = self.yard.now_ms()
        return CREDIT_NUSD - sum(cost(rental, now_ms) for rental in self.yard.rentals.values())

    async def _credits(self, _call: Call) -> Reply:
        return Reply(body={"credits": in_dollars(self._left()), "currency": "USD"})


def cost(rental: SimRental, now_ms: int) -> int:
    """What a workload has cost in nano-dollars: from its deployment to its end."""
    return cost_nusd(rental.rate_nusd_hour, (rental.ended_ms or now_ms) - rental.created_ms)


def kind_of(offer: Offer, *, pretend: bool) -> dict[str, Any]:
    """The kind of machine that a host of the pool is sold as; `pretend` gives it a GPU that it does not have."""
    gpu, count = (PRETENDED, 1) if pretend else (offer.gpu_raw, offer.gpu_count)
    size = zlib.crc32(f"{offer.price_nusd_hour}/{offer.cpu_cores}/{count}".encode()) % 10_000
    short = gpu.upper().replace("NVIDIA", "").replace("GEFORCE", "").replace(" ", "") if count else ""
    facts = (short, count, offer.cpu_cores, int(offer.memory_gib * 1024), int(offer.disk_gib))
    return kind_row(f"{short.lower() or 'cpu'}-{size}", facts, in_dollars(offer.price_nusd_hour))


def kind_row(name: str, facts: tuple[str, int, int, int, int], cost_per_hour: Any) -> dict[str, Any]:
    """One kind of machine as the inventory has it: GPU, GPUs, processors, MiB of memory, GB of storage."""
    gpu, count, vcpu, memory, storage = facts
    spec = {"gpu_type": gpu or None, "gpu_count": count, "vcpu": vcpu, "memory": memory, "storage": storage}
    return {
        "name": name,
        "display_name": f"{count}x {gpu}" if count else f"{vcpu} vCPU",
        "description": "",
        "type": "rental",
        "gpu": bool(count),
        "spec": spec,
        "cost_per_hour": cost_per_hour,
        "available": 0,
    }


def failure(status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status=status, body={"error": message, "reason": reason}, headers=headers or {})


def nowhere() -> Reply:
    return failure(404, "not_found", "workload not found")
