"""A stand-in for Prime Intellect's API: its paths, its error bodies, and its odd habits."""

from __future__ import annotations

import secrets
import zlib
from decimal import Decimal
from typing import Any

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import cost_nusd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.figures import Figure, figures
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "primeintellect"
API = "/api/v1"
PRETENDED = ("RTX4090_24GB", 24)
DISK_NUSD_GB_HOUR = 100_000
DISK_GB = {"minCount": 20, "defaultCount": 40, "maxCount": 1000, "step": 1}
USER = "user-of-the-simulated-account"
POD_FIELDS = {
    "name",
    "cloudId",
    "gpuType",
    "socket",
    "gpuCount",
    "diskSize",
    "vcpus",
    "memory",
    "maxPrice",
    "image",
} | {
    "customTemplateId",
    "dataCenterId",
    "country",
    "security",
    "envVars",
    "jupyterPassword",
    "sshKeyId",
    "autoRestart",
    "prepaidForHr",
}
NEEDED = ("cloudId", "gpuType", "socket", "gpuCount")
STATUSES = {
    Phase.BOOTING: ("PROVISIONING", "PENDING"),
    Phase.RUNNING: ("ACTIVE", "FINISHED"),
    Phase.STOPPED: ("STOPPED", "FINISHED"),
    Phase.DEAD: ("ERROR", "ERROR"),
}
GONE = "The requested configuration is not available any more"


class PrimeStandIn:
    """One marketplace with one account, whose key is `key`."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key
        self._credit = 100 * 1_000_000_000
        self._figures = figures(NAME) if show_figures else ()
        self._ssh_keys: dict[str, dict[str, Any]] = {}

    def routes(self) -> list[Route]:
        pod = API + r"/pods/([^/]+)"
        redirected = [
            Route(method=method, pattern=API + r"/(pods|ssh_keys|availability)", action=self._with_slash, open=True)
            for method in ("GET", "POST")
        ]
        return [
            *redirected,
            Route(method="GET", pattern=API + r"/availability/gpus", action=self._gpus),
            Route(method="GET", pattern=API + r"/availability/multi-node", action=self._multi_node),
            Route(method="GET", pattern=API + r"/availability/gpu-summary", action=self._summary),
            Route(method="POST", pattern=API + r"/pods/", action=self._create, creates=True),
            Route(method="GET", pattern=API + r"/pods/", action=self._list),
            Route(method="GET", pattern=API + r"/pods/status", action=self._statuses),
            Route(method="GET", pattern=API + r"/pods/history", action=self._history),
            Route(method="GET", pattern=pod, action=self._show),
            Route(method="DELETE", pattern=pod, action=self._terminate),
            Route(method="GET", pattern=API + r"/ssh_keys/", action=self._list_keys),
            Route(method="POST", pattern=API + r"/ssh_keys/", action=self._add_key),
            Route(method="DELETE", pattern=API + r"/ssh_keys/([^/]+)", action=self._forget_key),
            Route(method="GET", pattern=API + r"/billing/wallet", action=self._wallet),
        ]

    def check_key(self, call: Call) -> Reply | None:
        if secrets.compare_digest(call.key.encode(), self._key.reveal().encode()):
            return None
        return detail(401, "Not authenticated" if not call.key else "Invalid API key")

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return detail(429, "Rate limit exceeded", {"Retry-After": "1"})
        return detail(503, "Service temporarily unavailable")

    def no_such_path(self, call: Call) -> Reply:
        del call
        return detail(404, "Not Found")

    async def _with_slash(self, call: Call) -> Reply:
        """Collections answer at their path with a slash only; the official client follows."""
        query = f"?{call.raw_query}" if call.raw_query else ""
        return Reply(status=307, body=b"", headers={"Location": f"{call.path}/{query}"})

    # ── offers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _gpus(self, call: Call) -> Reply:
        rows = [row for row in await self._rows() if is_asked_for(row, call.query)]
        page, size = int(call.query.get("page") or 1), int(call.query.get("page_size") or 100)
        if page < 1 or not 1 <= size <= 100:
            return wrong("page_size", "Input should be less than or equal to 100")
        return Reply(body={"items": rows[(page - 1) * size : page * size], "totalCount": len(rows)})

    async def _multi_node(self, _call: Call) -> Reply:
        return Reply(body={"items": [], "totalCount": 0})

    async def _summary(self, _call: Call) -> Reply:
        rows = await self._rows()
        return Reply(body={kind: {} for kind in sorted({row["gpuType"] for row in rows})})

    async def _rows(self) -> list[dict[str, Any]]:
        pretend = self.faults.is_armed(Fault.WRONG_GPU)
        rows = [row_of(offer, pretend=pretend) for offer in await self.yard.free()]
        return rows + [row_of_figure(figure) for figure in self._figures]

    # ── pods ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _create(self, call: Call) -> Reply:
        body = call.body()
        refused = refusal(body)
        if refused is not None:
            return refused
        pod = body["pod"]
        offer = next((offer for offer in await self.yard.free() if cloud_id(offer) == pod["cloudId"]), None)
        if offer is None or self.faults.take(Fault.SOLD_TWICE):
            return detail(400, GONE)
        disk_gb = int(pod.get("diskSize") or DISK_GB["defaultCount"])
        if not DISK_GB["minCount"] <= disk_gb <= DISK_GB["maxCount"]:
            return wrong("pod.diskSize", "Disk size is out of range")
        most = pod.get("maxPrice")
        if most is not None and Decimal(str(most)) < in_dollars(whole_price(offer, disk_gb)):
            return detail(400, GONE + ": its price is above maxPrice")
        key = self._key_of(pod.get("sshKeyId"))
        rental = SimRental(
            rental_id=secrets.token_hex(16),
            label=str(pod.get("name") or "pod"),
            offer=offer,
            rate_nusd_hour=whole_price(offer, disk_gb),
            disk_rate_nusd_hour=0,
            disk_gb=disk_gb,
            own_key=secrets.token_hex(16),
            created_ms=self.yard.now_ms(),
            ssh_keys=[key] if key else [],
            extra={"image": pod.get("image") or "ubuntu_22_cuda_12", "row": row_of(offer, pretend=self._pretends())},
        )
        self.yard.start(rental)
        return Reply(body=self._pod(rental))

    def _pretends(self) -> bool:
        return self.faults.is_armed(Fault.WRONG_GPU)

    def _key_of(self, wanted: object) -> str:
        """The key that is named, else the account's primary one."""
        keys = list(self._ssh_keys.values())
        found = [key for key in keys if key["id"] == wanted] or [key for key in keys if key["isPrimary"]]
        return str(found[0]["publicKey"]) if found else ""

    def _present(self) -> list[SimRental]:
        return [rental for rental in self.yard.rentals.values() if rental.phase is not Phase.ENDED]

    def _found(self, call: Call) -> SimRental | None:
        return next((rental for rental in self._present() if rental.rental_id == call.names[0]), None)

    async def _list(self, call: Call) -> Reply:
        return Reply(body=paged([self._pod(rental) for rental in self._present()], call))

    async def _statuses(self, call: Call) -> Reply:
        wanted = call.query.get("pod_ids", "")
        fields = ("providerType", "status", "sshConnection", "ip", "installationStatus", "installationFailure")
        pods = [self._pod(rental) for rental in self._present() if rental.rental_id == wanted]
        more = ("installationProgress", "priceHr", "primePortMapping")
        told = [{"podId": pod["id"], **{name: pod[name] for name in fields + more}} for pod in pods]
        return Reply(body={"data": told, "status": None})

    async def _show(self, call: Call) -> Reply:
        found = self._found(call)
        return detail(404, "Pod not found") if found is None else Reply(body=self._pod(found))

    async def _terminate(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return detail(404, "Pod not found")
        self.yard.end(found)
        return Reply(body={"status": "TERMINATED"})

    async def _history(self, call: Call) -> Reply:
        ended = [rental for rental in self.yard.rentals.values() if rental.phase is Phase.ENDED]
        ended.sort(key=lambda rental: rental.ended_ms or 0, reverse=call.query.get("sort_order", "desc") == "desc")
        return Reply(body=paged([past(rental) for rental in ended], call))

    def _pod(self, rental: SimRental) -> dict[str, Any]:
        status, installed = STATUSES[rental.phase]
        row: Any = rental.extra["row"]
        port = rental.port if status == "ACTIVE" else 0
        ports = {"internal": "22", "external": str(port), "protocol": "TCP", "usedBy": "SSH", "description": None}
        price = in_dollars(rental.rate_nusd_hour)
        return {
            "id": rental.rental_id,
            "userId": USER,
            "teamId": None,
            "walletId": "wallet-1",
            "name": rental.label,
            "type": "HOSTED",
            "providerType": row["provider"],
            "status": status,
            "installationStatus": installed,
            "installationFailure": (rental.detail or "it failed") if installed == "ERROR" else None,
            "installationProgress": 100 if installed == "FINISHED" else 0,
            "createdAt": iso_utc(rental.created_ms),
            "updatedAt": iso_utc(self.yard.now_ms()),
            "terminatedAt": None,
            "gpuName": row["gpuType"],
            "gpuCount": row["gpuCount"],
            "socket": row["socket"],
            "priceHr": price,
            "stoppedPriceHr": None,
            "provisioningPriceHr": price,
            "environmentType": rental.extra["image"],
            "customTemplateId": None,
            "clusterId": None,
            "primePortMapping": [ports] if port else [],
            "sshConnection": f"{rental.login}@127.0.0.1 -p {port}" if port else None,
            "ip": "127.0.0.1" if port else None,
            "resources": {"memory": row["memory"]["defaultCount"], "disk": rental.disk_gb, "shared_disk": None}
            | {"vcpus": row["vcpu"]["defaultCount"]},
            "attachedResources": [],
            "isSpot": None,
            "autoRestart": False,
        }

    # ── keys and bills ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _list_keys(self, call: Call) -> Reply:
        return Reply(body=paged(list(self._ssh_keys.values()), call))

    async def _add_key(self, call: Call) -> Reply:
        body = call.body()
        if not isinstance(body, dict) or not body.get("name") or not body.get("publicKey"):
            return wrong("publicKey", "Field required")
        key = {
            "id": secrets.token_hex(12),
            "userId": USER,
            "name": body["name"],
            "publicKey": body["publicKey"],
            "isPrimary": not self._ssh_keys,
            "isUserKey": True,
            "createdAt": iso_utc(self.yard.now_ms()),
            "updatedAt": iso_utc(self.yard.now_ms()),
        }
        self._ssh_keys[key["id"]] = key
        return Reply(body=key)

    async def _forget_key(self, call: Call) -> Reply:
        if self._ssh_keys.pop(call.names[0], None) is None:
            return detail(404, "SSH key not found")
        return Reply(body={})

    async def _wallet(self, call: Call) -> Reply:
        rentals = list(self.yard.rentals.values())
        rows = [billing(rental, self.yard.now_ms()) for rental in reversed(rentals)]
        spent = sum(cost(rental, self.yard.now_ms()) for rental in rentals)
        first, count = int(call.query.get("offset") or 0), int(call.query.get("limit") or 20)
        wallet = {
            "wallet_id": "wallet-1",
            "team_id": None,
            "balance_usd": in_dollars(self._credit - spent),
            "currency": "USD",
            "total_billings": len(rows),
            "recent_billings": rows[first : first + count],
        }
        return Reply(body=wallet)


def cloud_id(offer: Offer) -> str:
    """Their name of a pool host."""
    return f"lab-{zlib.crc32(offer.offer_id.encode()):08x}"


def whole_price(offer: Offer, disk_gb: int) -> int:
    """Nano-dollars an hour of a host with a disk."""
    return offer.price_nusd_hour + DISK_NUSD_GB_HOUR * disk_gb


def row_of(offer: Offer, *, pretend: bool) -> dict[str, Any]:
    """A host of the pool as Prime lists it; `pretend` gives it a GPU that it does not have."""
    kind, memory = ("CPU_NODE", 0)
    if offer.gpu_count:
        short = offer.gpu_raw.removeprefix("NVIDIA ").removeprefix("GeForce ").replace(" ", "")
        kind, memory = f"{short}_{round(offer.vram_gib)}GB", round(offer.vram_gib)
    if pretend:
        kind, memory = PRETENDED
    row = configuration(cloud_id(offer), kind, memory, max(1, offer.gpu_count), offer.price_nusd_hour)
    disk = {**DISK_GB, "pricePerUnit": in_dollars(DISK_NUSD_GB_HOUR), "defaultIncludedInPrice": False}
    return row | {
        "dataCenter": offer.region or None,
        "country": offer.country or None,
        "disk": disk | {"additionalInfo": None},
        "vcpu": fixed(offer.cpu_cores),
        "memory": fixed(int(offer.memory_gib)),
        "provisioningTime": 1,
        "stockStatus": "Low",
    }


def row_of_figure(figure: Figure) -> dict[str, Any]:
    """A configuration that was seen once. It is listed, and a create call finds it gone."""
    provider = figure.source_id.partition("__")[0]
    row = configuration(
        figure.source_id, figure.gpu_raw, round(figure.vram_gib), figure.gpu_count, figure.price_nusd_hour
    )
    return row | {
        "provider": provider,
        "dataCenter": figure.region or None,
        "country": figure.country or None,
        "vcpu": fixed(int(figure.vcpus)),
        "memory": fixed(int(figure.ram_gib)),
    }


def configuration(cloud: str, gpu_type: str, memory: int, count: int, price_nusd_hour: int) -> dict[str, Any]:
    nothing = {"minCount": None, "defaultCount": None, "maxCount": None, "pricePerUnit": None, "step": None}
    return {
        "cloudId": cloud,
        "gpuType": gpu_type,
        "socket": "PCIe",
        "provider": "primecompute",
        "region": "eu_west",
        "dataCenter": None,
        "country": None,
        "gpuCount": count,
        "gpuMemory": memory,
        "disk": nothing,
        "sharedDisk": nothing,
        "vcpu": nothing,
        "memory": nothing,
        "internetSpeed": None,
        "interconnect": None,
        "interconnectType": None,
        "provisioningTime": None,
        "stockStatus": "Medium",
        "security": "secure_cloud",
        "prices": {
            "onDemand": in_dollars(price_nusd_hour),
            "communityPrice": None,
            "isVariable": None,
            "currency": "USD",
        },
        "images": ["ubuntu_22_cuda_12"],
        "isSpot": None,
        "prepaidTime": None,
    }


def fixed(count: int) -> dict[str, Any]:
    """So many of something, and no choice."""
    return {"minCount": count or None, "defaultCount": count or None, "maxCount": count or None, "step": None} | {
        "pricePerUnit": None,
        "defaultIncludedInPrice": None,
        "additionalInfo": None,
    }


def is_asked_for(row: dict[str, Any], query: dict[str, str]) -> bool:
    """Whether a configuration fits what the query narrows the listing to."""
    names = {"gpu_count": "gpuCount", "gpu_type": "gpuType", "socket": "socket", "security": "security"}
    names |= {"cloud_id": "cloudId", "data_center_id": "dataCenter", "regions": "region"}
    return all(str(row[names[name]]) == value for name, value in query.items() if name in names)


def cost(rental: SimRental, now_ms: int) -> int:
    """Nano-dollars so far: by begun seconds from the create call, provisioning included."""
    seconds = -((rental.created_ms - (rental.ended_ms or now_ms)) // 1000)
    return cost_nusd(rental.rate_nusd_hour, max(0, seconds) * 1000)


def billing(rental: SimRental, now_ms: int) -> dict[str, Any]:
    """A pod's row in the wallet."""
    end = iso_utc(rental.ended_ms or now_ms)
    return {
        "id": f"bill-{rental.rental_id}",
        "created_at": iso_utc(rental.created_ms),
        "updated_at": end,
        "last_billed_at": end,
        "amount_usd": in_dollars(cost(rental, now_ms)),
        "currency": "USD",
        "resource_type": "compute",
        "resource_id": rental.rental_id,
    }


def past(rental: SimRental) -> dict[str, Any]:
    """An ended pod in the history."""
    row: Any = rental.extra["row"]
    assert rental.ended_ms is not None
    return {
        "id": rental.rental_id,
        "name": rental.label,
        "providerType": row["provider"],
        "provisionedBy": None,
        "type": "Instance",
        "createdAt": iso_utc(rental.created_ms),
        "terminatedAt": iso_utc(rental.ended_ms),
        "gpuName": row["gpuType"],
        "gpuCount": row["gpuCount"],
        "socket": row["socket"],
        "priceHr": in_dollars(rental.rate_nusd_hour),
        "userId": USER,
        "teamId": None,
        "totalBilledPrice": in_dollars(cost(rental, rental.ended_ms)),
    }


def paged(rows: list[dict[str, Any]], call: Call) -> dict[str, Any]:
    offset, limit = int(call.query.get("offset") or 0), int(call.query.get("limit") or 100)
    page = {"total_count": len(rows), "offset": offset, "limit": limit, "data": rows[offset : offset + limit]}
    return page | {"status": None}


def refusal(body: Any) -> Reply | None:
    """Why a create body is refused before anything is looked for."""
    pod = body.get("pod") if isinstance(body, dict) else None
    if not isinstance(pod, dict):
        return wrong("pod", "Field required")
    for name in NEEDED:
        if not pod.get(name):
            return wrong(f"pod.{name}", "Field required")
    unknown = set(pod) - POD_FIELDS
    if unknown:
        return wrong(f"pod.{min(unknown)}", "Extra inputs are not permitted")
    if not isinstance(body.get("provider"), dict) or not body["provider"].get("type"):
        return wrong("provider", "Field required")
    return None


def wrong(param: str, words: str) -> Reply:
    return Reply(status=422, body={"errors": [{"param": param, "details": words}]})


def detail(status: int, words: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status=status, body={"detail": words}, headers=headers or {})
