"""A stand-in for Nosana's API: its paths, its words, its queues, and an ingress that carries WebSockets."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import cost_nusd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.ingress import PREFIX
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "nosana"
API = "/api"
PRETENDED = ("NVIDIA GeForce RTX 4090", 24)
FEE_PERCENT = 10
# Rewards are listed to a hundredth of a cent.
REWARD_STEP_NUSD = 100_000
OWNER = "Own3rOfTheSimu1atedAccount11111111111111111"
VAULT = "Vau1tOfTheSimu1atedAccount11111111111111111"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
PUBLIC_KEY = re.compile(r"(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-\S+) [A-Za-z0-9+/=]+")
NEEDED = ("name", "market", "replicas", "timeout", "strategy", "job_definition")
PAGE_ROWS = ("10", "20", "50", "100")
STATUSES = {
    Phase.BOOTING: "RUNNING",
    Phase.RUNNING: "RUNNING",
    Phase.STOPPED: "ERROR",
    Phase.DEAD: "ERROR",
    Phase.ENDED: "STOPPED",
}
JOB_STATES = {Phase.BOOTING: "RUNNING", Phase.RUNNING: "RUNNING"}
NUMBERS = {"QUEUED": 0, "RUNNING": 1, "COMPLETED": 2, "STOPPED": 3}
LEAST_MINUTES = 60
# Figures of Nosana's own docs (3 September 2026), dollars an hour of reward: none of these can be rented here.
FIGURES = (
    ("nvidia-3060", "NVIDIA GeForce RTX 3060", "0.0396", 12),
    ("nvidia-4090", "NVIDIA GeForce RTX 4090", "0.2645", 24),
    ("nvidia-5090", "NVIDIA GeForce RTX 5090", "0.3305", 32),
    ("nvidia-h100", "NVIDIA H100 80GB HBM3", "1.2396", 80),
)


@dataclass(kw_only=True, eq=False)
class Deployed:
    """One deployment. `rental` is there once a host has taken its job."""

    deployment_id: str
    name: str
    market: str
    minutes: int
    definition: dict[str, Any]
    created_ms: int
    job: str = field(default_factory=lambda: base58(secrets.token_bytes(32)))
    started_ms: int | None = None
    stopped_ms: int | None = None
    archived: bool = False
    rental: SimRental | None = None

    @property
    def status(self) -> str:
        if self.archived:
            return "ARCHIVED"
        if self.started_ms is None:
            return "DRAFT"
        if self.rental is not None:
            return STATUSES[self.rental.phase]
        return "RUNNING" if self.stopped_ms is None else "STOPPED"

    @property
    def job_state(self) -> str:
        if self.rental is not None:
            return JOB_STATES.get(self.rental.phase, "STOPPED")
        return "QUEUED" if self.stopped_ms is None else "STOPPED"

    @property
    def host_name(self) -> str:
        """The public name of its one exposed port, which stays when the job moves."""
        op = self.definition["ops"][0]["id"]
        return hashed(f"{op}:0:{hashed(f'{self.deployment_id}:{VAULT}', 45)}")

    def span_s(self, now_ms: int) -> tuple[int, int]:
        """From when to when the job ran, in seconds; 0 for what has not come."""
        if self.rental is None:
            return 0, 0
        start_s = self.rental.created_ms // 1000
        end_ms = self.rental.stopped_ms or self.rental.ended_ms
        if end_ms is None and self.rental.phase is Phase.DEAD:
            end_ms = now_ms
        return start_s, end_ms // 1000 if end_ms is not None else 0


class NosanaStandIn:
    """One network with one account, whose key is `key`."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key
        self._credit = 100 * 1_000_000_000
        self._show_figures = show_figures
        self._deployments: dict[str, Deployed] = {}
        self._known: dict[str, Offer] = {}

    def routes(self) -> list[Route]:
        one = API + r"/deployments/([^/]+)"
        return [
            Route(method="GET", pattern=API + r"/markets/?", action=self._markets, open=True),
            Route(method="GET", pattern=API + r"/markets/([^/]+)/?", action=self._market, open=True),
            Route(method="GET", pattern=API + r"/credits/balance", action=self._balance),
            Route(method="POST", pattern=API + r"/deployments/create", action=self._create),
            Route(method="GET", pattern=API + r"/deployments", action=self._list),
            Route(method="GET", pattern=one, action=self._show),
            Route(method="DELETE", pattern=one, action=self._delete),
            Route(method="POST", pattern=one + "/start", action=self._start, creates=True),
            Route(method="POST", pattern=one + "/stop", action=self._stop),
            Route(method="POST", pattern=one + "/archive", action=self._archive),
            Route(method="PATCH", pattern=one + "/update-timeout", action=self._update_timeout),
            Route(method="GET", pattern=one + "/jobs", action=self._jobs),
            Route(method="GET", pattern=API + r"/jobs/([^/]+)", action=self._job),
        ]

    def check_key(self, call: Call) -> Reply | None:
        if secrets.compare_digest(call.key.encode(), self._key.reveal().encode()):
            return None
        return Reply(status=401, body="Unauthorized")

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return failure(429, "Too many requests", {"Retry-After": "1"})
        return failure(503, "Service unavailable")

    def no_such_path(self, call: Call) -> Reply:
        return failure(404, f"Route {call.method}:{call.path} not found")

    def ingress_port(self, name: str) -> int:
        """Where a deployment's public name leads now."""
        for deployed in self._deployments.values():
            if deployed.rental is not None and deployed.rental.phase is Phase.RUNNING and deployed.host_name == name:
                return deployed.rental.port
        return 0

    # ── markets ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _markets(self, _call: Call) -> Reply:
        return Reply(body=await self._rows())

    async def _market(self, call: Call) -> Reply:
        wanted = call.names[0]
        found = next((row for row in await self._rows() if wanted in (row["address"], row["slug"])), None)
        return failure(404, "Market not found") if found is None else Reply(body=found)

    async def _rows(self) -> list[dict[str, Any]]:
        """Hosts that are alike are one queue, which is there also while nobody is idle in it."""
        self._known.update({offer.offer_id: offer for offer in await self.yard.free()})
        pretend = self.faults.is_armed(Fault.WRONG_GPU)
        rows = {market_of(offer): row_of(offer, pretend=pretend) for offer in self._known.values()}
        if self._show_figures:
            rows |= {slug: figure_row(slug, gpu, reward, vram) for slug, gpu, reward, vram in FIGURES}
        return list(rows.values())

    # ── deployments ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _create(self, call: Call) -> Reply:
        body = call.body()
        for name in NEEDED:
            if not isinstance(body, dict) or not body.get(name):
                return failure(400, f"body must have required property '{name}'")
        if not any(row["address"] == body["market"] for row in await self._rows()):
            return failure(400, "Market not found")
        deployed = Deployed(
            deployment_id=base58(secrets.token_bytes(32)),
            name=str(body["name"]),
            market=body["market"],
            minutes=int(body["timeout"]),
            definition=body["job_definition"],
            created_ms=self.yard.now_ms(),
        )
        self._deployments[deployed.deployment_id] = deployed
        return Reply(body=self._deployment(deployed, call))

    async def _start(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return nowhere()
        if found.status not in ("DRAFT", "STOPPED"):
            return wrong_state()
        # Told as running, while every listing of its job fails.
        found.started_ms, found.stopped_ms, found.rental = self.yard.now_ms(), None, None
        fitting = [offer for offer in await self.yard.free() if market_of(offer) == found.market]
        if fitting and found.minutes >= LEAST_MINUTES and not self.faults.take(Fault.SOLD_TWICE):
            self._take(found, fitting[0])
        return Reply(body={"status": "STARTING", "updated_at": iso_utc(self.yard.now_ms())})

    def _take(self, deployed: Deployed, offer: Offer) -> None:
        keys = PUBLIC_KEY.findall(msgspec.json.encode(deployed.definition).decode())
        rental = SimRental(
            rental_id=deployed.deployment_id,
            label=deployed.name,
            offer=offer,
            rate_nusd_hour=rate_of(offer),
            disk_rate_nusd_hour=0,
            disk_gb=0,
            own_key=secrets.token_hex(16),
            created_ms=self.yard.now_ms(),
            ssh_keys=keys[:1],
        )
        deployed.rental = rental
        self.yard.start(rental)
        self.yard.end_at(rental, rental.created_ms + deployed.minutes * 60_000)

    async def _stop(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return nowhere()
        if found.status not in ("RUNNING", "ERROR"):
            return wrong_state()
        if found.rental is not None:
            self.yard.end(found.rental)
        else:
            found.stopped_ms = self.yard.now_ms()
        return Reply(body={"status": "STOPPING", "updated_at": iso_utc(self.yard.now_ms())})

    async def _archive(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return nowhere()
        if found.status != "STOPPED":
            return wrong_state()
        found.archived = True
        return Reply(body={"status": "ARCHIVED", "updated_at": iso_utc(self.yard.now_ms())})

    async def _delete(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return nowhere()
        if found.status != "STOPPED":
            return wrong_state()
        del self._deployments[found.deployment_id]
        return Reply(status=204)

    async def _update_timeout(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return nowhere()
        found.minutes = int(call.body()["timeout"])
        if found.rental is not None:
            self.yard.end_at(found.rental, found.rental.created_ms + found.minutes * 60_000)
        return Reply(body={"timeout": found.minutes, "updated_at": iso_utc(self.yard.now_ms())})

    async def _list(self, call: Call) -> Reply:
        """Newest first; the cursor is opaque to callers."""
        if call.query.get("limit", "10") not in PAGE_ROWS:
            return failure(400, "querystring/limit must be equal to one of the allowed values")
        every = [self._deployment(one, call) for one in reversed(self._deployments.values())]
        limit, first = int(call.query.get("limit", "10")), int(call.query.get("cursor") or 0)
        return Reply(body={"deployments": every[first : first + limit], "pagination": paged(len(every), first, limit)})

    async def _show(self, call: Call) -> Reply:
        found = self._found(call)
        return nowhere() if found is None else Reply(body=self._deployment(found, call))

    def _found(self, call: Call) -> Deployed | None:
        return self._deployments.get(call.names[0])

    def _deployment(self, deployed: Deployed, call: Call) -> dict[str, Any]:
        """Its endpoint is named from the first on; whether something answers there is told beside."""
        base = f"http://{call.headers.get('host', '127.0.0.1')}{PREFIX}"
        op = deployed.definition["ops"][0]
        port = op["args"]["expose"][0]["port"]
        online = deployed.rental is not None and deployed.rental.phase is Phase.RUNNING
        url = base + deployed.host_name
        return {
            "id": deployed.deployment_id,
            "name": deployed.name,
            "vault": VAULT,
            "market": deployed.market,
            "owner": OWNER,
            "status": deployed.status,
            "replicas": 1,
            "timeout": deployed.minutes,
            "strategy": "SIMPLE",
            "confidential": False,
            "active_revision": 1,
            "active_jobs": 1 if deployed.started_ms is not None and deployed.status == "RUNNING" else 0,
            "endpoints": [{"opId": op["id"], "port": port, "url": url, "online": online}],
            "created_at": iso_utc(deployed.created_ms),
            "updated_at": iso_utc(self.yard.now_ms()),
        }

    # ── jobs and credits ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _jobs(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return nowhere()
        start_s, _ = found.span_s(self.yard.now_ms())
        row = {
            "tx": base58(found.job.encode()),
            "job": found.job,
            "deployment": found.deployment_id,
            "market": found.market,
            "node": None if found.rental is None else hashed(found.rental.offer.machine_id),
            "revision": 1,
            "state": found.job_state,
            "time_start": start_s,
            "created_at": iso_utc(found.started_ms or found.created_ms),
            "updated_at": iso_utc(self.yard.now_ms()),
        }
        rows = [row] if found.started_ms is not None and found.minutes >= LEAST_MINUTES else []
        return Reply(body={"jobs": rows, "pagination": paged(len(rows), 0, 100)})

    async def _job(self, call: Call) -> Reply:
        found = next((one for one in self._deployments.values() if one.job == call.names[0]), None)
        if found is None:
            return failure(404, "Job not found")
        start_s, end_s = found.span_s(self.yard.now_ms())
        rental = found.rental
        reward = None if rental is None else in_dollars(rental.rate_nusd_hour) * 100 / (100 + FEE_PERCENT)
        job = {
            "ipfsJob": "Qm" + hashed(found.deployment_id),
            "ipfsResult": None,
            "market": found.market,
            "node": hashed(rental.offer.machine_id) if rental is not None else "1" * 32,
            "payer": OWNER,
            "price": 0,
            "project": OWNER,
            "state": NUMBERS[found.job_state],
            "type": None,
            "jobDefinition": found.definition,
            "jobResult": None,
            "jobStatus": None,
            "timeEnd": end_s,
            "timeStart": start_s,
            "benchmarkProcessedAt": None,
            "timeout": found.minutes * 60,
            "usdRewardPerHour": reward,
            "listedAt": found.created_ms // 1000,
        }
        return Reply(body=job)

    async def _balance(self, _call: Call) -> Reply:
        """What a job may still cost is reserved; what it has cost is settled at its end."""
        now_ms, reserved, settled = self.yard.now_ms(), 0, 0
        for deployed in self._deployments.values():
            if deployed.rental is None:
                continue
            start_s, end_s = deployed.span_s(now_ms)
            if end_s:
                settled += cost_nusd(deployed.rental.rate_nusd_hour, (end_s - start_s) * 1000)
            else:
                reserved += cost_nusd(deployed.rental.rate_nusd_hour, deployed.minutes * 60_000)
        told = {"assignedCredits": self._credit, "reservedCredits": reserved, "settledCredits": settled}
        return Reply(body={name: in_dollars(nusd) for name, nusd in told.items()})


def reward_of(offer: Offer) -> int:
    """What the host gets of a pool host's price, in nano-dollars an hour."""
    return offer.price_nusd_hour * 100 // (100 + FEE_PERCENT) // REWARD_STEP_NUSD * REWARD_STEP_NUSD


def rate_of(offer: Offer) -> int:
    """What a renter pays: reward and fee."""
    return reward_of(offer) * (100 + FEE_PERCENT) // 100


def market_of(offer: Offer) -> str:
    """The queue that a pool host stands in."""
    return hashed(f"{offer.gpu_raw}/{offer.gpu_count}/{offer.price_nusd_hour}")


def row_of(offer: Offer, *, pretend: bool) -> dict[str, Any]:
    """The queue of a pool host; `pretend` gives it a GPU that it does not have."""
    gpu, vram = (offer.gpu_raw, round(offer.vram_gib)) if offer.gpu_count else ("", 0)
    count = offer.gpu_count
    if pretend:
        (gpu, vram), count = PRETENDED, 1
    name = gpu or "CPU lab"
    row = market(market_of(offer), f"{count}x {name}" if count > 1 else name, gpu, vram)
    return row | {"usd_reward_per_hour": in_dollars(reward_of(offer)), "type": "PREMIUM"}


def figure_row(slug: str, gpu: str, reward: str, vram: int) -> dict[str, Any]:
    row = market(hashed(slug), gpu.removeprefix("NVIDIA GeForce "), gpu, vram)
    return row | {"slug": slug, "usd_reward_per_hour": Decimal(reward)}


def market(address: str, name: str, gpu: str, vram: int) -> dict[str, Any]:
    return {
        "address": address,
        "slug": name.lower().replace(" ", "-"),
        "name": name,
        "sft": hashed(address),
        "type": "COMMUNITY",
        "nos_reward_per_second": 0.000117,
        "nos_job_price_per_second": 0.000129,
        "network_fee_percentage": FEE_PERCENT,
        "premium_community_relation": None,
        "gpu_types": [gpu] if gpu else [],
        "required_images": [],
        "required_remote_resources": [],
        "nodes": [],
        "client": True,
        "lowest_vram": vram,
    }


def paged(total: int, first: int, limit: int) -> dict[str, Any]:
    return {
        "cursor_next": str(first + limit) if first + limit < total else None,
        "cursor_prev": str(max(0, first - limit)) if first else None,
        "total_items": total,
    }


def hashed(text: str, length: int = 44) -> str:
    """Nosana's names of things: the first characters of a hash in base 58."""
    return base58(hashlib.sha512(text.encode()).digest())[:length]


def base58(data: bytes) -> str:
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        digits = BASE58[rest] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def failure(status: int, words: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status=status, body={"error": words}, headers=headers or {})


def wrong_state() -> Reply:
    return failure(500, "Deployment is in the incorrect state.")


def nowhere() -> Reply:
    return failure(404, "Deployment not found.")
