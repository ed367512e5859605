"""One attached node: reach it, set it up, probe it, keep the conversation going until it is detached.

The lease machine in the broker decides what becomes of a node; this part observes and says so in facts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import msgspec

from jupyter_gpumarket.api import (
    AnyFact,
    Attach,
    LinkBack,
    Linked,
    LinkLost,
    NodeFailed,
    NodeLeaving,
    NodeSystem,
    NodeView,
    PackagePin,
    PackageThere,
    Prepared,
    Probed,
    SetupStep,
)
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.cluster.blobs import BlobStore
from jupyter_gpumarket.cluster.bulk import Bulk
from jupyter_gpumarket.cluster.code import Code, NodeCode
from jupyter_gpumarket.cluster.farewell import Farewell
from jupyter_gpumarket.cluster.progress import Facts
from jupyter_gpumarket.cluster.reach import Link, Reach
from jupyter_gpumarket.cluster.records import NodeRecord
from jupyter_gpumarket.cluster.runs import RunStore
from jupyter_gpumarket.cluster.talk import Talk
from jupyter_gpumarket.errors import GpuMarketError, HostKeyChanged, NodeError, Unreachable, WireError
from jupyter_gpumarket.models import Notice
from jupyter_gpumarket.nodes import Installed, backoff_s
from jupyter_gpumarket.wire import messages as wire
from jupyter_gpumarket.wire.bulk import TakeBlob
from jupyter_gpumarket.wire.door import DoorOrder, DoorReports
from jupyter_gpumarket.wire.mapping import MapOrder, MapReport
from jupyter_gpumarket.wire.peer import Peer, Reader, Writer
from jupyter_gpumarket.wire.syncing import CodeTaken, TakeCode

logger = logging.getLogger(__name__)

T = TypeVar("T")
LONGEST_NOTICE_MS = 3600_000
KEPT_RESTARTS = 100

Phase = Literal["linking", "preparing", "probing", "ready", "failed", "detached"]
LinkState = Literal["connecting", "up", "lost", "closed", "refused"]


class _Refused(Exception):
    """This node will not do: no further attempt until the broker says otherwise."""

    def __init__(self, reason: str, *, blame_machine: bool = True) -> None:
        super().__init__(reason)
        self.blame_machine = blame_machine


class Node:
    """An attached node. `record` changes are given to `save` before they are acted on."""

    def __init__(
        self,
        record: NodeRecord,
        *,
        reach: Reach,
        runs: RunStore,
        blobs: BlobStore,
        code: Code,
        clock: Clock,
        facts: Facts,
        save: Callable[[], None],
        idle_tell_s: float = 60.0,
    ) -> None:
        self.record = record
        self._reach = reach
        self._runs = runs
        self._clock = clock
        self._facts = facts
        self._save = save
        self._idle_tell_s = idle_tell_s
        self._link: Link | None = None
        self._phase: Phase = "linking" if record.ready_ms is None else "ready"
        self._link_state: LinkState = "connecting"
        self._link_detail = ""
        self._told_lost = False
        self._was_attached = False
        self._last_seen_ms: int | None = None
        self._untold: list[AnyFact] = []
        self._restarts: deque[str] = deque(maxlen=KEPT_RESTARTS)
        self._owes_back = record.ready_ms is not None
        self._conversation = ""
        self._left = ""
        self._steps: dict[str, SetupStep] = {}
        self._hurry = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._peer = Peer(
            boot_id=os.urandom(8).hex(),
            receives=wire.Report | MapReport | CodeTaken | DoorReports,
            sends=wire.Order | MapOrder | TakeBlob | TakeCode | DoorOrder,
            on_attached=self._on_attached,
        )
        self.talk = Talk(
            lease_id=self.lease_id,
            peer=self._peer,
            runs=runs,
            blobs=blobs,
            clock=clock,
            facts=facts,
            on_agent=self._on_agent,
            deadline=self._deadline,
            bulk=Bulk(self._run_command, lambda: self._peer.round_trip_ms),
        )
        self.talk.progress.ready_ms = record.ready_ms
        self.talk.on_leaving = self._on_leaving
        self.farewell = Farewell(self.lease_id, self.talk, runs, clock, is_heard=lambda: self._peer.attached)
        self.code = NodeCode(
            code,
            self.lease_id,
            bring_blob=self.talk.bring_blob,
            order=self.talk.order,
            install=self._install,
            is_reached=lambda: self._link_state == "up",
        )
        self.talk.on_code = self.code.hear
        self.talk.before_run = self.code.settled

    @property
    def lease_id(self) -> str:
        return self.record.attach.lease_id

    @property
    def link_state(self) -> LinkState:
        """How the link is."""
        return self._link_state

    @property
    def phase(self) -> Phase:
        """How far it is."""
        return self._phase

    @property
    def round_trip_ms(self) -> float | None:
        """There and back over the link, where it is up."""
        return self._peer.round_trip_ms if self._peer.attached else None

    @property
    def is_ready(self) -> bool:
        """Whether cells can run on it, now or when its link is back."""
        return self._phase == "ready"

    @property
    def is_leaving(self) -> bool:
        """Whether it will end so soon that what it holds should move to others."""
        notice = self.record.attach.notice
        return notice is not None and notice.is_due(self._clock.now_ms())

    @property
    def link_detail(self) -> str:
        """Why, for people."""
        return self.talk.trouble or self.code.error or self._link_detail

    def start(self) -> None:
        """Begin; idempotent."""
        parts = {"link": self._serve, "talk": self._converse, "idle": self._tell_when_idle, "code": self.code.run}
        for name, part in parts.items():
            if name not in self._tasks or self._tasks[name].done():
                self._tasks[name] = asyncio.create_task(part())
        self.farewell.plan(self.record.attach.notice)

    def attach_again(self, attach: Attach) -> None:
        """The broker repeats the order: take its address, key and deadline, and try at once."""
        changed = attach != self.record.attach
        notice_changed = attach.notice != self.record.attach.notice
        host_key = attach.host_key or self.record.host_key
        self._change(attach=attach, host_key=host_key)
        if changed:
            self.talk.order(self._deadline())
        if notice_changed:
            self.farewell.plan(self.record.attach.notice)
        self._hurry.set()
        if self._link_state == "refused":
            self._link_state = "connecting"
            self._phase = "linking" if self.record.ready_ms is None else "ready"
            self.start()

    def set_deadline(self, deadline_ms: int) -> None:
        """A new time at which the node stops itself."""
        self._change(attach=msgspec.structs.replace(self.record.attach, deadline_ms=deadline_ms))
        self.talk.order(self._deadline())

    def set_notice(self, notice: Notice | None) -> None:
        """The node will end soon; None: that word was taken back."""
        if notice != self.record.attach.notice:
            self._change(attach=msgspec.structs.replace(self.record.attach, notice=notice))
            self.farewell.plan(self.record.attach.notice)

    def restart_session(self, session: str, asked: str = "") -> bool:
        """Pass a restart on; whether the node can hear it now (if not, it is told when it answers again).

        `asked` names what was asked for: when it is asked once more, because the answer was lost, it is one restart.
        """
        if not asked or asked not in self._restarts:
            self._restarts.append(asked)
            self.talk.order(wire.RestartSession(session=session))
        return self._peer.attached

    async def detach(self, timeout_s: float) -> None:
        """End the agent where it can be reached in time, close the link, and give up what still ran."""
        if self._peer.attached:
            self.talk.order(wire.Shutdown())
            try:
                async with asyncio.timeout(max(0.0, min(timeout_s, 60.0))):
                    await asyncio.sleep(0)
                    await self._peer.flush()
            except TimeoutError:
                logger.info("node %s did not take the order to shut down in time", self.lease_id)
        await self.close()
        self._phase, self._link_state = "detached", "closed"
        for run in self._runs.of_node(self.lease_id):
            if not run.state.has_ended:
                self.talk.progress.lose(run, "the node was given back, or was lost, before the cell had ended")

    async def close(self) -> None:
        """Drop the link; the agent on the node goes on."""
        self.farewell.plan(None)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._peer.detach()
        if self._link is not None:
            self._link.abort()

    async def _run_command(self, command: Callable[[Installed], str]) -> tuple[Reader, Writer]:
        """Run a command on the node, made for what is installed there.

        Raises:
            NodeError: there is no link now.
        """
        link, installed = self._at_work()
        return await link.open_stream(command(installed))

    async def packages_there(self, pins: tuple[PackagePin, ...]) -> tuple[tuple[PackageThere, ...], NodeSystem]:
        """What the node has of these packages.

        Raises:
            NodeError: it cannot be found out; `Unreachable` when there is no link now.
        """
        link, installed = self._at_work()
        return await link.packages(self.record.attach, installed, pins)

    async def _install(self, pins: tuple[PackagePin, ...], where: tuple[str, ...]) -> None:
        link, installed = self._at_work()
        await link.bring_packages(self.record.attach, installed, pins, where)

    def _at_work(self) -> tuple[Link, Installed]:
        installed, link = self.record.installed, self._link
        if installed is None or link is None or not link.connected:
            raise Unreachable("the link is down")
        return link, installed

    async def log(self) -> str:
        """Steps of set-up, and the last lines of the agent's log where the node answers."""
        lines = [f"{step.name}: {step.state} ({step.took_ms} ms) {step.detail}" for step in self._steps.values()]
        installed = self.record.installed
        if self._link is not None and self._link.connected and installed is not None:
            try:
                lines.append(await self._link.log(installed))
            except (GpuMarketError, OSError) as error:
                lines.append(f"the agent's log cannot be read: {error}")
        return "\n".join(lines) + "\n"

    def view(self) -> NodeView:
        """The node as doors see it."""
        return NodeView(
            lease_id=self.lease_id,
            name=self.record.attach.name,
            link=self._link_state,
            link_detail=self.link_detail,
            round_trip_ms=self.round_trip_ms,
            phase=self._phase,
            steps=tuple(self._steps.values()),
            sessions=tuple(sorted(self.talk.sessions)),
            running=self.talk.progress.running,
            use=self.talk.use,
            last_seen_ms=self._clock.now_ms() if self._peer.attached else self._last_seen_ms,
            notice=self.record.attach.notice,
        )

    # ── the link ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self) -> None:
        attempt = 0
        while True:
            self._was_attached = False
            self._hurry.clear()
            try:
                reason = await self._visit()
            except _Refused as refused:
                self._refuse(str(refused), blame_machine=refused.blame_machine)
                return
            except (GpuMarketError, OSError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            finally:
                if self._link is not None:
                    self._link.abort()
            attempt = 0 if self._was_attached else attempt + 1
            self._lost(reason)
            await self._pause(backoff_s(attempt, random.random()))  # noqa: S311 - jitter, no secret

    async def _visit(self) -> str:
        """One connection, from the first packet to its end; returns why it ended."""
        attach = self.record.attach
        self._link = link = self._reach(attach, self.record.host_key)
        try:
            await link.connect()
        except HostKeyChanged as error:
            raise _Refused(str(error)) from None
        self._linked(link)
        installed = self.record.installed
        if installed is None:
            installed = await self._set_up(link, attach)
        reader, writer = await link.open_stream(installed.attach_command)
        try:
            ended = await self._peer.attach(reader, writer)
        except WireError as error:
            raise _Refused(f"the node broke the protocol: {error}") from None
        if not self._was_attached:
            # Nobody answers there: the agent has ended, or the node was set up by somebody else. Begin with set-up.
            self._change(installed=None)
            return "the agent on the node does not answer; setting it up again"
        return str(ended)

    async def _set_up(self, link: Link, attach: Attach) -> Installed:
        """Prepare, and probe unless the node was ready before."""
        if self.record.ready_ms is None:
            self._phase = "preparing"
        installed = await self._or_refuse(link, link.prepare(attach, self._on_step))
        self._change(installed=installed)
        if self.record.ready_ms is not None:
            return installed
        self._fact(Prepared, python=installed.python_version, versions=installed.versions, steps_ms=installed.steps_ms)
        self._phase = "probing"
        report, differences = await self._or_refuse(link, link.probe(installed, attach))
        self.talk.progress.ready_ms = self._clock.now_ms()
        self._change(ready_ms=self.talk.progress.ready_ms)
        self._phase = "ready"
        self._fact(Probed, report=report, differences=differences)
        return installed

    async def _or_refuse(self, link: Link, work: Awaitable[T]) -> T:
        """A failure on a node that still answers is the node's; one on a cut link is tried again."""
        try:
            return await work
        except Unreachable:
            raise
        except NodeError as error:
            if not link.connected:
                raise
            raise _Refused(str(error)) from None

    def _linked(self, link: Link) -> None:
        key = link.host_key
        if key and key != self.record.host_key:
            self._change(host_key=key)
        self._last_seen_ms = self._clock.now_ms()
        if self._phase == "linking":
            self._fact(Linked, host_key=key or "", first_sight=link.first_sight)

    def _refuse(self, reason: str, *, blame_machine: bool) -> None:
        logger.warning("node %s is refused: %s", self.lease_id, reason)
        phase = self._phase if self._phase in ("linking", "preparing", "probing", "ready") else "ready"
        self._link_state, self._link_detail, self._phase = "refused", reason, "failed"
        self._fact(NodeFailed, phase=phase, reason=reason[:2000], blame_machine=blame_machine)

    def _lost(self, reason: str) -> None:
        logger.info("node %s: %s", self.lease_id, reason)
        self._link_detail = reason
        if self.record.ready_ms is None:
            self._link_state = "connecting"
            return
        self._link_state = "lost"
        if not self._told_lost:
            self._told_lost = self._owes_back = True
            self._fact(LinkLost, reason=reason[:2000])

    def _on_attached(self, is_attached: bool) -> None:
        if not is_attached:
            self._last_seen_ms = self._clock.now_ms()
            return
        self._was_attached = True
        self._link_state, self._link_detail = "up", ""
        if self._peer.peer_boot_id == self._conversation:
            self._back(same_boot=True)
        self._conversation = self._peer.peer_boot_id

    def _on_agent(self, agent: str) -> None:
        """Each conversation begins with the agent's word who it is."""
        same = agent == self.record.agent
        if not same:
            self._change(agent=agent)
            notice = self.record.attach.notice
            if notice is not None and notice.source == "node":
                self.set_notice(None)  # it was shut down, and is back
        self._back(same_boot=same)

    def _back(self, *, same_boot: bool) -> None:
        """The node answers. The broker hears of it after an outage, and after this process was started anew."""
        if self._owes_back:
            self._fact(LinkBack, same_boot=same_boot)
        self._owes_back = self._told_lost = False

    def _on_leaving(self, report: wire.Leaving) -> None:
        """The node's own word that it ends: kept within reason and taken once from each agent, whatever it says."""
        if self._left == self.record.agent:
            return
        self._left = self.record.agent
        left_ms = max(0, min(report.left_ms, LONGEST_NOTICE_MS))
        notice = Notice(ends_ms=self._clock.now_ms() + left_ms, reason=report.reason[:500], source="node")
        self.set_notice(notice)
        self._fact(NodeLeaving, ends_ms=notice.ends_ms, reason=notice.reason)

    def _on_step(self, step: SetupStep) -> None:
        self._steps[step.name] = step

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):  # not `wait_for`, which may swallow that this task is cancelled
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    # ── the conversation ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _converse(self) -> None:
        """The conversation outlives streams. An error of ours in it must not end the process: it begins again."""
        while True:
            try:
                await self.talk.run()
            except* WireError as group:
                reason = f"the node broke the protocol: {group.exceptions[0]}"
                self._tasks["link"].cancel()
                if self._link is not None:
                    self._link.abort()
                self._refuse(reason, blame_machine=True)
            except* Exception:
                # Whatever it is, a node must not become deaf over it: with `ListRuns` both sides begin from the disk.
                logger.exception("the conversation with node %s begins anew", self.lease_id)
            if self._link_state == "refused":
                return
            await asyncio.sleep(1)

    async def _tell_when_idle(self) -> None:
        while True:
            await asyncio.sleep(self._idle_tell_s)
            self._tell_all()
            with contextlib.suppress(OSError):
                if self._peer.attached:
                    self.talk.progress.tell_idle()

    # ── small things ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _deadline(self) -> wire.SetDeadline:
        return wire.SetDeadline(deadline_ms=self.record.attach.deadline_ms, grace_s=self.record.attach.grace_s)

    def _change(self, **fields: Any) -> None:
        self.record = msgspec.structs.replace(self.record, **fields)
        self._save()

    def _fact(self, kind: type[AnyFact], **fields: Any) -> None:
        self._untold.append(kind(lease_id=self.lease_id, at_ms=self._clock.now_ms(), **fields))
        self._tell_all()

    def _tell_all(self) -> None:
        """Facts about the node wait in memory while the disk takes nothing; the link is kept up meanwhile."""
        try:
            while self._untold:
                self._facts.put(self._untold[0])
                self._untold.pop(0)
        except OSError as error:
            logger.warning("node %s: a fact cannot be written down yet: %s", self.lease_id, error.strerror)
