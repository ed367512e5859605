"""Why a node has fewer Dask workers than it should have, in words for people. Decided from facts alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

from jupyter_gpumarket.api import DaskLack
from jupyter_gpumarket.cluster import dask_plan as plan
from jupyter_gpumarket.cluster.fleet_members import Member, Process
from jupyter_gpumarket.cluster.node import LinkState, Phase
from jupyter_gpumarket.models import Record

MAX_LACKS = 200
MAX_WORDS = 500


class Standing(Record, frozen=True, kw_only=True):
    """What is known of a node with a place for a worker in which none runs, or that is not heard.

    `heard`: whether its agent has been met. `kept_out`: why Dask does without it. `code`: whether the user's own
    modules and packages are there; `code_error`: why they cannot be; `code_trouble`: why they are not yet. `worker`:
    the one in that place, which was ordered `ordered_s` ago. `wait_s`: how long until one may be started there.
    `last_end`: how the last one ended.
    """

    phase: Phase = "ready"
    link: LinkState = "up"
    link_detail: str = ""
    heard: bool = True
    is_given_up: bool = False
    kept_out: str = ""
    is_retiring: bool = False
    code: bool = True
    code_error: str = ""
    code_trouble: str = ""
    scheduler: Literal["none", "starting", "running"] = "running"
    reaches_scheduler: bool = True
    worker: Literal["none", "starting", "running", "retired"] = "none"
    ordered_s: float = 0.0
    wait_s: float = 0.0
    last_end: str = ""


def why(now: Standing) -> str:
    """The first thing that stands in the way, from the link upwards."""
    return _link(now) or now.kept_out or _code(now) or _scheduler(now) or _worker(now)


def _link(now: Standing) -> str:
    detail = f": {now.link_detail}" if now.link_detail else ""
    given_up = ", and its tasks run elsewhere" if now.is_given_up else ""
    if now.worker == "running":
        given_up = ", and what runs there goes on until it is given up"
    if now.link == "refused":
        return f"it is not used any more{detail}"
    if now.phase in ("linking", "preparing", "probing"):
        return f"it is being set up ({now.phase}){detail}"
    if now.link != "up":
        return f"its link is down{given_up}{detail}"
    if not now.heard:
        return "its link is up, and its agent has said nothing yet"
    return "its link is back; what ran there is cleared away first" if now.is_given_up else ""


def _code(now: Standing) -> str:
    if now.code:
        return ""
    if now.code_error:
        return f"it cannot have your modules and packages: {now.code_error}"
    if now.code_trouble:
        return f"your modules and packages are not there yet: {now.code_trouble}"
    return "your modules and packages are on their way"


def _scheduler(now: Standing) -> str:
    if now.is_retiring or now.worker == "retired":
        return "its workers retire; none is started any more"
    if now.scheduler == "none":
        ended = f"; the last one there: {now.last_end}" if now.last_end else ""
        return f"no scheduler is there yet{ended}"
    return "the scheduler is starting" if now.scheduler == "starting" else ""


def _worker(now: Standing) -> str:
    ended = f" (the one before: {now.last_end})" if now.last_end else ""
    if now.worker == "starting":
        return f"its worker was ordered {now.ordered_s:.0f} s ago, and does not run yet{ended}"
    if now.wait_s > 0:
        return f"its workers end before they have come up; the next one starts in {now.wait_s:.0f} s{ended}"
    if not now.reaches_scheduler:
        return "the way to the scheduler is not open yet"
    return f"a worker is about to start{ended}"


def lacks_of(
    members: Iterable[Member],
    workers: Sequence[Process],
    scheduler: Process | None,
    *,
    is_reached: Callable[[Member, Process], bool],
    now_s: float,
) -> tuple[DaskLack, ...]:
    """Each node with a place in which no worker runs, or that is not heard, and why."""
    lacks: list[DaskLack] = []
    for member in members:
        here = {process.slot: process for process in workers if process.lease_id == member.lease_id}
        slot = _free_slot(member, here.values())
        if slot is not None and len(lacks) < MAX_LACKS:
            now = _standing(member, slot, here.get(slot), scheduler, is_reached=is_reached, now_s=now_s)
            lacks.append(DaskLack(lease_id=member.lease_id, reason=why(now)[:MAX_WORDS]))
    return tuple(lacks)


def _free_slot(member: Member, here: Collection[Process]) -> int | None:
    if member.node.link_state != "up":
        return 0
    at_work = {process.slot for process in here if process.state == "running"}
    return next((slot for slot in range(len(plan.gpu_slots(member.gpu_count))) if slot not in at_work), None)


def _standing(
    member: Member,
    slot: int,
    worker: Process | None,
    scheduler: Process | None,
    *,
    is_reached: Callable[[Member, Process], bool],
    now_s: float,
) -> Standing:
    node = member.node
    place = slot if scheduler is not None else None
    return Standing(
        phase=node.phase,
        link=node.link_state,
        link_detail=node.link_detail,
        heard=member.is_met,
        is_given_up=member.is_given_up,
        kept_out=f"Dask does without it: {member.kept_out}" if member.kept_out else "",
        is_retiring=member.is_retiring,
        code=node.code.is_current,
        code_error=node.code.error,
        code_trouble=node.code.trouble,
        scheduler="none" if scheduler is None else "running" if scheduler.state == "running" else "starting",
        reaches_scheduler=scheduler is not None and is_reached(member, scheduler),
        worker=worker.state if worker is not None else "none",
        ordered_s=now_s - worker.started_s if worker is not None else 0.0,
        wait_s=member.wait_s(place, now_s),
        last_end=member.last_end(place),
    )
