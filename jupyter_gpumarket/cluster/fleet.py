"""Dask on the nodes of this cluster: decides what should run, orders it, and mends what broke.

This process speaks no Dask. It orders agents to start schedulers and workers, and carries their (encrypted) bytes from
node to node. What it does is one repeated comparison of what should run with what does, so that it makes no difference
in which order nodes come, go, fall silent and come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from jupyter_gpumarket.api import DaskAccess, DaskLack, DaskView, DaskWish
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.cluster import dask_plan as plan
from jupyter_gpumarket.cluster import leaving
from jupyter_gpumarket.cluster.authority import Identity, issue, new_authority
from jupyter_gpumarket.cluster.clashes import Clashes
from jupyter_gpumarket.cluster.doors import Doors
from jupyter_gpumarket.cluster.entrance import Entrance
from jupyter_gpumarket.cluster.fleet_lacks import lacks_of
from jupyter_gpumarket.cluster.fleet_members import FleetRecord, Member, Process
from jupyter_gpumarket.cluster.fleet_news import News, count_ways, way_views
from jupyter_gpumarket.cluster.node import Node
from jupyter_gpumarket.cluster.relay import STREAM_MESSAGES, Relay
from jupyter_gpumarket.cluster.staging import Staging
from jupyter_gpumarket.cluster.ways import Ways
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.wire import messages as wire
from jupyter_gpumarket.wire.door import BlobFetched, DoorProbed, DoorReport, RouteBroken

logger = logging.getLogger(__name__)

TICK_S = 1.0
# A node that is silent for so long is given up by Dask: its tasks run elsewhere. Its lease is the broker's affair.
NODE_PATIENCE_S = 45.0
START_PATIENCE_S = 90.0
# How long an agent has, after it was met, to say which processes it runs.
TELL_PATIENCE_S = 3.0
MAX_NOTICES = 20


class Fleet:
    """The Dask processes of a cluster."""

    def __init__(self, folder: Path, clock: Clock, rng: random.Random | None = None, *, direct: bool = True) -> None:
        self._file = folder / "dask.json"
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - ports are no secrets
        self.relay = Relay()
        self._members: dict[str, Member] = {}
        self._wake = asyncio.Event()
        self._news = News()
        self._retired: set[str] = set()
        self._notices: list[str] = []
        self._entrance = Entrance(folder, self.relay)
        self._direct = direct
        self._doors = Doors(clock=clock, files=self._door_files, changed=self._wake.set)
        self._staging = Staging(self._doors, self._members)
        self._record = FleetRecord()
        with contextlib.suppress(FileNotFoundError):
            self._record = msgspec.json.decode(self._file.read_bytes(), type=FleetRecord)
        self._processes: dict[str, Process] = {process.name: process for process in self._record.processes}
        for process in self._processes.values():  # the clock may have begun anew since, with this machine
            process.started_s, process.hurried_s = clock.monotonic_s(), 0.0
        self._clashes = Clashes(self._members, self._processes, stop=self._stop_all, notice=self._notice)
        self._ways = Ways(self.relay, taken=self._clashes.taken, changed=self._wake.set)

    # ── what others tell and ask ─────────────────────────────────────────────────────────────────────────────────────

    def join(self, node: Node) -> None:
        """A node is attached; its agent may not be met yet."""
        self._members[node.lease_id] = Member(node)
        node.talk.listener = lambda report: self._heard(node.lease_id, report)
        node.talk.inputs.staging = lambda sha256, size: self._staging.turn(node.lease_id, sha256, size)

    def leave(self, lease_id: str) -> None:
        """A node is detached: what ran there is gone."""
        self._members.pop(lease_id, None)
        self._doors.leave(lease_id)
        self._drop_of(lease_id)
        self._wake.set()

    def start(self, wish: DaskWish) -> DaskView:
        """Have Dask run from now on."""
        self._authority()
        self._change(wish=wish)
        self._wake.set()
        return self.view()

    def stop(self) -> DaskView:
        """End all Dask processes; a later start makes new ones."""
        self._change(wish=None, head="", head_reason="")
        self._wake.set()
        return self.view()

    def retire(self, lease_id: str, reason: str) -> DaskView:
        """Have a node's workers retired: Dask moves what they hold, then ends them; none is started there again.

        Raises:
            BadRequest: the node is not here, or Dask does not run.
        """
        member = self._members.get(lease_id)
        head = self._members.get(self._record.head)
        if member is None or head is None:
            raise BadRequest(f"lease_id: no Dask worker of {lease_id[:100]!r} is here to be retired")
        member.is_retiring = True
        names = tuple(process.name for process in self._workers() if process.lease_id == lease_id)
        self._notice(f"{member.name} retires{': ' if reason else ''}{reason[:200]}")
        head.node.talk.order(wire.RetireDask(workers=tuple(self._retired) + names))
        self._retired.update(names)
        return self.view()

    async def access(self) -> DaskAccess:
        """A way for a client of the user's own to the scheduler (and its dashboard), on this machine's loopback.

        Raises:
            BadRequest: no scheduler runs, or no port on this machine can be had.
        """
        scheduler = self._scheduler()
        if scheduler is None or scheduler.state != "running" or self._record.wish is None:
            raise BadRequest("no Dask scheduler runs on this cluster now")
        has_dashboard = self._record.wish.dashboard
        return await self._entrance.open(scheduler, self._dask_authority(), self._now(), has_dashboard=has_dashboard)

    def view(self) -> DaskView:
        """How it is."""
        scheduler = self._scheduler()
        networks = {member.network for member in self._members.values() if member.is_met}
        workers = tuple(self._news.worker_view(p, self._members.get(p.lease_id)) for p in self._workers())
        shared = sum(1 for p in self._workers() for member in self._others(p) if member.network == self._of(p))
        direct, relayed = count_ways(self._ways, self._doors, networks, self._workers())
        return DaskView(
            state=self._state(scheduler),
            head=self._record.head,
            head_reason=self._record.head_reason,
            generation=self._record.generation,
            address=scheduler.address if scheduler else "",
            workers=workers,
            tasks=self._news.tasks,
            relayed=relayed,
            direct=shared + direct,
            relayed_bytes=self.relay.relayed_bytes,
            staged_bytes=self._staging.direct_bytes,
            ways=way_views(self._doors),
            lacks=self._lacks(scheduler),
            notices=tuple(self._notices),
        )

    def _lacks(self, scheduler: Process | None) -> tuple[DaskLack, ...]:
        if self._record.wish is None:
            return ()
        members, now_s = self._members.values(), self._clock.monotonic_s()
        return lacks_of(members, self._workers(), scheduler, is_reached=self._is_reached, now_s=now_s)

    async def run(self) -> None:
        """Compare and mend, for ever. An error of ours in it must not be the end of it."""
        while True:
            self._wake.clear()
            try:
                self._tend()
            except Exception:
                logger.exception("Dask could not be tended; it is tried again")
            with contextlib.suppress(TimeoutError):  # not `wait_for`, which may swallow that this task is cancelled
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()

    def close(self) -> None:
        """Let go; agents and what they run go on."""
        self._ways.close()
        self._entrance.close()
        self.relay.close()

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _heard(self, lease_id: str, report: object) -> None:
        member = self._members.get(lease_id)
        if member is None:
            return
        match report:
            case wire.AgentReady():
                self._met(member, report)
            case wire.DaskReport():
                self._told(member, report)
            case wire.DaskStatus() if lease_id == self._record.head:
                self._status(report)
            case DoorReport() | DoorProbed() | RouteBroken():
                self._doors.heard(lease_id, report)
            case BlobFetched():
                self._staging.heard(lease_id, report)
            case _ if isinstance(report, STREAM_MESSAGES):
                self.relay.take(lease_id, report)

    def _met(self, member: Member, report: wire.AgentReady) -> None:
        """A fresh contact: no stream that was there before is there any more."""
        self._ways.forget_member(member.lease_id)
        self._doors.meet(member)
        self._staging.meet(member.lease_id)
        member.meet(report, self._clock.monotonic_s())
        self.relay.join(member.lease_id, member.node.talk.send)
        for process in self._processes.values():
            if process.lease_id == member.lease_id:
                process.is_unsure = True
        self._wake.set()

    def _told(self, member: Member, report: wire.DaskReport) -> None:
        process = self._processes.get(report.name)
        if process is None or process.lease_id != member.lease_id:
            if report.state in ("starting", "running"):
                member.node.talk.order(wire.StopDask(name=report.name))
            return
        process.is_unsure = False
        process.state = "running" if report.state == "running" else process.state
        process.address = report.address[:200] or process.address
        if report.state == "ended":
            self._ended(member, process, report.reason[-1500:])
        self._save()
        self._wake.set()

    def _ended(self, member: Member, process: Process, reason: str) -> None:
        self._forget(process)
        if process.name in self._retired:
            return
        member.note_end(process.slot, self._clock.monotonic_s(), reason, had_run=process.state == "running")
        logger.info("Dask process %s has ended: %s", process.name, reason)
        if process.is_scheduler:
            self._lose_head(f"the scheduler on {member.name} ended ({reason.splitlines()[0] if reason else ''})")

    def _status(self, report: wire.DaskStatus) -> None:
        self._news.take(report, self._clock.now_ms())
        self._note_work()
        for name in report.retired:
            process = self._processes.get(name)
            if process is not None and process.state != "retired":
                process.state = "retired"
                self._wake.set()

    def _note_work(self) -> None:
        """Nodes whose workers have tasks are not idle, though no cell runs there; nor is the head meanwhile."""
        busy = {p.lease_id for p in self._workers() if self._news.has_work(p.name)}
        for lease_id in busy | ({self._record.head} if busy else set()):
            if (member := self._members.get(lease_id)) is not None:
                member.node.talk.progress.other_work_ms = self._clock.now_ms()

    # ── comparing and mending ────────────────────────────────────────────────────────────────────────────────────────

    def _tend(self) -> None:
        for process in [p for p in self._processes.values() if p.lease_id not in self._members or self._is_lost(p)]:
            self._forget(process)
            if process.is_scheduler:
                self._lose_head("the scheduler's node does not run it any more")
        self._give_up_silent()
        if self._direct:
            self._doors.tend(list(self._met_members()), self._worker_ports())
        wish = self._record.wish
        if wish is None:
            self._stop_all(lambda _: True)
            return
        scheduler = self._scheduler()
        if scheduler is None:
            self._new_head(wish)
            return
        self._stop_all(lambda process: process.generation != self._record.generation)
        if scheduler.state != "running":
            self._hurry(scheduler)
            return
        self._make_ways()
        running = {process.lease_id for process in self._workers() if process.state == "running"}
        leaving.heed(self._members.values(), running=running, head=self._record.head, retire=self.retire)
        for member in self._ready_members():
            self._make_workers(member, scheduler, wish)

    def _is_lost(self, process: Process) -> bool:
        """Whether an agent that was met has not spoken of it."""
        member = self._members.get(process.lease_id)
        now_s = self._clock.monotonic_s()
        return process.is_unsure and member is not None and member.has_spoken(now_s, TELL_PATIENCE_S)

    def _give_up_silent(self) -> None:
        now = self._clock.monotonic_s()
        for member in self._members.values():
            if member.is_silent(now, NODE_PATIENCE_S) and member.lease_id != self._record.head:
                self._notice(f"{member.name} has been silent for {NODE_PATIENCE_S:g} s; its tasks run elsewhere")
                self._drop_of(member.lease_id)
                member.give_up()
            elif member.is_given_up and member.node.link_state == "up":
                # Its workers lost their scheduler meanwhile; what is left of them is cleared away.
                member.take_back(now)
                self.relay.join(member.lease_id, member.node.talk.send)
                for name in member.names:
                    member.node.talk.order(wire.StopDask(name=name))

    def _new_head(self, wish: DaskWish) -> None:
        able = [m for m in self._ready_members() if not m.is_retiring and m.may_start(None, self._clock.monotonic_s())]
        members = [member for member in able if not member.node.is_leaving] or able
        if not members:
            return
        lease_id, reason = plan.choose_head([member.candidate() for member in members])
        generation = self._record.generation + 1
        authority = new_authority("dask", self._now())
        self._change(head=lease_id, head_reason=reason, generation=generation, dask_authority=authority)
        self._stop_all(lambda _: True)
        self._news = News()
        member = self._members[lease_id]
        process = self._new_process(member, f"scheduler-{generation}", slot=None, gpu=None)
        process.is_scheduler = True
        member.names.add(process.name)
        order = plan.scheduler_order(
            process.name,
            port=process.port,
            dashboard_port=process.nanny_port,
            files=self._files(member, authority),
            wish=wish,
        )
        member.node.talk.order(order)
        self._save()

    def _make_workers(self, member: Member, scheduler: Process, wish: DaskWish) -> None:
        now = self._clock.monotonic_s()
        slots = plan.gpu_slots(member.gpu_count)
        there = {p.slot: p for p in self._workers() if p.lease_id == member.lease_id}
        for slot, gpu in enumerate(slots):
            if slot in there:
                self._hurry(there[slot])
            elif not member.is_retiring and member.may_start(slot, now) and self._is_reached(member, scheduler):
                # Never the name of a former one: the scheduler may not have noticed its end yet.
                name = f"{member.name}-{slot}-{self._rng.getrandbits(32):08x}"
                process = self._new_process(member, name, slot=slot, gpu=gpu)
                member.names.add(name)
                order = plan.worker_order(
                    name,
                    scheduler=scheduler.address,
                    port=process.port,
                    nanny_port=process.nanny_port,
                    gpu=gpu,
                    cores=max(member.cores // len(slots), 1) if member.cores else 0,
                    files=self._files(member, self._dask_authority()),
                    wish=wish,
                )
                member.node.talk.order(order)
                self._make_ways()
                self._save()

    def _hurry(self, process: Process) -> None:
        """One that does not come up is ended, and another one tried, also where the agent does not speak of it."""
        since_s = self._clock.monotonic_s() - max(process.started_s, process.hurried_s)
        member = self._members.get(process.lease_id)
        if process.state != "starting" or since_s <= START_PATIENCE_S or member is None or not member.is_up:
            return
        member.node.talk.order(wire.StopDask(name=process.name))
        if process.hurried_s:
            self._ended(member, process, f"its agent has not said for {2 * START_PATIENCE_S:g} s what became of it")
        process.hurried_s = self._clock.monotonic_s()

    def _new_process(self, member: Member, name: str, *, slot: int | None, gpu: int | None) -> Process:
        taken = {port for process in self._processes.values() for port in (process.port, process.nanny_port)}
        port = plan.new_port(taken, self._rng)
        process = Process(
            name=name,
            lease_id=member.lease_id,
            generation=self._record.generation,
            port=port,
            nanny_port=plan.new_port(taken | {port}, self._rng),
            slot=slot,
            gpu=gpu,
            started_s=self._clock.monotonic_s(),
        )
        self._processes[name] = process
        return process

    def _stop_all(self, which: Callable[[Process], bool]) -> None:
        for process in [p for p in self._processes.values() if which(p)]:
            member = self._members.get(process.lease_id)
            if member is not None:
                member.node.talk.order(wire.StopDask(name=process.name))
            self._forget(process)

    def _lose_head(self, reason: str) -> None:
        if not self._record.head:
            return
        self._notice(
            f"{reason}: its futures and the variables that lived there as Dask results are lost; a new scheduler is "
            "started, and what was not finished has to be submitted again"
        )
        self._change(head="", head_reason="")

    def _drop_of(self, lease_id: str) -> None:
        """Everything on a node is gone, as far as the others are concerned."""
        member = self._members.get(lease_id)
        self.relay.leave(lease_id)
        self._ways.forget_member(lease_id)
        for process in [p for p in self._processes.values() if p.lease_id == lease_id]:
            self._forget(process)
            if process.is_scheduler:
                self._lose_head(f"the head{' ' + member.name if member else ''} is gone")

    def _forget(self, process: Process) -> None:
        self._processes.pop(process.name, None)
        self._ways.forget_ports((process.port, process.nanny_port))

    def _make_ways(self) -> None:
        now = [process for process in self._processes.values() if process.generation == self._record.generation]
        self._ways.make(now, list(self._met_members()), self._record.head)

    def _worker_ports(self) -> dict[str, tuple[int, ...]]:
        """Of each node, the ports of its workers, which others may reach directly.

        A scheduler is reached through the relay alone: a worker whose connection to it breaks ends for good, and only
        the relay's connections outlive a broken network. Between workers Dask asks again.
        """
        ports: dict[str, tuple[int, ...]] = {}
        for process in self._workers():
            if process.generation == self._record.generation:
                ports[process.lease_id] = (*ports.get(process.lease_id, ()), process.port)
        return ports

    def _is_reached(self, member: Member, scheduler: Process) -> bool:
        """Whether a worker that starts on the node now finds the scheduler."""
        return member.network == self._of(scheduler) or self._ways.is_open(member.network, scheduler.port)

    # ── small things ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _met_members(self) -> Iterator[Member]:
        return (m for m in self._members.values() if m.is_met and not m.is_given_up and not m.kept_out)

    def _ready_members(self) -> list[Member]:
        """Those that can be worked with: a worker without the user's own modules would die of the first task."""
        return [member for member in self._met_members() if member.is_up and member.node.code.is_current]

    def _scheduler(self) -> Process | None:
        return next((p for p in self._processes.values() if p.is_scheduler and p.lease_id == self._record.head), None)

    def _workers(self) -> list[Process]:
        return [process for process in self._processes.values() if not process.is_scheduler]

    def _of(self, process: Process) -> str:
        member = self._members.get(process.lease_id)
        return member.network if member is not None else ""

    def _others(self, process: Process) -> Iterator[Member]:
        return (member for member in self._met_members() if member.lease_id != process.lease_id)

    def _authority(self) -> Identity:
        if self._record.authority is None:
            self._change(authority=new_authority("doors", self._now()))
        assert self._record.authority is not None
        return self._record.authority

    def _dask_authority(self) -> Identity:
        return self._record.dask_authority or self._authority()

    def _files(self, member: Member, authority: Identity) -> plan.Files:
        own = member.identities.get(authority.certificate)
        if own is None:
            own = member.identities[authority.certificate] = issue(authority, member.lease_id, self._now())
        return plan.Files(authority=authority.certificate, own=own)

    def _door_files(self, member: Member) -> plan.Files:
        return self._files(member, self._authority())

    def _state(self, scheduler: Process | None) -> Literal["off", "waiting", "starting", "running"]:
        if self._record.wish is None:
            return "off"
        if scheduler is None:
            return "waiting"
        return "running" if scheduler.state == "running" else "starting"

    def _notice(self, text: str) -> None:
        logger.warning("%s", text)
        self._notices = [*self._notices, text][-MAX_NOTICES:]

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock.now_ms() / 1000, dt.UTC)

    def _change(self, **fields: object) -> None:
        self._record = msgspec.structs.replace(self._record, **fields)
        self._save()

    def _save(self) -> None:
        self._record = msgspec.structs.replace(self._record, processes=tuple(self._processes.values()))
        write_private(self._file, msgspec.json.encode(self._record))
