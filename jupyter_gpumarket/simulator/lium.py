"""A stand-in for Lium (Bittensor's subnet 51): its paths, its error envelope, and its odd habits."""

from __future__ import annotations

import secrets
import uuid
from decimal import Decimal
from typing import Any

from jupyter_gpumarket.clock import iso_utc, text_in_ms
from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import MS_PER_HOUR
from jupyter_gpumarket.simulator.faults import Fault, FaultBoard
from jupyter_gpumarket.simulator.figures import figures
from jupyter_gpumarket.simulator.lium_rows import IDS, billed, figure_id, node_of, row_of, row_of_figure, statement_row
from jupyter_gpumarket.simulator.web import Call, Reply, Route, in_dollars
from jupyter_gpumarket.simulator.yard import Phase, SimRental, Yard

NAME = "lium"
CREDIT_NUSD = 100 * 1_000_000_000
STATUSES = {
    Phase.BOOTING: ("PENDING", "starting container"),
    Phase.RUNNING: ("RUNNING", None),
    Phase.STOPPED: ("STOPPED", None),
    Phase.DEAD: ("CREATION_FAILED", None),
}
MOST_HOURS = 720
FEATURES = ["rent_by_spec", "run_record", "rent_idempotency"]
TEMPLATE: dict[str, Any] = {
    "id": str(uuid.uuid5(IDS, "pytorch")),
    "name": "PyTorch (CUDA)",
    "docker_image": "daturaai/pytorch",
    "docker_image_tag": "2.7.1-py3.12-cuda12.8",
    "docker_image_digest": "",
    "category": "PYTORCH",
    "status": "VERIFY_SUCCESS",
    "internal_ports": [22, 8888],
    "volumes": ["/workspace"],
    "is_private": False,
    "one_time_template": False,
    "supports_volume_encryption": True,
    "user_id": None,
}
RENT_FIELDS = {
    "pod_name",
    "template_id",
    "dockerfile_content",
    "volume_id",
    "user_public_key",
    "initial_port_count",
    "enable_volume_encryption",
    "backup_log_id",
    "restore_path",
    "enable_backups",
    "gpu_count",
    "termination_hours",
    "build_context_sha256",
}


class LiumStandIn:
    """One marketplace with one account, whose key is `key`."""

    name = NAME

    def __init__(self, yard: Yard, faults: FaultBoard, key: Secret, *, show_figures: bool = False) -> None:
        self.yard = yard
        self.faults = faults
        self._key = key
        self._figures = figures(NAME) if show_figures else ()
        self._templates: dict[str, dict[str, Any]] = {TEMPLATE["id"]: TEMPLATE}
        self._ssh_keys: list[dict[str, Any]] = []
        self._answered: dict[str, Reply] = {}

    def routes(self) -> list[Route]:
        node, pod = r"/api/executors/([0-9a-f-]{36})", r"/api/pods/([^/]+)"
        return [
            Route(method="GET", pattern=r"/api/version", action=self._version, open=True),
            Route(method="GET", pattern=r"/api/machines", action=self._machines, open=True),
            Route(method="GET", pattern=r"/api/executors", action=self._list_nodes),
            Route(method="GET", pattern=r"/api/executors/default-docker-image", action=self._default_images),
            Route(method="GET", pattern=node + "/quote", action=self._quote),
            Route(method="POST", pattern=node + "/rent", action=self._rent, creates=True),
            Route(method="POST", pattern=r"/api/executors/rent-by-spec", action=self._rent_by_spec, creates=True),
            Route(method="GET", pattern=r"/api/templates", action=self._list_templates),
            Route(method="POST", pattern=r"/api/templates", action=self._add_template),
            Route(method="GET", pattern=r"/api/ssh-keys", action=self._list_ssh_keys),
            Route(method="POST", pattern=r"/api/ssh-keys", action=self._add_ssh_key),
            Route(method="GET", pattern=r"/api/pods", action=self._list),
            Route(method="GET", pattern=pod, action=self._show),
            Route(method="DELETE", pattern=pod, action=self._remove),
            Route(method="GET", pattern=pod + "/record", action=self._record),
            Route(method="GET", pattern=pod + "/events", action=self._events),
            Route(method="POST", pattern=pod + "/schedule-removal", action=self._schedule),
            Route(method="DELETE", pattern=pod + "/schedule-removal", action=self._unschedule),
            Route(method="GET", pattern=r"/api/users/me", action=self._me),
            Route(method="GET", pattern=r"/api/billing/statement", action=self._statement),
        ]

    def check_key(self, call: Call) -> Reply | None:
        """Only X-API-KEY counts."""
        told = call.headers.get("x-api-key", "")
        if secrets.compare_digest(told.encode(), self._key.reveal().encode()):
            return None
        return failure(401, "unauthorized", "Could not validate credentials")

    def trouble(self, fault: Fault) -> Reply:
        if fault is Fault.TOO_MANY_CALLS:
            return failure(429, "rate_limited", "Too many requests", {"Retry-After": "1"})
        return failure(503, "service_unavailable", "Try again later")

    def no_such_path(self, call: Call) -> Reply:
        return failure(404, "not_found", f"No route {call.path}")

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _version(self, _call: Call) -> Reply:
        return Reply(body={"version": "1.0.0", "features": FEATURES})

    async def _machines(self, _call: Call) -> Reply:
        names = {row["machine_name"] for row in await self._rows()} | {each.gpu_raw for each in figures(NAME)}
        return Reply(body=[{"name": name} for name in sorted(names) if name])

    async def _rows(self) -> list[dict[str, Any]]:
        pretend = self.faults.is_armed(Fault.WRONG_GPU)
        now_ms = self.yard.now_ms()
        rows = [row_of(offer, now_ms, pretend=pretend) for offer in await self.yard.free()]
        return rows + [row_of_figure(figure, n, now_ms) for n, figure in enumerate(self._figures)]

    async def _list_nodes(self, call: Call) -> Reply:
        """A bare array; what is not told as a filter is not filtered."""
        asked, rows = call.query, await self._rows()
        if names := asked.get("machine_names"):
            rows = [row for row in rows if row["machine_name"] in names.split(",")]
        if least := asked.get("gpu_count_gte"):
            rows = [row for row in rows if row["gpu_count"] >= int(least)]
        if most := asked.get("gpu_count_lte"):
            rows = [row for row in rows if row["gpu_count"] <= int(most)]
        if asked.get("nvlink") == "true":
            rows = []
        return Reply(body=rows)

    async def _default_images(self, _call: Call) -> Reply:
        image = {"docker_image": TEMPLATE["docker_image"], "docker_image_tag": TEMPLATE["docker_image_tag"]}
        return Reply(body=[image])

    async def _quote(self, call: Call) -> Reply:
        """What the node would be billed at; nothing is held."""
        row = next((row for row in await self._rows() if row["id"] == call.names[0]), None)
        if row is None:
            return failure(404, "not_found", "Executor not found")
        count = int(call.query.get("gpu_count") or row["gpu_count"])
        if count > max(1, row["gpu_count"]):
            return failure(400, "bad_request", f"Only {row['gpu_count']} GPUs are free")
        hours = Decimal(call.query.get("hours") or 1)
        price = row["price_per_gpu"] * max(1, count)
        compute = {"item": "compute", "unit": "GPU-hour", "rate_usd": row["price_per_gpu"], "quantity": hours * count}
        egress = {
            "item": "egress",
            "unit": "GB",
            "rate_usd": None,
            "quantity": 0,
            "amount_usd": None,
            "note": "at cost",
        }
        body = {
            "executor_id": row["id"],
            "gpu_count": count,
            "hours": hours,
            "price_per_hour": price,
            "lines": [compute | {"amount_usd": price * hours, "note": ""}, egress],
            "total_usd": price * hours,
            "pod_balance_floor_usd": price / 4,
            "rent_balance_required_usd": price / 4,
        }
        return Reply(body=body)

    # ── templates and keys ───────────────────────────────────────────────────────────────────────────────────────────

    async def _list_templates(self, _call: Call) -> Reply:
        return Reply(body=list(self._templates.values()))

    async def _add_template(self, call: Call) -> Reply:
        body = call.body()
        if not isinstance(body, dict) or not body.get("name") or not body.get("docker_image"):
            return invalid("docker_image", "Field required")
        new_id = str(uuid.uuid4())
        self._templates[new_id] = template = TEMPLATE | body | {"id": new_id, "status": "CREATED", "user_id": "u1"}
        return Reply(body=template)

    async def _list_ssh_keys(self, _call: Call) -> Reply:
        return Reply(body=self._ssh_keys)

    async def _add_ssh_key(self, call: Call) -> Reply:
        body = call.body()
        key = {"id": str(uuid.uuid4()), "created_at": iso_utc(self.yard.now_ms())}
        self._ssh_keys.append({**key, "name": body.get("name", ""), "public_key": body.get("public_key", "")})
        return Reply(body=self._ssh_keys[-1])

    # ── pods ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _rent(self, call: Call) -> Reply:
        """A key that was seen gets the first answer again, whatever became of that one on its way."""
        key = call.headers.get("idempotency-key", "")
        if key and key in self._answered:
            first = self._answered[key]
            return Reply(body=first.body, status=first.status, headers={"Idempotent-Replayed": "true"})
        reply = await self._rent_anew(call.names[0], call.body())
        if key:
            self._answered[key] = reply
        return reply

    async def _rent_anew(self, node_id: str, body: Any) -> Reply:
        if (refused := self._wrong(body)) is not None:
            return refused
        offer = next((offer for offer in await self.yard.free() if node_of(offer) == node_id), None)
        if self.faults.take(Fault.SOLD_TWICE) or (offer is None and self._was_listed(node_id)):
            return failure(409, "executor_unavailable", "The node is already rented")
        if offer is None:
            return failure(404, "not_found", "Executor not found")
        count = body.get("gpu_count")
        if count is not None and count != offer.gpu_count:
            return failure(400, "bad_request", "This node is rented whole")
        if self._left() < offer.price_nusd_hour // 4:
            return failure(
                403, "insufficient_balance", f"Insufficient balance. Your balance is ${self._left() / 1e9:.2f}."
            )
        rental = self._rental(offer, body)
        self.yard.start(rental)
        if (hours := body.get("termination_hours")) is not None:
            self._end_at(rental, rental.created_ms + hours * MS_PER_HOUR)
        return Reply(body={"success": True, "pod_id": rental.rental_id})

    async def _rent_by_spec(self, call: Call) -> Reply:
        body = call.body()
        rows = [
            row for row in await self._rows() if str(body.get("gpu_type", "")).upper() in row["machine_name"].upper()
        ]
        if not rows:
            return failure(404, "no_matching_executor", "No node satisfies the spec")
        row = min(rows, key=lambda row: row["price_per_gpu"])
        pod_id = None
        if not body.get("dry_run"):
            reply = await self._rent_anew(row["id"], {name: body.get(name) for name in RENT_FIELDS})
            if reply.status != 200:
                return reply
            pod_id = reply.body["pod_id"]
        told = {"selected_executor": row, "pod_id": pod_id, "price_per_hour": row["price_per_hour"], "attempts": 1}
        more = {"template_id": TEMPLATE["id"], "candidates": len(rows), "alternatives_considered": []}
        return Reply(body=told | more | {"dry_run": bool(body.get("dry_run"))})

    def _wrong(self, body: Any) -> Reply | None:
        """Why a rent body is refused before anything is looked for."""
        if not isinstance(body, dict):
            return invalid("body", "Input should be a valid dictionary")
        hours, template = body.get("termination_hours"), body.get("template_id")
        wrongs = {
            min(set(body) - RENT_FIELDS, default=""): set(body) - RENT_FIELDS,
            "pod_name": not body.get("pod_name"),
            "user_public_key": not body.get("user_public_key"),
            "template_id": bool(template) == bool(body.get("dockerfile_content")),
            "termination_hours": hours is not None and not (isinstance(hours, int) and 1 <= hours <= MOST_HOURS),
        }
        for field, is_wrong in wrongs.items():
            if is_wrong:
                return invalid(field, "Input is not accepted")
        return failure(404, "not_found", "Template not found") if template and template not in self._templates else None

    def _was_listed(self, node_id: str) -> bool:
        sold = any(node_of(rental.offer) == node_id for rental in self.yard.rentals.values())
        return sold or any(figure_id(n) == node_id for n in range(len(self._figures)))

    def _rental(self, offer: Offer, body: dict[str, Any]) -> SimRental:
        return SimRental(
            rental_id=str(uuid.uuid4()),
            label=str(body["pod_name"]),
            offer=offer,
            rate_nusd_hour=offer.price_nusd_hour,
            disk_rate_nusd_hour=0,
            disk_gb=0,
            own_key=secrets.token_hex(8),
            created_ms=self.yard.now_ms(),
            ssh_keys=[str(key).strip() for key in body["user_public_key"]],
            extra={"template_id": body.get("template_id"), "removal_ms": None},
        )

    def _end_at(self, rental: SimRental, at_ms: int | None) -> None:
        rental.extra["removal_ms"] = at_ms
        self.yard.end_at(rental, at_ms)

    def _present(self) -> list[SimRental]:
        return [rental for rental in self.yard.rentals.values() if rental.phase is not Phase.ENDED]

    def _found(self, call: Call) -> SimRental | None:
        return next((rental for rental in self._present() if rental.rental_id == call.names[0]), None)

    async def _list(self, _call: Call) -> Reply:
        return Reply(body=[self._pod(rental) for rental in self._present()])

    async def _show(self, call: Call) -> Reply:
        found = self._found(call)
        return failure(404, "not_found", "Pod not found") if found is None else Reply(body=self._pod(found))

    async def _remove(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return failure(404, "not_found", "Pod not found")
        self.yard.end(found)
        return Reply(body={"success": True})

    async def _schedule(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return failure(404, "not_found", "Pod not found")
        at_ms = text_in_ms(str(call.body().get("removal_scheduled_at")))
        if at_ms is None:
            return invalid("removal_scheduled_at", "Input should be a valid datetime")
        self._end_at(found, at_ms)
        return Reply(body={"success": True, "removal_scheduled_at": call.body()["removal_scheduled_at"]})

    async def _unschedule(self, call: Call) -> Reply:
        found = self._found(call)
        if found is None:
            return failure(404, "not_found", "Pod not found")
        self._end_at(found, None)
        return Reply(body={"success": True})

    async def _events(self, call: Call) -> Reply:
        rental = self.yard.rentals.get(call.names[0])
        if rental is None:
            return failure(404, "not_found", "Pod not found")
        return Reply(body=[{"event": "create", "error": rental.detail if rental.phase is Phase.DEAD else None}])

    def _pod(self, rental: SimRental) -> dict[str, Any]:
        """The count of GPUs is a text, as Lium sends it."""
        status, phase = STATUSES[rental.phase]
        now_ms, removal_ms = self.yard.now_ms(), rental.extra["removal_ms"]
        node = row_of(rental.offer, now_ms, pretend=self.faults.is_armed(Fault.WRONG_GPU))
        ready = status == "RUNNING" and rental.port
        return {
            "id": rental.rental_id,
            "pod_name": rental.label,
            "status": status,
            "phase": phase,
            "gpu_name": node["machine_name"],
            "gpu_count": str(node["gpu_count"]),
            "price": in_dollars(rental.rate_nusd_hour),
            "ssh_connect_cmd": f"ssh {rental.login}@127.0.0.1 -p {rental.port}" if ready else None,
            "ports_mapping": {"22": rental.port} if ready else {},
            "created_at": iso_utc(rental.created_ms),
            "updated_at": iso_utc(now_ms),
            "removal_scheduled_at": None if removal_ms is None else iso_utc(int(str(removal_ms))),
            "estimated_ready_seconds": 20 if status == "PENDING" else None,
            "eta_basis": "executor_history" if status == "PENDING" else None,
            "jupyter_installation_status": None,
            "jupyter_url": None,
            "api_key_id": "k1",
            "workspace_id": None,
            "executor": {name: value for name, value in node.items() if name != "price_per_gpu"},
            "template": self._templates.get(str(rental.extra["template_id"])),
        }

    # ── account and bills ────────────────────────────────────────────────────────────────────────────────────────────

    def _left(self) -> int:
        now_ms = self.yard.now_ms()
        return CREDIT_NUSD - sum(billed(rental, now_ms)[1] for rental in self.yard.rentals.values())

    async def _me(self, _call: Call) -> Reply:
        return Reply(body={"id": "u1", "email": "a@example.org", "balance": in_dollars(self._left())})

    async def _record(self, call: Call) -> Reply:
        """One run, readable after the pod is removed."""
        rental = self.yard.rentals.get(call.names[0])
        if rental is None:
            return failure(404, "not_found", "Pod not found")
        now_ms = self.yard.now_ms()
        segment = {"price_per_hour": in_dollars(rental.rate_nusd_hour), "from": iso_utc(rental.created_ms)}
        more = {"executor_id": node_of(rental.offer), "launch_snapshot": None, "price_segments": [segment]}
        ended = rental.phase is Phase.ENDED
        return Reply(
            body=statement_row(rental, now_ms) | more | {"removed": ended, "close_reason": "unrent" if ended else None}
        )

    async def _statement(self, call: Call) -> Reply:
        now_ms = self.yard.now_ms()
        rows = [statement_row(rental, now_ms) for rental in self.yard.rentals.values()]
        days = {"start_day": call.query.get("start_day"), "end_day": call.query.get("end_day")}
        return Reply(body=days | {"total": sum((row["total"] for row in rows), Decimal(0)), "pods": rows})


def failure(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    """Lium's envelope of an error."""
    request_id = secrets.token_hex(8)
    error = {"code": code, "message": message, "hint": None, "request_id": request_id}
    return Reply(
        status=status, body={"error": error, "message": message}, headers={"X-Request-Id": request_id} | (headers or {})
    )


def invalid(field: str, message: str) -> Reply:
    error = {"code": "validation_error", "message": "Validation error", "hint": None, "request_id": ""}
    errors = [{"field": field, "message": message}]
    return Reply(status=422, body={"error": error, "message": "Validation error", "validation_errors": errors})
