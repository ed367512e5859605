"""The conversation with the agent of one node: orders out, reports in.

What must hold:
1. A run is executed at most once: the order's addressee is on disk before the order leaves, and a run that its
   addressee no longer knows is lost, not repeated.
2. Each contact with an agent begins with `ListRuns`; from its answer both sides know where every run is.
3. A node speaks only of its own runs. What it says is bounded before it is written down.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_gpumarket.api import GpuUse, NodeUse
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.cluster.blobs import BlobStore
from jupyter_gpumarket.cluster.bulk import Bulk
from jupyter_gpumarket.cluster.inputs import Inputs
from jupyter_gpumarket.cluster.outputs import OutputFetcher
from jupyter_gpumarket.cluster.progress import Facts, RunProgress
from jupyter_gpumarket.cluster.runs import Run, RunStore
from jupyter_gpumarket.codecs import Limits, strict_json
from jupyter_gpumarket.errors import BadRequest, CodecError, PeerRestarted
from jupyter_gpumarket.models import RunStatus
from jupyter_gpumarket.wire import messages as wire
from jupyter_gpumarket.wire.mapping import MapReady, MapReport
from jupyter_gpumarket.wire.peer import Peer
from jupyter_gpumarket.wire.syncing import CodeTaken

logger = logging.getLogger(__name__)

SHOWN_TYPES = frozenset({"stream", "display_data", "update_display_data", "execute_result", "clear_output", "error"})
# What is kept must be written as JSON again, where integers have 64 bits.
MESSAGE_LIMITS = Limits(json_bytes=wire.MAX_MESSAGE_BYTES, max_digits=18, max_items=500_000)
MAX_SESSIONS = 100
SAVE_EVERY_S = 0.5
DISK_RETRY_S = 2.0
SAVING_S = 10.0


class Talk:
    """One node's conversation. Lives as long as the node is attached, over all streams and agents."""

    def __init__(
        self,
        *,
        lease_id: str,
        peer: Peer,
        runs: RunStore,
        blobs: BlobStore,
        clock: Clock,
        facts: Facts,
        on_agent: Callable[[str], None],
        deadline: Callable[[], wire.SetDeadline],
        bulk: Bulk | None = None,
    ) -> None:
        self._lease_id = lease_id
        self._peer = peer
        self._bulk = bulk
        self._runs = runs
        self._on_agent = on_agent
        self._deadline = deadline
        self.inputs = Inputs(blobs, peer.send, bulk)
        self.progress = RunProgress(lease_id, runs, clock, facts)
        self.agent = ""
        self.sessions: set[str] = set()
        self.use: NodeUse | None = None
        self.trouble = ""
        self.listener: Callable[[Any], None] = _ignore
        self._orders: asyncio.Queue[Any] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._is_synced = False
        self._epoch = 0
        self._sent: set[str] = set()
        self._unsaved: set[str] = set()
        self._fetchers: dict[str, OutputFetcher] = {}
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._saving: dict[str, float] = {}
        self.on_leaving: Callable[[wire.Leaving], None] = lambda _report: None
        # Set by whoever runs maps: a contact with an agent begins, and what the agent says of its maps.
        self.on_contact: Callable[[], None] = lambda: None
        self.on_map: Callable[[MapReport], None] = lambda _report: None
        # Set by whoever keeps the user's own modules on the node: no cell runs before they are there.
        self.before_run: Callable[[], Awaitable[object]] = _nothing
        self.on_code: Callable[[wire.AgentReady | CodeTaken], None] = lambda _report: None

    @property
    def is_synced(self) -> bool:
        """Whether both sides know where every run is."""
        return self._is_synced

    async def run(self) -> None:
        """Talk, until cancelled.

        Raises:
            WireError: the node broke the protocol.
        """
        self._forget_contact()
        if self.agent:
            self.order(wire.ListRuns())  # not the first time: both sides find out anew where every run is
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_orders())
            group.create_task(self._send_runs())
            group.create_task(self._save())
            try:
                await self._receive()
            finally:
                for task in self._settling.values():
                    task.cancel()

    def order(self, order: Any) -> None:
        """Send an order as soon as the node can be heard; it is kept over cuts of the link."""
        self._orders.put_nowait(order)

    async def send(self, message: Any) -> None:
        """Send now, waiting for room; for what is much, so that orders need not wait behind it in our queue."""
        await self._peer.send(message)

    def new_run(self) -> None:
        """A run was queued for this node."""
        self._wake.set()

    def interrupt(self, run: Run, save_for: str = "") -> None:
        """Interrupt a run; one that has not left yet ends at once. `save_for`: why, when its outputs are wanted."""
        if run.state.has_ended or run.state.has_ended_on_node or (save_for and self._is_saving(run)):
            return
        if not run.state.sent_to:
            self.progress.end_here(run, RunStatus.INTERRUPTED, "interrupted before it was sent to the node")
            return
        reason = "" if self._peer.attached else "the node cannot be reached; it is interrupted when it answers again"
        run.change(interrupt_asked=True, reason=reason, save_for=save_for)
        self.order(wire.Interrupt(run_id=run.run_id, save=bool(save_for)))

    def _is_saving(self, run: Run) -> bool:
        """Whether its outputs may be on their way: a second interrupt would only hit their encoding."""
        now_s = asyncio.get_running_loop().time()
        return now_s < self._saving.setdefault(run.run_id, now_s) + SAVING_S and bool(run.state.save_for)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _send_orders(self) -> None:
        while True:
            await self._peer.send(await self._orders.get())

    async def _send_runs(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for run in self._runs.of_node(self._lease_id):
                waits = run.state.status is RunStatus.QUEUED and not run.state.has_ended_on_node
                waits = waits and not run.state.request.map_id
                if self._is_synced and waits and run.run_id not in self._sent:
                    await self._send_run(run)

    async def _send_run(self, run: Run) -> None:
        epoch = self._epoch
        try:
            await self.before_run()
            for sha256 in dict.fromkeys(blob.sha256 for blob in run.state.request.inputs):
                await self.bring_blob(sha256)
        except (BadRequest, OSError, TimeoutError) as error:
            if epoch == self._epoch:
                self.progress.end_here(run, RunStatus.ERROR, f"an input could not be sent to the node: {error}")
            return
        if epoch != self._epoch or run.state.has_ended:
            return  # the agent changed meanwhile, or the user interrupted; the next contact sorts it out
        run.change(sent_to=self.agent)
        self._sent.add(run.run_id)
        request = run.state.request
        await self._peer.send(
            wire.Execute(
                run_id=request.run_id,
                session=request.session,
                code=request.code,
                inputs=tuple(wire.Input(name=i.name, codec=i.codec, sha256=i.sha256) for i in request.inputs),
                outputs=request.outputs,
                timeout_s=request.timeout_s,
            )
        )
        await self._peer.send(wire.Tail(run_id=run.run_id, after=run.log.agent_upto))

    async def bring_blob(self, sha256: str) -> None:
        """Bring an input over, unless the agent has it.

        Raises:
            BadRequest: the node cannot keep it.
            OSError, TimeoutError: it is gone here, or the agent was restarted.
        """
        await self.inputs.bring(sha256)

    async def _save(self) -> None:
        """Tell the node what is safe here, in the rhythm of the disk rather than of the messages."""
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            for run_id in list(self._unsaved):
                self._unsaved.discard(run_id)
                run = self._runs.find(run_id)
                if run is None or run_id in self._settling:
                    continue
                upto = run.log.agent_upto
                await asyncio.to_thread(run.log.sync)
                await self._peer.send(wire.Saved(run_id=run_id, upto=upto))

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _receive(self) -> None:
        while True:
            try:
                report = await self._peer.receive()
            except PeerRestarted:
                self._forget_contact()
                continue
            while True:
                try:
                    self._handle(report)
                    self.trouble = ""
                    break
                except OSError as error:
                    self.trouble = f"cannot write the run's log here: {error.strerror}; make room on the disk"
                    logger.warning("%s", self.trouble)
                    await asyncio.sleep(DISK_RETRY_S)

    def _handle(self, report: Any) -> None:
        handler = _HANDLERS.get(type(report))
        if isinstance(report, MapReport):
            self.on_map(report)
        elif isinstance(report, CodeTaken):
            self.on_code(report)
        elif handler is not None:
            handler(self, report)
        else:
            self.listener(report)

    def _forget_contact(self) -> None:
        self._is_synced = False
        self._epoch += 1
        self._sent.clear()
        self.inputs.forget_contact()
        for task in self._settling.values():
            task.cancel()
        self._settling.clear()
        self._fetchers.clear()

    def _on_ready(self, report: wire.AgentReady) -> None:
        agent = f"{report.pid}-{report.started_ms}"
        is_known = self._is_synced and agent == self.agent
        self.agent = agent
        self.sessions = {name[: wire.MAX_NAME_CHARS] for name in report.sessions[:MAX_SESSIONS]}
        self._on_agent(agent)
        self.on_code(report)
        if is_known:
            return  # only the stream is new: the conversation goes on where it was
        self._forget_contact()
        self.order(self._deadline())
        self.order(wire.ListRuns())
        self.listener(report)

    def _on_list(self, report: wire.RunList) -> None:
        known = {found.run_id for found in report.runs}
        for found in report.runs:
            self._on_state(found)
            run = self._own(found.run_id)
            if run is not None and not run.state.is_settled:
                self._sent.add(run.run_id)
                self.order(wire.Tail(run_id=run.run_id, after=run.log.agent_upto))
                if run.state.interrupt_asked and not run.state.has_ended_on_node:
                    self.order(wire.Interrupt(run_id=run.run_id, save=bool(run.state.save_for)))
            elif run is not None:
                self.order(wire.Saved(run_id=run.run_id, upto=run.log.agent_upto, ended=True))
        for run in self._runs.of_node(self._lease_id):
            if run.run_id not in known and not run.state.has_ended and run.state.sent_to:
                self._missing(run)
        self._is_synced = True
        self._wake.set()
        self.on_contact()

    def _missing(self, run: Run) -> None:
        """A run that was sent and that the agent does not know."""
        if run.state.sent_to != self.agent or run.state.node_status:
            self.progress.lose(run, "the agent on the node was restarted while the cell ran")

    def _on_state(self, report: wire.RunStateReport) -> None:
        run = self._own(report.run_id)
        if run is None or run.state.has_ended:
            return
        self.progress.apply(run, report)
        self._settle_if_complete(run)

    def _on_output(self, report: wire.RunOutput) -> None:
        run = self._own(report.run_id)
        if run is None or run.state.has_ended or report.n <= run.log.agent_upto:
            return
        if report.n != run.log.agent_upto + 1:
            self.order(wire.Tail(run_id=run.run_id, after=run.log.agent_upto))
            return
        self._keep(run, report)
        self._unsaved.add(run.run_id)
        run.tell()
        self._settle_if_complete(run)

    def _keep(self, run: Run, report: wire.RunOutput) -> None:
        content, metadata = _json(report.content), _json(report.metadata)
        if content is not None and report.msg_type in SHOWN_TYPES:
            run.log.append(report.n, report.at_ms, report.msg_type, content, metadata or {})
        elif content is not None and report.msg_type == "truncated":
            notice = {"name": "stderr", "text": f"[on the node: {str(content.get('text', ''))[:500]}]\n"}
            run.log.append(report.n, report.at_ms, "stream", notice, {})
        else:
            run.log.skip(report.n)

    def _on_chunk(self, report: wire.OutputChunk) -> None:
        fetcher = self._fetchers.get(report.run_id)
        if fetcher is not None:
            fetcher.take(report)

    def _on_blob(self, report: wire.BlobStored) -> None:
        self.inputs.stored(report)

    def _on_session(self, report: wire.SessionReport) -> None:
        if report.state in ("dead", "closed"):
            self.sessions.discard(report.session)
        elif len(self.sessions) < MAX_SESSIONS:
            self.sessions.add(report.session[: wire.MAX_NAME_CHARS])

    def _on_use(self, report: wire.UseReport) -> None:
        self.progress.compare_clocks(report.at_ms)
        self.progress.tell_traffic(max(0, report.received_bytes), max(0, report.sent_bytes))
        self.use = NodeUse(
            at_ms=report.at_ms,
            cpu_percent=_finite(report.cpu_percent),
            memory_used_gib=_finite(report.memory_used_gib),
            memory_total_gib=_finite(report.memory_total_gib),
            disk_free_gib=_finite(report.disk_free_gib),
            gpus=tuple(
                GpuUse(
                    index=gpu.index,
                    name=gpu.name[: wire.MAX_NAME_CHARS],
                    use_percent=_finite(gpu.use_percent),
                    memory_used_gib=_finite(gpu.memory_used_gib),
                    memory_total_gib=_finite(gpu.memory_total_gib),
                )
                for gpu in report.gpus[:64]
            ),
        )

    def _on_leaving(self, report: wire.Leaving) -> None:
        self.on_leaving(report)

    def _on_trouble(self, report: wire.Trouble) -> None:
        logger.warning("node %s: %.200s: %.500s", self._lease_id, report.about, report.reason)
        order, _, run_id = report.about.partition(" ")
        if order == "StartMap":
            self.on_map(MapReady(map_id=run_id, error=report.reason[:2000] or "the node refused it"))
            return
        run = self._own(run_id)
        if run is None or run.state.has_ended:
            return
        if order == "Execute" and not run.state.node_status:
            self.progress.end_here(run, RunStatus.ERROR, f"the node refused the cell: {report.reason[:2000]}")
        elif order == "GetOutput" and run_id in self._fetchers:
            self._fetchers[run_id].refuse(report.reason)

    def _own(self, run_id: str) -> Run | None:
        run = self._runs.find(run_id)
        return run if run is not None and run.state.request.lease_id == self._lease_id else None

    # ── the end of a run ─────────────────────────────────────────────────────────────────────────────────────────────

    def _settle_if_complete(self, run: Run) -> None:
        state = run.state
        is_complete = state.has_ended_on_node and run.log.agent_upto >= state.agent_messages
        if is_complete and not state.is_settled and run.run_id not in self._settling:
            task = self._settling[run.run_id] = asyncio.create_task(self._settle(run))
            task.add_done_callback(self._settled)

    @staticmethod
    def _settled(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a run could not be settled", exc_info=error)

    async def _settle(self, run: Run) -> None:
        """Bring the outputs over, then let the doors see the end, then let the node forget."""
        fetcher = self._fetchers[run.run_id] = OutputFetcher(run, self._peer.send, self._bulk)
        while True:
            try:
                outputs = await fetcher.fetch_all()
                await self.progress.settle(run, outputs)
                break
            except OSError as error:
                self.trouble = f"cannot keep the outputs here: {error.strerror}; make room on the disk"
                await asyncio.sleep(DISK_RETRY_S)
        run.close()
        self._fetchers.pop(run.run_id, None)
        self._settling.pop(run.run_id, None)
        self.order(wire.Saved(run_id=run.run_id, upto=run.log.agent_upto, ended=True))


async def _nothing() -> None:
    """Nothing is to be waited for."""


def _ignore(report: Any) -> None:
    """Nobody else listens to this node."""
    del report


def _finite(number: float) -> float:
    """A measurement that JSON can hold."""
    return number if math.isfinite(number) else 0.0


def _json(data: bytes) -> dict[str, Any] | None:
    try:
        found = strict_json.loads(data, MESSAGE_LIMITS)
    except CodecError as error:
        logger.info("a message that is not sound JSON was left out: %s", error)
        return None
    return found if isinstance(found, dict) else None


_HANDLERS: dict[type, Callable[[Talk, Any], None]] = {
    wire.AgentReady: Talk._on_ready,  # noqa: SLF001 - this table is the class's own
    wire.RunList: Talk._on_list,  # noqa: SLF001
    wire.RunStateReport: Talk._on_state,  # noqa: SLF001
    wire.RunOutput: Talk._on_output,  # noqa: SLF001
    wire.OutputChunk: Talk._on_chunk,  # noqa: SLF001
    wire.BlobStored: Talk._on_blob,  # noqa: SLF001
    wire.SessionReport: Talk._on_session,  # noqa: SLF001
    wire.UseReport: Talk._on_use,  # noqa: SLF001
    wire.Leaving: Talk._on_leaving,  # noqa: SLF001
    wire.Trouble: Talk._on_trouble,  # noqa: SLF001
}
