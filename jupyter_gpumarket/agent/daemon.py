"""The agent's daemon: takes orders from the user's side, and lives on when nobody is attached.

One loop takes orders and never waits for room in the channel; whatever sends much (output, results, streams) has a task
of its own, so that a full window holds up nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import signal
import socket
import sys
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from jupyter_gpumarket.agent import check, processes, sync
from jupyter_gpumarket.agent.blobs import Blobs
from jupyter_gpumarket.agent.code_tree import CodeTree
from jupyter_gpumarket.agent.dask import DaskProcesses
from jupyter_gpumarket.agent.direct import DirectWays
from jupyter_gpumarket.agent.driver import FILE
from jupyter_gpumarket.agent.folder import NodeFolder, safe_name, write_atomically
from jupyter_gpumarket.agent.maps import MapJobs
from jupyter_gpumarket.agent.network import loopback_id
from jupyter_gpumarket.agent.outbox import Outbox
from jupyter_gpumarket.agent.runs import Run, RunStore, run_list
from jupyter_gpumarket.agent.senders import Senders
from jupyter_gpumarket.agent.session import OBEY_S, Session
from jupyter_gpumarket.agent.use import UseMeter, start_nvml
from jupyter_gpumarket.clock import Clock, SystemClock
from jupyter_gpumarket.errors import BadRequest, PeerRestarted, WireError
from jupyter_gpumarket.models import RunStatus
from jupyter_gpumarket.wire import messages as m
from jupyter_gpumarket.wire.bulk import TakeBlob
from jupyter_gpumarket.wire.door import DoorOrder
from jupyter_gpumarket.wire.mapping import MapOrder
from jupyter_gpumarket.wire.peer import Peer
from jupyter_gpumarket.wire.streams import Streams
from jupyter_gpumarket.wire.syncing import TakeCode

USE_EVERY_S = 3.0
HEARTBEAT_EVERY_S = 1.0
# Between SIGTERM and the end: less than the watchdog waits, and than containers are given.
FAREWELL_S = 2.5
SAID_S = 0.2
# Between the bridge and us: less than a few pieces of a stream would have both sides wake for each part of one.
BRIDGE_BYTES = 1024 * 1024

AnyOrder = m.Order | MapOrder | TakeBlob | TakeCode | DoorOrder


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.json`, as set-up writes it; what it says beyond this is for others."""

    lease_id: str = ""
    deadline_ms: int | None = None
    grace_s: int | None = None
    obey_s: float = OBEY_S
    silence_s: float = 15.0
    ping_s: float = 5.0


class Agent:
    """The agent of one lease."""

    def __init__(self, folder: NodeFolder, settings: AgentSettings, clock: Clock) -> None:
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._started_ms = clock.now_ms()
        self._network = loopback_id()
        self._environment = {
            **os.environ,
            processes.FOLDER_VARIABLE: str(folder.root),
            "PYTHONPATH": sync.search_path(folder.root, os.environ.get("PYTHONPATH", "")),
        }
        self._peer = Peer(
            boot_id=uuid.uuid4().hex,
            receives=AnyOrder,
            answers=True,
            silence_s=settings.silence_s,
            ping_s=settings.ping_s,
            on_attached=self._attached,
        )
        self._outbox = Outbox(self._peer.send)
        self._runs = RunStore(folder, clock, self._run_changed)
        self._sessions: dict[str, Session] = {}
        self._blobs = Blobs(folder)
        self._code = CodeTree(folder)
        self._direct = DirectWays(folder, self._blobs, self._outbox.put)
        self._streams = Streams(self._peer.send, self._direct.carry)
        self._dask = DaskProcesses(
            folder.dask,
            self._environment,
            lambda report: self._outbox.put(("dask", getattr(report, "name", "")), report),
        )
        (folder.dask / FILE).unlink(missing_ok=True)  # of a scheduler that ended with a former agent
        self._maps = MapJobs(folder, self._environment, self._peer.send, self._mark_busy)
        self._senders = Senders(self._runs, self._peer.send, self._outbox.put, self._start)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._over = asyncio.Event()
        self._is_marked_busy: bool | None = None
        self._farewell: asyncio.Task[None] | None = None
        self._keep_files = True

    async def serve(self) -> None:
        """Listen and work until a `Shutdown` order or SIGTERM."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._told_to_end)
        self._folder.socket.unlink(missing_ok=True)
        # By relative name: a socket's whole path may have only about 100 characters.
        os.chdir(self._folder.root)
        server = await asyncio.start_unix_server(self._connected, self._folder.socket.name, limit=BRIDGE_BYTES)
        self._folder.socket.chmod(0o600)
        self._mark_busy()
        for work in (self._take_orders(), self._outbox.run(), self._report_use(), self._beat()):
            self._start(work)
        try:
            await self._over.wait()
        finally:
            server.close()
            await self._end()

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            sys.stderr.write(f"agent: {type(error).__name__}: {error}\n")

    def _told_to_end(self) -> None:
        """By somebody else than the user's side: the container is stopped, or the watchdog stops the node."""
        if self._farewell is None:
            self._farewell = self._start(self._say_farewell())
        else:
            self._over.set()

    async def _say_farewell(self) -> None:
        """Say so, and give the user's side a moment to fetch what cells have declared as outputs."""
        if self._peer.attached:
            reason = self._folder.why_stopped() or "the agent on the node was told to end (SIGTERM)"
            self._outbox.put(("leaving",), m.Leaving(left_ms=round(FAREWELL_S * 1000), reason=reason))
            await asyncio.sleep(FAREWELL_S if self._is_marked_busy else SAID_S)
        self._over.set()

    async def _end(self) -> None:
        for session in list(self._sessions.values()):
            await session.close("the agent was shut down")
        await self._dask.close()
        await self._maps.close()
        self._streams.close()
        self._direct.close()
        with contextlib.suppress(TimeoutError):
            if self._peer.attached:
                await asyncio.wait_for(self._peer.flush(), 2)
        self._peer.detach()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        processes.end_all(self._folder.root)
        for path in (self._folder.socket, self._folder.busy, self._folder.pid):
            path.unlink(missing_ok=True)
        if not self._keep_files:
            processes.remove_tree(self._folder.root)

    # ── the user's side ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BRIDGE_BYTES)
        writer.transport.set_write_buffer_limits(high=BRIDGE_BYTES)
        try:
            await self._peer.attach(reader, _Abruptly(writer))
        except WireError as error:
            sys.stderr.write(f"agent: an attachment was refused: {error}\n")

    def _attached(self, is_attached: bool) -> None:
        if is_attached:
            self._outbox.put(("ready",), self._ready())

    def _ready(self) -> m.AgentReady:
        return m.AgentReady(
            python=platform.python_version(),
            versions=check.versions(),
            pid=os.getpid(),
            started_ms=self._started_ms,
            sessions=tuple(self._sessions),
            network=self._network,
            code=self._code.tree,
        )

    async def _take_orders(self) -> None:
        while True:
            try:
                order = await self._peer.receive()
            except PeerRestarted:
                self._forget_peer()
                continue
            except WireError as error:
                sys.stderr.write(f"agent: {error}\n")
                self._peer.detach()
                continue
            try:
                await self._obey(order)
            except BadRequest as error:
                self._trouble(order, str(error))
            except OSError as error:
                self._trouble(order, f"the node cannot do it: {error.strerror or error}")

    def _forget_peer(self) -> None:
        """The user's side is a new process: it will ask anew for what it wants."""
        self._senders.cancel()
        self._streams.close()
        self._streams = Streams(self._peer.send, self._direct.carry)
        self._direct.forget_peer()
        self._maps.forget_peer()
        self._outbox.put(("ready",), self._ready())
        self._dask.tell_all()

    def _trouble(self, order: AnyOrder, reason: str) -> None:
        about = (
            getattr(order, "run_id", "")
            or getattr(order, "map_id", "")
            or getattr(order, "name", "")
            or getattr(order, "session", "")
        )
        self._outbox.put(
            ("trouble", uuid.uuid4().hex), m.Trouble(about=f"{type(order).__name__} {about}", reason=reason)
        )

    async def _obey_data(self, order: MapOrder | TakeBlob | TakeCode | DoorOrder) -> None:
        if isinstance(order, DoorOrder):
            self._direct.obey(order)
            return
        if isinstance(order, TakeCode):
            await self._take_code(order)
            return
        if not isinstance(order, TakeBlob):
            await self._maps.obey(order)
            return
        self._folder.blob(order.sha256)  # refused here, where it is told, when it is no hash
        self._start(self._take_blob(order))

    async def _take_blob(self, order: TakeBlob) -> None:
        self._outbox.put(("blob", order.sha256), await asyncio.to_thread(self._blobs.take, order))

    async def _take_code(self, order: TakeCode) -> None:
        """Later orders find the new modules; that Dask's processes have noticed them is told, not waited for here."""
        taken = await asyncio.to_thread(self._code.take, order)

        async def tell() -> None:
            note = "" if taken.error else await asyncio.to_thread(self._code.noticed)
            self._outbox.put(("code",), msgspec.structs.replace(taken, note=note))

        self._senders.begin(("code",), tell())

    async def _obey(self, order: AnyOrder) -> None:
        if isinstance(order, MapOrder | TakeBlob | TakeCode | DoorOrder):
            await self._obey_data(order)
            return
        match order:
            case m.Execute():
                self._execute(order)
            case m.Tail():
                self._senders.tail(order)
            case m.Saved():
                self._saved(order)
            case m.PutBlob():
                if (answer := self._blobs.put(order)) is not None:
                    self._outbox.put(("blob", order.sha256), answer)
            case m.GetOutput():
                self._senders.output(order)
            case m.ListRuns():
                self._outbox.put(("runs",), run_list([run.report() for run in self._runs.all()]))
            case m.OpenStream() | m.StreamData() | m.StreamCredit() | m.CloseStream():
                self._streams.take(order)
            case _:
                await self._obey_control(order)

    async def _obey_control(self, order: m.Order) -> None:
        match order:
            case m.Interrupt():
                await self._interrupt(order)
            case m.RestartSession():
                if (session := self._sessions.get(order.session)) is not None:
                    self._start(session.restart())
            case m.CloseSession():
                if (session := self._sessions.pop(order.session, None)) is not None:
                    self._start(session.close())
            case m.SetDeadline():
                self._set_deadline(order)
            case m.Shutdown():
                self._keep_files = order.keep_files
                self._over.set()
            case m.StartDask() | m.StopDask() | m.RetireDask():
                await self._obey_dask(order)

    async def _obey_dask(self, order: m.StartDask | m.StopDask | m.RetireDask) -> None:
        match order:
            case m.StartDask():
                await self._dask.start(order)
            case m.StopDask():
                self._start(self._dask.stop(order.name))
            case m.RetireDask():
                self._dask.retire(order.workers)

    # ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _execute(self, order: m.Execute) -> None:
        """Queue a run; one that cannot be is told as ended, for its run is all that the user's side looks at."""
        try:
            self._queue(order)
        except (BadRequest, OSError) as error:
            reason = str(error) if isinstance(error, BadRequest) else f"the node cannot keep the run: {error.strerror}"
            report = m.RunStateReport(
                run_id=order.run_id,
                session=order.session,
                status=RunStatus.ERROR,
                messages=0,
                reason=reason,
                error_name="OrderRefused",
                error_value=reason,
            )
            self._outbox.put(("run", order.run_id), report)

    def _queue(self, order: m.Execute) -> None:
        known = self._runs.known(order.run_id)
        if known is not None:
            self._outbox.put(("run", order.run_id), known)
            return
        name = safe_name(order.session, "session")
        for item in order.inputs:
            if not self._folder.blob(item.sha256).exists():
                raise BadRequest(f"the input {item.name!r} is not on the node: put its blob first")
        run = self._runs.create(order)
        if name not in self._sessions:
            self._sessions[name] = Session(
                name,
                self._folder,
                self._environment,
                lambda report: self._outbox.put(("session", name), report),
                obey_s=self._settings.obey_s,
            )
        self._sessions[name].submit(run)

    def _run_changed(self, run: Run) -> None:
        self._outbox.put(("run", run.run_id), run.report())
        self._mark_busy()

    def _mark_busy(self) -> None:
        """The watchdog lets a node on which a cell runs go on in silence."""
        with contextlib.suppress(OSError):
            is_busy = self._maps.is_busy or any(not run.has_ended for run in self._runs.all())
            if is_busy == self._is_marked_busy:
                return
            if is_busy:
                self._folder.busy.touch(mode=0o600)
            else:
                self._folder.busy.unlink(missing_ok=True)
            self._is_marked_busy = is_busy

    async def _interrupt(self, order: m.Interrupt) -> None:
        run = self._runs.get(order.run_id)
        if run is not None and not run.has_ended and (session := self._sessions.get(run.state.session)):
            run.saves_outputs = run.saves_outputs or order.save
            await session.interrupt(run)

    def _saved(self, order: m.Saved) -> None:
        run = self._runs.get(order.run_id)
        if run is None:
            return
        run.log.trim(order.upto)
        if order.ended:
            self._runs.forget(order.run_id)

    # ── the node ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _set_deadline(self, order: m.SetDeadline) -> None:
        """Tell the watchdog, which keeps what else its file says (how the node stops itself)."""
        try:
            settings = msgspec.json.decode(self._folder.watchdog.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError):
            settings = {}
        settings.update(deadline_ms=order.deadline_ms, grace_s=order.grace_s, set_ms=self._clock.now_ms())
        write_atomically(self._folder.watchdog, msgspec.json.encode(settings))

    async def _report_use(self) -> None:
        meter = UseMeter(self._folder.root, await asyncio.to_thread(start_nvml))
        while True:
            await asyncio.sleep(USE_EVERY_S)
            if self._peer.attached:
                report = await asyncio.to_thread(meter.measure, self._clock.now_ms())
                self._outbox.put(("use",), report)

    async def _beat(self) -> None:
        """Touch the heartbeat whenever the user's side has been heard."""
        told = None
        while True:
            if self._peer.last_heard is not None and self._peer.last_heard != told:
                told = self._peer.last_heard
                with contextlib.suppress(OSError):
                    self._folder.heartbeat.touch(mode=0o600)
            await asyncio.sleep(HEARTBEAT_EVERY_S)


class _Abruptly:
    """A writer whose `close` does not wait for a bridge that takes nothing any more."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.write = writer.write
        self.drain = writer.drain

    def close(self) -> None:
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()
        else:
            self._writer.close()


def serve(root: Path) -> int:
    """Run the agent of this folder in the foreground; the exit code."""
    os.umask(0o077)
    folder = NodeFolder(root)
    folder.make()
    lock = os.open(folder.root / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write(f"an agent runs in {folder.root} already\n")
        return 2
    # Kernels of an agent that was killed, with all that they had started.
    processes.end_all(folder.root)
    write_atomically(folder.pid, str(os.getpid()).encode())
    try:
        settings = msgspec.json.decode(folder.settings.read_bytes(), type=AgentSettings)
    except FileNotFoundError:
        settings = AgentSettings()
    except msgspec.MsgspecError as error:
        sys.stderr.write(f"{folder.settings} cannot be read: {error}\n")
        return 2
    asyncio.run(_serve(folder, settings))
    return 0


async def _serve(folder: NodeFolder, settings: AgentSettings) -> None:
    await Agent(folder, settings, SystemClock()).serve()
