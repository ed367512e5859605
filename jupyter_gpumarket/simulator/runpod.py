"""A stand-in for RunPod's REST API v2: its paths, its problem documents, and its odd habits."""

from __future__ import annotations

import re
import secrets
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import MS_PER_HOUR, cost_nusd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.figures import figures
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "runpod"
PRETENDED = ("NVIDIA GeForce RTX 4090", 24)
CENTER = ("EU-SE-1", "EU Sweden 1")
PROBLEM = "application/problem+json"
DISK_NUSD_GB_MONTH = 100_000_000
HOURS_PER_MONTH = 730
CREATE_FIELDS = {"name", "image", "cloud", "gpu", "cpu", "dataCenterIds", "disk", "ports", "env", "args", "mounts"} | {
    "registry",
    "startSsh",
    "startJupyter",
    "templateId",
    "globalNetworking",
}
STATUSES = {
    Phase.BOOTING: "STARTING",
    Phase.RUNNING: "RUNNING",
    Phase.STOPPED: "EXITED",
    Phase.DEAD: "ERROR",
    Phase.ENDED: "TERMINATED",
}
ACTIONS = {
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
    "TERMINATED": [],
}
NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
LIMITS = {
    "RateLimit": '"minute";r=59;t=12, "hour";r=2999;t=3000',
    "RateLimit-Policy": '"minute";q=60;w=60, "hour";q=3000;w=3600',
}


class RunpodStandIn:
    """One marketplace with one account, whose key is `key`. A pool host without a GPU is sold as if it had one."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key
        self._show_figures = show_figures

    def routes(self) -> list[Route]:
        pod = r"/v2/pods/([^/]+)"
        return [
            Route(method="GET", pattern=r"/v2/catalog/gpus", action=self._catalog),
            Route(method="POST", pattern=r"/v2/pods", action=self._create, creates=True),
            Route(method="GET", pattern=r"/v2/pods", action=self._list),
            Route(method="GET", pattern=pod, action=self._show),
            Route(method="DELETE", pattern=pod, action=self._terminate),
            Route(method="POST", pattern=pod + "/action", action=self._act),
            Route(method="GET", pattern=r"/v2/billing/pods", action=self._billing),
        ]

    def check_key(self, call: Call) -> Reply | None:
        """401 for a bad key; a pod's own key opens its own pod alone."""
        if secrets.compare_digest(call.key.encode(), self._key.reveal().encode()):
            return None
        for rental in self.yard.rentals.values():
            if call.key and call.key == rental.own_key and rental.phase is not Phase.ENDED:
                mine = re.fullmatch(rf"/v2/pods/{rental.rental_id}(/action)?", call.path)
                return None if mine else problem(403, "Forbidden", "this key opens its own pod only")
        words = "missing bearer token" if not call.key else "invalid bearer token"
        return problem(401, "Unauthorized", words)

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return problem(429, "Too Many Requests", "rate limit exceeded", {"Retry-After": "1"})
        return problem(503, "Service Unavailable", "try again later")

    def no_such_path(self, call: Call) -> Reply:
        if call.path.startswith("/v1/"):
            return problem(410, "Gone", "the v1 API was retired; use /v2")
        return problem(404, "Not Found", f"no route {call.path}")

    async def _catalog(self, call: Call) -> Reply:
        asked = call.query
        if ("include" in asked) != ("product" in asked):
            return problem(400, "Bad Request", "product is required with include, and forbidden without")
        cloud = asked.get("cloud", "SECURE")
        free = await self.yard.free() if cloud == "SECURE" else []
        types: dict[str, dict[str, Any]] = {}
        for offer in free:
            row = gpu_type(self._sold_as(offer))
            known = types.setdefault(row["id"], row)
            known["price"]["secure"] = min(known["price"]["secure"], row["price"]["secure"])
        if self._show_figures:
            for figure in figures(NAME):
                types.setdefault(f"NVIDIA {figure.gpu_raw}", sold_out(figure.gpu_raw, round(figure.vram_gib)))
        return Reply(body={"gpus": list(types.values())}, headers=LIMITS)

    def _sold_as(self, offer: Offer) -> Offer:
        """The host as it is listed; WRONG_GPU gives it the GPU that hosts without one are listed with."""
        wrong = self.faults.is_armed(Fault.WRONG_GPU)
        return msgspec.structs.replace(offer, gpu_count=0) if wrong else offer

    async def _create(self, call: Call) -> Reply:
        body = call.body()
        refused = wrong(body)
        if refused is not None:
            return refused
        gpu = body["gpu"]
        fitting = [offer for offer in await self.yard.free() if gpu_type(self._sold_as(offer))["id"] == gpu["id"]]
        centers = body.get("dataCenterIds") or [CENTER[0]]
        if (
            self.faults.take(Fault.SOLD_TWICE)
            or not fitting
            or CENTER[0] not in centers
            or body.get("cloud") == "COMMUNITY"
        ):
            return problem(400, "Bad Request", NO_CAPACITY)
        offer = min(fitting, key=lambda offer: offer.price_nusd_hour)
        key = str((body.get("env") or {}).get("PUBLIC_KEY", "")).strip()
        rental = SimRental(
            rental_id=secrets.token_hex(7),
            label=str(body["name"]),
            offer=offer,
            rate_nusd_hour=offer.price_nusd_hour,
            disk_rate_nusd_hour=DISK_NUSD_GB_MONTH * body["disk"] // HOURS_PER_MONTH,
            disk_gb=body["disk"],
            own_key="rpa_" + secrets.token_hex(20),
            created_ms=self.yard.now_ms(),
            ssh_keys=[key] if key and body.get("startSsh") else [],
            extra={"image": body["image"], "ports": body.get("ports") or [], "env": body.get("env") or {}},
        )
        self.yard.start(rental)
        return Reply(status=201, body=self._pod(rental), headers=LIMITS)

    def _present(self) -> list[SimRental]:
        return [rental for rental in self.yard.rentals.values() if rental.phase is not Phase.ENDED]

    def _found(self, call: Call) -> SimRental | None:
        return next((rental for rental in self._present() if rental.rental_id == call.names[0]), None)

    async def _list(self, call: Call) -> Reply:
        """Newest first, in pages whose cursor is the last id; terminated pods have vanished."""
        pods = [self._pod(rental) for rental in reversed(self._present())]
        cursor, limit = call.query.get("cursor"), int(call.query.get("limit") or 100)
        start = next((n + 1 for n, pod in enumerate(pods) if pod["id"] == cursor), 0)
        page = pods[start : start + limit]
        more = start + limit < len(pods)
        pagination = {"nextCursor": page[-1]["id"] if more and page else None, "hasNextPage": more}
        return Reply(body={"pods": page, "pagination": pagination}, headers=LIMITS)

    async def _show(self, call: Call) -> Reply:
        found = self._found(call)
        return nowhere() if found is None else Reply(body=self._pod(found), headers=LIMITS)

    async def _terminate(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return nowhere()
        self.yard.end(found)
        return Reply(status=204, headers=LIMITS)

    async def _act(self, call: Call) -> Reply:
        found, action = self._found(call), call.body().get("action")
        if found is None:
            return nowhere()
        if action not in ACTIONS[STATUSES[found.phase]] or action in ("start", "restart"):
            return problem(409, "Conflict", f"cannot {action} a pod that is {STATUSES[found.phase]}")
        if action == "terminate":
            self.yard.end(found)
            return Reply(status=204, headers=LIMITS)
        self.yard.stop(found, "stopped by the user")
        return Reply(body=self._pod(found), headers=LIMITS)

    def _pod(self, rental: SimRental) -> dict[str, Any]:
        status = STATUSES[rental.phase]
        running = status == "RUNNING"
        user = f"{rental.rental_id}-64411eb2"
        direct = None
        if running and rental.port and "22/tcp" in rental.extra["ports"]:  # type: ignore[operator]
            direct = endpoint("127.0.0.1", rental.port, "root")
        gone_s = (self.yard.now_ms() - (rental.running_ms or 0)) // 1000
        return {
            "id": rental.rental_id,
            "name": rental.label,
            "status": status,
            "actions": ACTIONS[status],
            "image": rental.extra["image"],
            "args": "",
            "disk": rental.disk_gb,
            "mounts": {},
            "ports": rental.extra["ports"],
            "env": rental.extra["env"],
            "registry": None,
            "gpu": {"id": gpu_type(self._sold_as(rental.offer))["id"], "count": 1},
            "cloud": "SECURE",
            "dataCenterId": CENTER[0],
            "cudaVersion": "12.8",
            "template": None,
            "cost": in_dollars(rental.rate_nusd_hour) if status in ("STARTING", "RUNNING") else Decimal(0),
            "locked": False,
            "globalNetworking": {"enabled": False},
            "ssh": {"proxy": endpoint("ssh.runpod.io", 22, user), "direct": direct},
            "runtime": {"uptime": gone_s, "gpus": [], "ports": []} if running else None,
            "createdAt": iso_utc(rental.created_ms),
            "startedAt": None if rental.running_ms is None else iso_utc(rental.running_ms),
        }

    async def _billing(self, call: Call) -> Reply:
        wanted = call.query.get("podId")
        rentals = [rental for rental in self.yard.rentals.values() if wanted in (None, rental.rental_id)]
        now_ms = self.yard.now_ms()
        records = [row for rental in rentals if (row := record(rental, now_ms)) is not None]
        names = ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")
        totals = {name: sum((row[name] for row in records), Decimal(0)) for name in names}
        hour = {"startTime": iso_utc(now_ms - MS_PER_HOUR), "endTime": iso_utc(now_ms), "bucketSize": "hour"}
        told = {
            "query": hour | ({"podId": wanted} if wanted else {}),
            "recordCount": len(records),
            "uniquePodCount": len({row["podId"] for row in records}),
            "totals": totals,
        }
        return Reply(body={"records": records, "metadata": told}, headers=LIMITS)


def record(rental: SimRental, now_ms: int) -> dict[str, Any] | None:
    """What a pod has cost so far, in one bucket that is snapped outward to whole hours."""
    end_ms = rental.ended_ms or now_ms
    gpu = 0
    if (computed := rental.computed_ms) is not None:
        gpu = cost_nusd(rental.rate_nusd_hour, (computed[1] or now_ms) - computed[0])
    disk = cost_nusd(rental.disk_rate_nusd_hour, end_ms - rental.created_ms)
    return {
        "startTime": iso_utc(rental.created_ms // MS_PER_HOUR * MS_PER_HOUR),
        "endTime": iso_utc(-(-end_ms // MS_PER_HOUR) * MS_PER_HOUR),
        "podId": rental.rental_id,
        "totalAmount": in_dollars(gpu + disk),
        "gpuAmount": in_dollars(gpu),
        "cpuAmount": Decimal(0),
        "diskAmount": in_dollars(disk),
    }


def gpu_type(offer: Offer) -> dict[str, Any]:
    """The model that a pool host is sold as."""
    name, memory = (offer.gpu_raw, round(offer.vram_gib)) if offer.gpu_count else PRETENDED
    row = sold_out(name.removeprefix("NVIDIA "), memory)
    here = {"id": CENTER[0], "name": CENTER[1], "availability": "LOW"}
    price = {"secure": in_dollars(offer.price_nusd_hour), "community": Decimal(0)}
    return row | {"secure": True, "availability": "LOW", "dataCenters": [here], "price": price}


def sold_out(name: str, memory: int) -> dict[str, Any]:
    """A model of which there is none now."""
    return {
        "id": f"NVIDIA {name}",
        "name": name.removeprefix("GeForce "),
        "pool": None,
        "manufacturer": "NVIDIA",
        "memory": memory,
        "secure": False,
        "community": False,
        "price": {"secure": Decimal(0), "community": Decimal(0)},
        "maxCount": {"secure": 1, "community": 0},
        "availability": "NONE",
    }


def endpoint(host: str, port: int, user: str) -> dict[str, Any]:
    return {"host": host, "port": port, "username": user, "command": f"ssh {user}@{host} -p {port}"}


def wrong(body: Any) -> Reply | None:
    """Why a create body is refused before anything is looked for."""
    if not isinstance(body, dict) or not body.get("name"):
        return problem(422, "Unprocessable Entity", "$: missing property 'name'")
    unknown = set(body) - CREATE_FIELDS
    if unknown:
        return problem(422, "Unprocessable Entity", f"$: additional properties '{min(unknown)}' not allowed")
    if not body.get("image"):
        return problem(400, "Bad Request", "image is required unless templateId is set")
    if not isinstance(body.get("disk"), int):
        return problem(400, "Bad Request", "You must either provide a template id or pod configuration parameters")
    if not isinstance(body.get("gpu"), dict) or "id" not in body["gpu"]:
        return problem(400, "Bad Request", "exactly one of gpu or cpu must be set")
    return None


def problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Reply:
    body = {"title": title, "status": status, "detail": detail}
    return Reply(status=status, body=body, content_type=PROBLEM, headers=LIMITS | (headers or {}))


def nowhere() -> Reply:
    return problem(404, "Not Found", "pod not found")
