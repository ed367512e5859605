"""A stand-in for Dispersed, the Render network's compute: signed calls, jobs and their runs, hours billed in full."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import uuid
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, quote

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import MS_PER_HOUR
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "dispersed"
REGION = "eu-central-1"
PRETENDED = ("NVIDIA RTX 4090", 24)
TOLERANCE_MS = 300_000
LEAST_ASSIGN_MS = 300_000
LEAST_START_MS = 120_000
NONCE = re.compile(r"[0-9a-f]{32}")
STATUSES = {
    Phase.BOOTING: "PREPARING",
    Phase.RUNNING: "RUNNING",
    Phase.STOPPED: "FAILED",
    Phase.DEAD: "FAILED",
    Phase.ENDED: "CANCELLED",
}
SOLD_OUT = ("NVIDIA RTX 5090", 32, "0.69")


class DispersedStandIn:
    """One marketplace with one account, whose key is a pair `pk:sk`. `show_figures` lists a class without machines."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False) -> None:
        self.yard = yard
        self.faults = faults
        self._public, _, private = key.reveal().partition(":")
        self._private = Secret(private)
        self._show_figures = show_figures
        self._nonces: set[str] = set()

    def routes(self) -> list[Route]:
        job = r"/v1/jobs/([^/]+)"
        return [
            Route(method="GET", pattern=r"/v1/compute/offers", action=self._offers),
            Route(method="POST", pattern=r"/v1/jobs", action=self._create, creates=True),
            Route(method="GET", pattern=r"/v1/jobs", action=self._list),
            Route(method="GET", pattern=job, action=self._show),
            Route(method="PUT", pattern=job + "/cancel", action=self._cancel),
            Route(method="GET", pattern=r"/v1/job-runs", action=self._runs),
            Route(method="GET", pattern=r"/v1/compute/ledger/transactions", action=self._transactions),
        ]

    def check_key(self, call: Call) -> Reply | None:
        """The signature covers everything; it is good for five minutes, and once."""
        told = call.headers
        time, nonce = told.get("x-time", ""), told.get("x-nonce", "")
        parts = (told.get("x-api-key", ""), time, nonce, call.method, call.path, canonical(call.raw_query))
        said = "|".join((*parts, hashlib.sha256(call.content).hexdigest()))
        good = hmac.new(self._private.reveal().encode(), said.encode(), hashlib.sha256).hexdigest()
        if parts[0] != self._public or not hmac.compare_digest(good, told.get("x-signature", "")):
            return failure(401, "INVALID_SIGNATURE", "The signature does not fit the request")
        if not time.isdecimal() or abs(int(time) - self.yard.now_ms()) > TOLERANCE_MS:
            return failure(401, "INVALID_TIMESTAMP", "The request is too old or from the future")
        if not NONCE.fullmatch(nonce) or nonce in self._nonces:
            return failure(401, "INVALID_NONCE", "The nonce was used before")
        self._nonces.add(nonce)
        return None

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return failure(429, "RATE_LIMITED", "Too many requests", {"Retry-After": "1"})
        return failure(503, "UNAVAILABLE", "Try again later")

    def no_such_path(self, call: Call) -> Reply:
        return failure(404, "NOT_FOUND", f"No route {call.path}")

    # ── offers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _offers(self, call: Call) -> Reply:
        """Classes of equal machines, not machines."""
        classes: dict[str, dict[str, Any]] = {}
        for offer in await self.yard.free():
            row = self._class(offer)
            known = classes.setdefault(row["offer_id"], row)
            known["availability"]["node_count"] += 1
        rows = list(classes.values())
        if self._show_figures:
            name, vram, rate = SOLD_OUT
            hardware = {"cpu_cores": 16, "gpu_count": 1, "ram_gib": 64, "storage_gib": 500}
            rows.append(class_row("off_sold_out", hardware, (name, vram), Decimal(rate)))
        if wanted := call.query.get("filter[gpu_name]"):
            rows = [row for row in rows if row["hardware_summary"]["gpu_model_label"] == wanted]
        return page_of(rows, call)

    def _class(self, offer: Offer) -> dict[str, Any]:
        """The class that a host of the pool is sold as; WRONG_GPU gives it a GPU that it does not have."""
        pretend = self.faults.is_armed(Fault.WRONG_GPU)
        gpu = PRETENDED if pretend else (offer.gpu_raw, round(offer.vram_gib))
        hardware = {
            "cpu_cores": offer.cpu_cores,
            "gpu_count": 1 if pretend else offer.gpu_count,
            "ram_gib": int(offer.memory_gib),
            "storage_gib": int(offer.disk_gib),
        }
        facts = f"{hardware}{gpu}{offer.price_nusd_hour}"
        offer_id = f"off_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        return class_row(offer_id, hardware, gpu, in_dollars(offer.price_nusd_hour))

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _create(self, call: Call) -> Reply:
        body = call.body()
        if (wrong := why_wrong(body)) is not None:
            return failure(400, "VALIDATION_ERROR", wrong)
        fitting = [offer for offer in await self.yard.free() if self._fits(self._class(offer), body)]
        if self.faults.take(Fault.SOLD_TWICE) or not fitting:
            return failure(409, "NO_CAPACITY", "No node fits the request now")
        docker = body["parameters"]["parameters"]
        offer = min(fitting, key=lambda offer: offer.price_nusd_hour)
        rental = SimRental(
            rental_id=str(uuid.uuid4()),
            label=str(body["title"]),
            offer=offer,
            rate_nusd_hour=offer.price_nusd_hour,
            disk_rate_nusd_hour=0,
            disk_gb=0,
            own_key=secrets.token_hex(8),
            created_ms=self.yard.now_ms(),
            ssh_keys=[str(docker["sshkey"]).strip()] if docker.get("sshkey") else [],
            extra={"ports": docker.get("ports") or [22], "task": body["task"]},
        )
        self.yard.start(rental)
        return Reply(status=201, body=self._job(rental))

    def _fits(self, row: dict[str, Any], body: dict[str, Any]) -> bool:
        hardware = row["hardware_summary"]
        regions = body.get("allowed_region_codes") or [REGION]
        return (
            row["region_code"] in regions
            and hardware["gpu_count"] == (body.get("gpu_count") or 0)
            and body.get("gpu_name") in (None, hardware["gpu_model_label"])
            and hardware["min_gpu_vram_gib"] >= (body.get("min_vram_gb") or 0)
            and hardware["ram_gib"] >= (body.get("min_ram_gb") or 0)
            and hardware["cpu_cores"] >= (body.get("cpu_count") or 0)
            and hardware["storage_gib"] >= (body.get("min_storage_gb") or 0)
        )

    async def _list(self, call: Call) -> Reply:
        """All that ever were, newest first."""
        rows = [self._job(rental) for rental in reversed(self.yard.rentals.values())]
        return page_of(rows, call)

    async def _show(self, call: Call) -> Reply:
        found = self.yard.rentals.get(call.names[0])
        return failure(404, "NOT_FOUND", "Job not found") if found is None else Reply(body=self._job(found))

    async def _cancel(self, call: Call) -> Reply:
        found = self.yard.rentals.get(call.names[0])
        if found is None:
            return failure(404, "NOT_FOUND", "Job not found")
        if STATUSES[found.phase] in ("FAILED", "CANCELLED"):
            return failure(409, "INVALID_STATE", f"The job is {STATUSES[found.phase]}")
        self.yard.end(found)
        return Reply(body=self._job(found))

    def _job(self, rental: SimRental) -> dict[str, Any]:
        self._settle(rental)
        return {
            "uuid": rental.rental_id,
            "object": "job",
            "title": rental.label,
            "task": rental.extra["task"],
            "status": rental.extra.get("ended_as") or STATUSES[rental.phase],
            "created_at": iso_utc(rental.created_ms),
        }

    def _settle(self, rental: SimRental) -> None:
        """A job that failed has ended by itself; nobody cancels it."""
        if rental.phase in (Phase.DEAD, Phase.STOPPED):
            rental.extra["ended_as"] = "FAILED"
            self.yard.end(rental)

    async def _runs(self, call: Call) -> Reply:
        wanted = call.query.get("filter[job_uuid]")
        rentals = [r for r in reversed(self.yard.rentals.values()) if wanted in (None, r.rental_id)]
        return page_of([self._run(rental) for rental in rentals], call)

    def _run(self, rental: SimRental) -> dict[str, Any]:
        """There are no URLs before it runs."""
        status = self._job(rental)["status"]
        urls = []
        if status == "RUNNING" and rental.port and 22 in rental.extra["ports"]:  # type: ignore[operator]
            urls = [
                {"description": "22", "hostname": "127.0.0.1", "port": rental.port, "protocol": "tcp", "tls": False}
            ]
        return {
            "uuid": str(uuid.uuid5(uuid.UUID(rental.rental_id), "run")),
            "job_uuid": rental.rental_id,
            "status": status,
            "started_at_ms": rental.running_ms,
            "node_urls": urls,
        }

    async def _transactions(self, call: Call) -> Reply:
        now_ms = self.yard.now_ms()
        rows = [transaction(rental, now_ms) for rental in reversed(self.yard.rentals.values())]
        return page_of(rows, call)


def transaction(rental: SimRental, now_ms: int) -> dict[str, Any]:
    """What a job has cost: every hour that was begun."""
    hours = -(-((rental.ended_ms or now_ms) - rental.created_ms) // MS_PER_HOUR)
    return {
        "uuid": str(uuid.uuid5(uuid.UUID(rental.rental_id), "bill")),
        "type": "JOB",
        "job_uuid": rental.rental_id,
        "amount_usd": -in_dollars(rental.rate_nusd_hour * hours),
        "created_at": iso_utc(rental.ended_ms or now_ms),
    }


def class_row(offer_id: str, hardware: dict[str, Any], gpu: tuple[str, float], rate: Decimal) -> dict[str, Any]:
    """A class of machines as Dispersed lists it."""
    name, vram = gpu if hardware["gpu_count"] else ("", 0)
    registry = str(uuid.uuid5(uuid.NAMESPACE_DNS, name or "none"))
    models = [{"count": hardware["gpu_count"], "gpu_registry_uuid": registry, "min_vram_gib": vram, "name": name}]
    summary = {
        **hardware,
        "gpu_model_label": name or None,
        "gpu_models": models if name else [],
        "gpu_registry_uuid": registry if name else None,
        "min_gpu_vram_gib": vram,
    }
    return {
        "offer_id": offer_id,
        "region_code": REGION,
        "availability": {"node_count": 0},
        "hardware_summary": summary,
        "pricing": {"hourly_rate_usd": rate, "quoted_at": "2026-11-20T10:00:00Z"},
    }


def why_wrong(body: Any) -> str | None:
    """Why a job is refused before anything is looked for."""
    if not isinstance(body, dict):
        return "the body is no object"
    parameters = body.get("parameters")
    docker = parameters.get("parameters") if isinstance(parameters, dict) else None
    wrongs = {
        "task is BATCH or PERSISTENT": body.get("task") not in ("BATCH", "PERSISTENT"),
        "title is required": not body.get("title"),
        "parameters.parameters.image is required": not isinstance(docker, dict) or not docker.get("image"),
        "gpu_name excludes gpu_registry_uuid": bool(body.get("gpu_name")) and bool(body.get("gpu_registry_uuid")),
        "max_timeout_assign_ms is too small": (body.get("max_timeout_assign_ms") or LEAST_ASSIGN_MS) < LEAST_ASSIGN_MS,
        "max_timeout_start_ms is too small": (body.get("max_timeout_start_ms") or LEAST_START_MS) < LEAST_START_MS,
        "a persistent job has no run timeout": body.get("task") == "PERSISTENT"
        and body.get("max_timeout_run_ms") is not None,
    }
    return next((words for words, is_wrong in wrongs.items() if is_wrong), None)


def page_of(rows: list[dict[str, Any]], call: Call) -> Reply:
    """At most 50 rows at once; pages are numbered from 1."""
    limit = max(1, min(50, int(call.query.get("limit") or 10)))
    page = max(1, int(call.query.get("page") or 1))
    start = (page - 1) * limit
    return Reply(body={"data": rows[start : start + limit], "limit": limit, "page": page, "total": len(rows)})


def canonical(raw_query: str) -> str:
    """A query as it is signed: sorted by name, then value, and encoded in one way."""
    pairs = sorted(parse_qsl(raw_query, keep_blank_values=True))
    return "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)


def failure(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status=status, body={"error": {"code": code, "message": message}}, headers=headers or {})
