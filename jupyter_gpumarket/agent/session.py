"""A session: one kernel where cells keep their variables, and the queue of runs that wait for it.

Runs go one after another, in the order in which they came. Whatever becomes of the kernel, each run ends exactly once,
with a reason, and the next one finds a fresh kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from jupyter_gpumarket.agent.content import Collector, Piece, as_json, shortened_error
from jupyter_gpumarket.agent.folder import NodeFolder
from jupyter_gpumarket.agent.kernel import Kernel, KernelDied
from jupyter_gpumarket.agent.runs import Outcome, Run
from jupyter_gpumarket.models import RunStatus
from jupyter_gpumarket.wire.messages import Execute, OutputReport, SessionReport

OBEY_S = 10.0


class Session:
    """One named session."""

    def __init__(
        self,
        name: str,
        folder: NodeFolder,
        environment: dict[str, str],
        tell: Callable[[SessionReport], None],
        *,
        obey_s: float = OBEY_S,
    ) -> None:
        self.name = name
        self._folder = folder
        self._environment = environment
        self._tell = tell
        self._obey_s = obey_s
        self._waiting: deque[Run] = deque()
        self._wanted = asyncio.Event()
        self._kernel: Kernel | None = None
        self._starting = asyncio.Lock()
        self._running: Run | None = None
        self._supervising: asyncio.Task[Outcome] | None = None
        self._ending: Outcome | None = None
        self._is_busy_with_request = False
        self._interrupt_due = False
        self._is_closed = False
        self._interrupting: asyncio.Future[None] | None = None
        self._task = asyncio.create_task(self._work())

    def submit(self, run: Run) -> None:
        """Queue a run."""
        self._waiting.append(run)
        self._wanted.set()

    async def interrupt(self, run: Run) -> None:
        """Interrupt a run of this session, or drop it from the queue."""
        if run in self._waiting:
            self._waiting.remove(run)
            run.end(Outcome(status=RunStatus.INTERRUPTED, reason="interrupted before it began"))
        elif run is self._running:
            run.is_interrupted = True
            await self._send_interrupt()
            asyncio.get_running_loop().call_later(self._obey_s, self._remark_disobedience, run)

    async def restart(self) -> None:
        """Kill the kernel, end its runs as errors, and start a new kernel."""
        self._end_runs("the session was restarted", "SessionRestarted")
        await self._drop_kernel()
        self._tell(SessionReport(session=self.name, state="starting", reason="the session was restarted"))
        with contextlib.suppress(KernelDied):
            await self._ready_kernel()

    async def close(self, reason: str = "the session was closed") -> None:
        """End the session for good."""
        self._is_closed = True
        self._end_runs(reason, "SessionClosed")
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._drop_kernel()
        self._tell(SessionReport(session=self.name, state="closed", reason=reason))

    def _end_runs(self, reason: str, name: str) -> None:
        outcome = Outcome(status=RunStatus.ERROR, reason=reason, error_name=name, error_value=reason)
        for run in self._waiting:
            run.end(outcome)
        self._waiting.clear()
        if self._running is not None:
            self._ending = outcome
            if self._supervising is not None:
                self._supervising.cancel()

    async def _work(self) -> None:
        while not self._is_closed:
            while not self._waiting:
                self._wanted.clear()
                await self._wanted.wait()
            run = self._running = self._waiting.popleft()
            self._ending = None
            self._interrupt_due = False
            self._supervising = asyncio.create_task(self._supervise(run))
            try:
                outcome = await self._supervising
            except asyncio.CancelledError:
                outcome = self._take_ending()
            except OSError as error:
                if self._kernel is not None:
                    await self._kernel.interrupt()
                outcome = failed("NodeDiskError", f"the node cannot write the output: {error.strerror}")
            except Exception as error:  # noqa: BLE001 - one run's failure must not end the session
                outcome = failed("AgentError", f"the agent failed while it ran this cell: {error!r}")
            finally:
                self._running = self._supervising = None
            run.end(outcome)
            self._tell_state()

    def _take_ending(self) -> Outcome:
        """What `restart` or `close` wanted for the running cell; without that, it is this task that was cancelled."""
        if self._ending is None:
            raise asyncio.CancelledError
        return self._ending

    async def _supervise(self, run: Run) -> Outcome:
        """Run it, within its time, on a living kernel."""
        run.begin()
        assert run.order is not None
        try:
            kernel = await self._ready_kernel()
            self._tell(SessionReport(session=self.name, state="busy"))
            performing = asyncio.create_task(self._perform(kernel, run, run.order))
            try:
                return await self._in_time(run, performing, run.order.timeout_s)
            finally:
                performing.cancel()
                await asyncio.gather(performing, return_exceptions=True)
        except KernelDied as death:
            await self._drop_kernel()
            self._tell(SessionReport(session=self.name, state="dead", reason=str(death)))
            reason = f"{death}. The session's variables are gone; the next cell starts a new kernel"
            return failed("KernelDied", reason)

    async def _in_time(self, run: Run, performing: asyncio.Task[Outcome], timeout_s: float | None) -> Outcome:
        done, _ = await asyncio.wait([performing], timeout=timeout_s)
        if done:
            return performing.result()
        reason = f"it ran longer than its {timeout_s:g} s"
        run.is_interrupted = True
        await self._send_interrupt()
        done, _ = await asyncio.wait([performing], timeout=self._obey_s)
        if not done or performing.exception() is not None:
            reason += f" and did not obey the interrupt within {self._obey_s:g} s, so the kernel was killed"
            await self._drop_kernel()
            self._tell(SessionReport(session=self.name, state="dead", reason=reason))
        return Outcome(status=RunStatus.TIMED_OUT, reason=reason, error_name="CellTimeout", error_value=reason)

    async def _perform(self, kernel: Kernel, run: Run, order: Execute) -> Outcome:
        collector = Collector(run.write)
        if order.inputs:
            inputs = [
                {"name": item.name, "codec": item.codec, "path": str(self._folder.blob(item.sha256))}
                for item in order.inputs
            ]
            reply = await self._request(kernel, collector, "gpumarket_inputs", {"inputs": inputs})
            if reply["status"] != "ok":
                run.write(Piece("error", as_json(shortened_error(reply))))
                return outcome_of(reply, run)
        if run.is_interrupted:
            return Outcome(status=RunStatus.INTERRUPTED, reason="interrupted before the cell began")
        content = {
            "code": order.code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        reply = await self._request(kernel, collector, "execute_request", content)
        await self._obey_payload(kernel, run, reply)
        outcome = outcome_of(reply, run)
        if not order.outputs or (reply["status"] != "ok" and not run.saves_outputs):
            return outcome
        names = [{"name": name, "path": str(run.output_file(name))} for name in order.outputs]
        encoded = await self._request(kernel, collector, "gpumarket_outputs", {"outputs": names})
        outputs = msgspec.convert(encoded["outputs"], tuple[OutputReport, ...])
        return msgspec.structs.replace(outcome, outputs=outputs)

    async def _request(
        self, kernel: Kernel, collector: Collector, msg_type: str, content: dict[str, Any]
    ) -> dict[str, Any]:
        begins_with = "execute_input" if msg_type == "execute_request" else "status"

        def on_output(message: dict[str, Any]) -> None:
            # A kernel hears an interrupt only once it is inside of the request.
            if message["msg_type"] == begins_with and not self._is_busy_with_request:
                self._is_busy_with_request = True
                if self._interrupt_due:
                    self._interrupting = asyncio.ensure_future(self._send_interrupt())
            collector.take(message["msg_type"], message["content"], message["metadata"])

        try:
            return await kernel.request(msg_type, content, on_output, collector.flush)
        finally:
            self._is_busy_with_request = False

    async def _send_interrupt(self) -> None:
        self._interrupt_due = not self._is_busy_with_request
        if self._kernel is not None and self._is_busy_with_request:
            await self._kernel.interrupt()

    async def _obey_payload(self, kernel: Kernel, run: Run, reply: dict[str, Any]) -> None:
        """What a cell asks of its front end: a pager (`print?`) is shown as output, `exit()` ends the kernel."""
        for item in reply.get("payload", ()):
            if item.get("source") == "page":
                run.write(
                    Piece("display_data", as_json({"data": item.get("data", {}), "metadata": {}, "transient": {}}))
                )
            elif item.get("source") == "ask_exit":
                await asyncio.wait([kernel.death], timeout=5)
                await self._drop_kernel()
                self._tell(SessionReport(session=self.name, state="dead", reason="the cell called exit()"))

    async def _ready_kernel(self) -> Kernel:
        """The session's kernel, started anew if need be; one start at a time, for a restart may meet a cell."""
        async with self._starting:
            return await self._living_kernel()

    async def _living_kernel(self) -> Kernel:
        if self._kernel is not None and self._kernel.is_alive:
            return self._kernel
        await self._drop_kernel()
        self._tell(SessionReport(session=self.name, state="starting"))
        # A session that was closed may have left a kernel of the same session's name behind, still ending.
        name = f"{self.name[:24]}-{uuid.uuid4().hex[:8]}"
        self._kernel = await Kernel.start(
            self._folder.kernels, name, cwd=self._folder.work, environment=self._environment
        )
        self._tell_state()
        return self._kernel

    async def _drop_kernel(self) -> None:
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await kernel.kill()

    def _tell_state(self) -> None:
        if self._kernel is not None and self._kernel.is_alive:
            self._tell(SessionReport(session=self.name, state="idle"))

    def _remark_disobedience(self, run: Run) -> None:
        if run is self._running and not run.has_ended:
            run.remark(
                f"the cell has not obeyed the interrupt for {self._obey_s:g} s; restarting the session would end it"
            )


def failed(name: str, reason: str) -> Outcome:
    """The outcome of a run that failed for a reason outside of its code."""
    return Outcome(status=RunStatus.ERROR, reason=reason, error_name=name, error_value=reason)


def outcome_of(reply: dict[str, Any], run: Run) -> Outcome:
    """What an execute_reply means."""
    if reply["status"] == "ok":
        return Outcome(status=RunStatus.OK)
    error = shortened_error(reply)
    was_interrupted = run.is_interrupted and error["ename"] in {"KeyboardInterrupt", "CancelledError"}
    return Outcome(
        status=RunStatus.INTERRUPTED if was_interrupted else RunStatus.ERROR,
        error_name=error["ename"],
        error_value=error["evalue"],
        traceback=tuple(error["traceback"]),
    )
