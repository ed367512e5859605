"""A stand-in for Vast.ai: its paths, its words, and its odd habits."""

from __future__ import annotations

import re
import secrets
import zlib
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import MS_PER_HOUR, cost_nusd
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.figures import Figure, figures
from jupyter_gpumarket.simulator.vast_search import searched
from jupyter_gpumarket.simulator.web import Call, Refusal, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "vast"
FIRST_CONTRACT = 28_000_450
FIRST_ASK = 31_400_000
CENT = 10_000_000
STORAGE_USD_GB_MONTH = Decimal("0.15")
HOURS_PER_MONTH = 720
MOST_INSTANCES = 25
WEEK_S = 7 * 86_400
PRETENDED_GPU = ("RTX 4090", 24_564)
PUBLIC_KEY = re.compile(r"(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-\S+) [A-Za-z0-9+/=]+(?: [^'\"\s;]+)?")
STATES = {
    Phase.BOOTING: ("loading", "running"),
    Phase.RUNNING: ("running", "running"),
    Phase.STOPPED: ("exited", "stopped"),
    Phase.DEAD: ("created", "running"),
}
SLASH = r"/?"


class VastStandIn:
    """One marketplace with one account, whose key is `key`."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key
        self._account_keys: dict[int, str] = {}
        self._credit = 100 * 1_000_000_000
        self._figures = figures(NAME) if show_figures else ()
        self._next = FIRST_CONTRACT

    def routes(self) -> list[Route]:
        instance = r"/api/v0/instances/([^/]+)" + SLASH
        return [
            Route(method="POST", pattern=r"/api/v0/bundles" + SLASH, action=self._bundles, open=True),
            Route(method="PUT", pattern=r"/api/v0/search/asks" + SLASH, action=self._search_asks),
            Route(method="GET", pattern=r"/api/v0/gpu_names/unique" + SLASH, action=self._gpu_names, open=True),
            Route(method="PUT", pattern=r"/api/v0/asks/(\d+)" + SLASH, action=self._create, creates=True),
            Route(method="GET", pattern=r"/api/v1/instances" + SLASH, action=self._list),
            Route(method="GET", pattern=instance, action=self._show),
            Route(method="PUT", pattern=instance, action=self._change),
            Route(method="DELETE", pattern=instance, action=self._destroy),
            Route(method="POST", pattern=r"/api/v0/instances/(\d+)/ssh" + SLASH, action=self._attach_key),
            Route(method="GET", pattern=r"/api/v0/ssh" + SLASH, action=self._list_keys),
            Route(method="POST", pattern=r"/api/v0/ssh" + SLASH, action=self._add_key),
            Route(method="GET", pattern=r"/api/v0/users/current" + SLASH, action=self._me),
            Route(method="GET", pattern=r"/api/v0/charges" + SLASH, action=self._charges),
        ]

    def check_key(self, call: Call) -> Reply | None:
        """Without a key 403, with an unknown one 404. A container's own key opens its own instance alone."""
        if not call.key:
            return Reply(status=403, body=failure("auth_error", "This action requires login."))
        if secrets.compare_digest(call.key.encode(), self._key.reveal().encode()):
            return None
        for rental in self.yard.rentals.values():
            if call.key == rental.own_key and rental.phase is not Phase.ENDED:
                mine = re.fullmatch(rf"/api/v0/instances/{rental.rental_id}/?", call.path)
                return None if mine else Reply(status=403, body=failure("auth_error", "Not allowed with this key."))
        return Reply(status=404, body=failure("auth_error", "Invalid user key"))

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            detail = {"detail": "API requests too frequent endpoint threshold=4.5"}
            return Reply(status=429, body=detail, headers={"Retry-After": "1"})
        return Reply(status=503, body=b"<html>503 Service Temporarily Unavailable</html>", content_type="text/html")

    def no_such_path(self, call: Call) -> Reply:
        return Reply(status=404, body=failure("not_found", f"no such endpoint {call.path}"))

    # ── offers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _bundles(self, call: Call) -> Reply:
        body = call.body()
        if not isinstance(body, dict):
            return Reply(status=400, body={"error": "invalid_request", "msg": "Invalid json body"})
        return Reply(body={"offers": searched(await self._rows(body.get("allocated_storage", 8)), body)})

    async def _search_asks(self, call: Call) -> Reply:
        query = call.body().get("q", {})
        rows = searched(await self._rows(query.get("allocated_storage", 8)), query)
        return Reply(body={"success": True, "offers": rows})

    async def _gpu_names(self, _call: Call) -> Reply:
        names = {figure.gpu_raw.replace("_", " ") for figure in figures(NAME)}
        return Reply(body={"gpu_names": sorted(names)})

    async def _rows(self, disk_gb: Any) -> list[dict[str, Any]]:
        stored = int(float(disk_gb))
        pretend = self.faults.is_armed(Fault.WRONG_GPU)
        rows = [row_of(offer, stored, self.yard.now_ms(), pretend=pretend) for offer in await self.yard.free()]
        return rows + [row_of_figure(figure, n, stored, self.yard.now_ms()) for n, figure in enumerate(self._figures)]

    # ── instances ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _create(self, call: Call) -> Reply:
        ask, body = int(call.names[0]), call.body()
        if not isinstance(body, dict) or not body.get("image") or float(body.get("disk") or 8) < 8:
            return refused_ask(400, "invalid_args", "error 400/3467: Invalid args: 'image' and 'disk' >= 8", ask)
        offer = next((offer for offer in await self.yard.free() if ask_id(offer) == ask), None)
        if self.faults.take(Fault.SOLD_TWICE) or (offer is None and self._was_listed(ask)):
            return refused_ask(410, "no_such_ask", f"error 410/3907: no_such_ask Instance {ask} is taken.", ask)
        if offer is None:
            words = f"error 404/3603: no_such_ask Instance type by id {ask} is not available."
            return refused_ask(404, "invalid_args", words, ask)
        rental = self._rental(offer, body)
        self.yard.start(rental)
        done = {"success": True, "new_contract": int(rental.rental_id), "instance_api_key": rental.own_key}
        return Reply(body=done)

    def _was_listed(self, ask: int) -> bool:
        sold = any(ask_id(rental.offer) == ask for rental in self.yard.rentals.values())
        return sold or any(figure_ask(n) == ask for n in range(len(self._figures)))

    def _rental(self, offer: Offer, body: dict[str, Any]) -> SimRental:
        self._next += 1
        disk_gb = int(float(body.get("disk") or 8))
        keys = PUBLIC_KEY.findall(str(body.get("onstart") or "")) + list(self._account_keys.values())
        return SimRental(
            rental_id=str(self._next),
            label=str(body.get("label") or ""),
            offer=offer,
            rate_nusd_hour=offer.price_nusd_hour,
            disk_rate_nusd_hour=disk_rate(disk_gb),
            disk_gb=disk_gb,
            own_key=secrets.token_hex(32),
            created_ms=self.yard.now_ms(),
            ssh_keys=keys,
            extra={"image": body["image"], "runtype": body.get("runtype") or "ssh", "env": body.get("env")},
        )

    def _present(self) -> list[SimRental]:
        return [rental for rental in self.yard.rentals.values() if rental.phase is not Phase.ENDED]

    def _found(self, call: Call) -> SimRental | None:
        return next((rental for rental in self._present() if rental.rental_id == call.names[0]), None)

    async def _list(self, call: Call) -> Reply:
        """At most 25 at once, by ascending id; the token is opaque to callers."""
        filters = wish_in(call, "select_filters")
        limit = int(call.query.get("limit") or MOST_INSTANCES)
        most = min(MOST_INSTANCES, limit) if limit > 0 else 5
        shown = [row for row in map(self._instance, self._present()) if all_match(row, filters)]
        after = int(call.query.get("after_token") or 0)
        rest = [row for row in shown if row["id"] > after]
        page = rest[:most]
        labels = [row["label"] or "" for row in shown]
        listing = {
            "success": True,
            "instances_found": len(page),
            "total_instances": len(shown),
            "label_counts": {label: labels.count(label) for label in labels},
            "next_token": str(page[-1]["id"]) if len(rest) > len(page) else None,
            "instances": page,
        }
        return Reply(body=listing)

    async def _show(self, call: Call) -> Reply:
        """One object under a plural name; null for one that is gone."""
        found = self._found(call)
        return Reply(body={"instances": None if found is None else self._instance(found)})

    async def _change(self, call: Call) -> Reply:
        found, body = self._found(call), call.body()
        if found is None:
            return Reply(status=404, body=failure("no_such_instance", f"Instance {call.names[0]} not found."))
        if "label" in body:
            found.label = str(body["label"])
        if body.get("state") == "stopped":
            self.yard.stop(found, "stopped by the user")
        return Reply(body={"success": True})

    async def _destroy(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return Reply(status=404, body=failure("no_such_instance", f"Instance {call.names[0]} not found."))
        self.yard.end(found)
        return Reply(body={"success": True, "msg": "Instance destroyed successfully"})

    def _instance(self, rental: SimRental) -> dict[str, Any]:
        actual, wished = STATES[rental.phase]
        row = row_of(rental.offer, rental.disk_gb, self.yard.now_ms(), pretend=self.faults.is_armed(Fault.WRONG_GPU))
        total = rental.rate_nusd_hour + rental.disk_rate_nusd_hour
        port = rental.port
        bindings = [{"HostIp": "0.0.0.0", "HostPort": str(port)}]  # noqa: S104 - as Docker words it
        return {
            **{name: row[name] for name in INSTANCE_FIELDS},
            "id": int(rental.rental_id),
            "label": rental.label or None,
            "actual_status": actual,
            "intended_status": wished,
            "cur_state": wished,
            "next_state": wished,
            "status_msg": rental.detail or None,
            "image_uuid": rental.extra["image"],
            "image_runtype": rental.extra["runtype"],
            "image_args": [],
            "extra_env": pairs(rental.extra["env"]),
            "ssh_host": "127.0.0.1",
            "ssh_idx": "1",
            "ssh_port": port or 1,
            "public_ipaddr": "127.0.0.1\n" if port else "",
            "local_ipaddrs": "10.0.0.5 172.17.0.2 \n",
            "ports": {"22/tcp": bindings} if port else {},
            "dph_base": in_dollars(rental.rate_nusd_hour),
            "dph_total": in_dollars(total),
            "is_bid": False,
            "start_date": Decimal(rental.created_ms) / 1000,
            "end_date": rental.created_ms // 1000 + WEEK_S,
            "duration": float(WEEK_S),
            "uptime_mins": None if rental.running_ms is None else (self.yard.now_ms() - rental.running_ms) / 60_000,
        }

    # ── keys, account, bills ─────────────────────────────────────────────────────────────────────────────────────────

    async def _attach_key(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return Reply(status=404, body=failure("no_such_instance", f"Instance {call.names[0]} not found."))
        found.ssh_keys.append(str(call.body().get("ssh_key", "")))
        return Reply(body={"success": True, "msg": "SSH key added to instance"})

    async def _list_keys(self, _call: Call) -> Reply:
        if not self._account_keys:
            return Reply(status=404, body=failure("not_found", "No SSH keys found for the user."))
        return Reply(body=[{"id": n, "user_id": 1, "public_key": key} for n, key in self._account_keys.items()])

    async def _add_key(self, call: Call) -> Reply:
        number, key = len(self._account_keys) + 1, str(call.body().get("ssh_key", ""))
        self._account_keys[number] = key
        return Reply(body={"success": True, "key": {"id": number, "user_id": 1, "public_key": key}})

    async def _me(self, _call: Call) -> Reply:
        spent = sum(item[1] for rental in self.yard.rentals.values() for item in bill(rental, self.yard.now_ms()))
        credit = in_dollars(self._credit - spent)
        me = {"id": 1, "key_id": 1, "email": "somebody@example.org", "balance": 0.0, "credit": credit, "ssh_key": ""}
        return Reply(body=me | {"sid": "S1", "username": "somebody", "host_agreement_accepted": False})

    async def _charges(self, call: Call) -> Reply:
        day = wish_in(call, "select_filters").get("day", {})
        if "gte" not in day or "lte" not in day:
            words = "Must provide both 'day' gte and lte filters for instance charges"
            return Reply(status=400, body=failure("invalid_args", words))
        rows = [row for r in self.yard.rentals.values() if (row := charge_row(r, self.yard.now_ms())) is not None]
        rows = [row for row in rows if row["end"] >= float(day["gte"]) and row["start"] <= float(day["lte"])]
        page = {"success": True, "count": len(rows), "total": len(rows), "next_token": None, "results": rows}
        return Reply(body=page)


def pairs(env: object) -> list[list[str]]:
    """An environment as instances show it."""
    return [[str(name), str(value)] for name, value in env.items()] if isinstance(env, dict) else []


INSTANCE_FIELDS = (
    "machine_id",
    "host_id",
    "hosting_type",
    "bundle_id",
    "gpu_name",
    "num_gpus",
    "gpu_ram",
    "gpu_totalram",
    "gpu_frac",
    "cpu_name",
    "cpu_cores",
    "cpu_cores_effective",
    "cpu_ram",
    "disk_space",
    "storage_cost",
    "inet_up",
    "inet_down",
    "inet_up_cost",
    "inet_down_cost",
    "min_bid",
    "geolocation",
    "reliability2",
    "verification",
    "external",
)


def row_of(offer: Offer, disk_gb: int, now_ms: int, *, pretend: bool) -> dict[str, Any]:
    """A host of the pool as Vast would list it; `pretend` gives it a GPU that it does not have."""
    name, gpu_mb = PRETENDED_GPU if pretend else (offer.gpu_raw, round(offer.vram_gib * 1024))
    gpus = 1 if pretend else offer.gpu_count
    facts = {
        "id": ask_id(offer),
        "machine_id": zlib.crc32(offer.machine_id.encode()) % 100_000,
        "gpu_name": name.removeprefix("NVIDIA ").removeprefix("GeForce "),
        "num_gpus": gpus,
        "gpu_ram": gpu_mb,
        "cpu_name": offer.cpu_model,
        "cpu_cores": offer.cpu_cores,
        "cpu_cores_effective": float(offer.cpu_cores),
        "cpu_ram": int(offer.memory_gib * 1024),
        "disk_space": offer.disk_gib,
        "geolocation": f"{offer.region or 'Nowhere'}, {offer.country or 'XX'}",
        "hosting_type": 1,
    }
    return whole_row(facts, offer.price_nusd_hour, disk_gb, now_ms)


def row_of_figure(figure: Figure, number: int, disk_gb: int, now_ms: int) -> dict[str, Any]:
    """A machine that was seen once. Whoever asks for it finds it taken."""
    facts = {
        "id": figure_ask(number),
        "machine_id": 10_000 + number,
        "gpu_name": figure.gpu_raw.replace("_", " "),
        "num_gpus": figure.gpu_count,
        "gpu_ram": round(figure.vram_gib * 1024),
        "cpu_name": "EPYC 7B13",
        "cpu_cores": int(figure.vcpus),
        "cpu_cores_effective": figure.vcpus,
        "cpu_ram": int(figure.ram_gib * 1024),
        "disk_space": 500.0,
        "geolocation": f"{figure.region}, {figure.country}" if figure.region else figure.country,
        "hosting_type": 0,
    }
    return whole_row(facts, figure.price_nusd_hour, disk_gb, now_ms)


def whole_row(facts: dict[str, Any], price_nusd_hour: int, disk_gb: int, now_ms: int) -> dict[str, Any]:
    """The fields that all rows have in the same way."""
    base, disk = in_dollars(price_nusd_hour), in_dollars(disk_rate(disk_gb))
    total = in_dollars(price_nusd_hour + disk_rate(disk_gb))
    cost = {"gpuCostPerHour": base, "diskHour": disk, "totalHour": total}
    return {
        **facts,
        "ask_contract_id": facts["id"],
        "bundle_id": facts["id"] - 1_000_000,
        "host_id": facts["machine_id"] % 1000,
        "gpu_total_ram": facts["gpu_ram"] * facts["num_gpus"],
        "gpu_totalram": facts["gpu_ram"] * facts["num_gpus"],
        "gpu_frac": 1.0,
        "gpu_arch": "nvidia",
        "cpu_arch": "amd64",
        "cuda_max_good": 12.8,
        "compute_cap": 890,
        "storage_cost": STORAGE_USD_GB_MONTH,
        "storage_total_cost": disk,
        "inet_up": 780.0,
        "inet_down": 910.0,
        "inet_up_cost": 0.004,
        "inet_down_cost": 0.002,
        "direct_port_count": 120,
        "static_ip": True,
        "dph_base": base,
        "dph_total": total,
        "min_bid": in_dollars(price_nusd_hour // 2),
        "is_bid": False,
        "score": 1000.0 / (1 + float(total)),
        "dlperf": 100.0,
        "dlperf_per_dphtotal": 100.0 / max(0.001, float(total)),
        "reliability": 0.9967,
        "reliability2": 0.9967,
        "verification": "verified",
        "vericode": 1,
        "rentable": True,
        "rented": False,
        "external": None,
        "driver_version": "570.86.15",
        "duration": float(WEEK_S),
        "end_date": now_ms // 1000 + WEEK_S,
        "start_date": now_ms / 1000,
        "search": cost,
    }


def ask_id(offer: Offer) -> int:
    """An ask is a number at Vast."""
    return FIRST_ASK + zlib.crc32(offer.offer_id.encode()) % 500_000


def figure_ask(number: int) -> int:
    return FIRST_ASK + 600_000 + number


def disk_rate(disk_gb: int) -> int:
    """Nano-dollars an hour for the disk."""
    return int(STORAGE_USD_GB_MONTH * 1_000_000_000) * disk_gb // HOURS_PER_MONTH


def bill(rental: SimRental, now_ms: int) -> list[tuple[str, int, int, int]]:
    """What it has cost, as (item, nano-dollars, from, to): the GPU while it ran, the disk all the time."""
    end_ms = rental.ended_ms or now_ms
    items = []
    if (computed := rental.computed_ms) is not None:
        start, stop = computed[0], computed[1] or now_ms
        items.append(("gpu", cost_nusd(rental.rate_nusd_hour, stop - start), start, stop))
    disk = cost_nusd(rental.disk_rate_nusd_hour, end_ms - rental.created_ms)
    return [*items, ("disk", disk, rental.created_ms, end_ms)]


def charge_row(rental: SimRental, now_ms: int) -> dict[str, Any] | None:
    """A rental's row on the bill: whole seconds, and amounts to a tenth of a cent."""
    items = [charge(kind, nusd, start, end, rental) for kind, nusd, start, end in bill(rental, now_ms)]
    whole = {
        "start": rental.created_ms // 1000,
        "end": (rental.ended_ms or now_ms) // 1000,
        "type": "instance",
        "source": f"instance-{rental.rental_id}",
        "description": f"Instance {rental.rental_id} Charges",
        "amount": sum((item["amount"] for item in items), Decimal(0)),
        "metadata": {"label": rental.label} if rental.label else {},
    }
    return whole | {"items": items}


def charge(kind: str, nusd: int, start_ms: int, end_ms: int, rental: SimRental) -> dict[str, Any]:
    hours = Decimal(end_ms - start_ms) / MS_PER_HOUR
    words = f"{hours:.3f} hours" if kind == "gpu" else f"{rental.disk_gb} GB"
    return {
        "start": start_ms // 1000,
        "end": end_ms // 1000,
        "type": kind,
        "source": None,
        "description": words,
        "amount": (Decimal(nusd) / 1_000_000_000).quantize(Decimal("0.001")),
        "metadata": {},
        "items": [],
    }


def wish_in(call: Call, name: str) -> dict[str, Any]:
    """JSON inside a query parameter.

    Raises:
        Refusal: it is none.
    """
    try:
        wish = msgspec.json.decode(call.query.get(name) or "{}")
    except msgspec.DecodeError:
        wish = None
    if not isinstance(wish, dict):
        raise Refusal(Reply(status=400, body=failure("invalid_args", f"{name} is not JSON")))
    return wish


def all_match(row: dict[str, Any], filters: dict[str, Any]) -> bool:
    for name, wish in filters.items():
        if "in" in wish and row.get(name) not in wish["in"]:
            return False
        if "eq" in wish and row.get(name) != wish["eq"]:
            return False
    return True


def failure(error: str, message: str) -> dict[str, Any]:
    return {"success": False, "error": error, "msg": message}


def refused_ask(status: int, error: str, message: str, ask: int) -> Reply:
    return Reply(status=status, body=failure(error, message) | {"ask_id": ask})
