"""What becomes of runs: the node's reports as changes of state on disk and facts for the broker.

Facts go first: after a crash between the two, a fact may be told twice, never be missing. For that they need not be
forced to the disk one by one: it is enough that they are there before the run's end is.
"""

from __future__ import annotations

from typing import Protocol

from jupyter_gpumarket.api import AnyFact, NodeIdle, NodeTraffic, OutputRef, RunEnded, RunStarted
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.cluster.records import ExpectedOutput
from jupyter_gpumarket.cluster.runs import Run, RunStore
from jupyter_gpumarket.models import ENDED_RUNS, RunStatus
from jupyter_gpumarket.wire.messages import MAX_NAME_CHARS, RunStateReport

MAX_TEXT = 20_000
MAX_TRACEBACK_LINES = 200
# So much new traffic is worth a line in the journal, or so large a part of what was told before.
TRAFFIC_STEP_BYTES = 64 * 1024**2
TRAFFIC_STEP_PART = 20


class Facts(Protocol):
    """Where the broker's facts go. Both raise OSError when the disk takes nothing."""

    def put(self, fact: AnyFact) -> None:
        """Keep a fact, over a power cut too."""

    def note(self, fact: AnyFact) -> None:
        """Keep a fact over a kill of this process."""

    async def sync(self) -> None:
        """Keep what was noted over a power cut too."""


class RunProgress:
    """Applies what is known of the runs of one node."""

    def __init__(self, lease_id: str, runs: RunStore, clock: Clock, facts: Facts) -> None:
        self._lease_id = lease_id
        self._runs = runs
        self._clock = clock
        self._facts = facts
        self._clock_offset_ms: int | None = None
        self._traffic_told = 0
        self.ready_ms: int | None = None
        # When the node was last seen at work that is no cell run, such as Dask tasks of a cell on another node.
        self.other_work_ms = 0

    @property
    def running(self) -> tuple[str, ...]:
        """Runs that the node works on now, as far as is known."""
        return tuple(run.run_id for run in self._open() if run.state.started_ms is not None)

    def compare_clocks(self, node_ms: int) -> None:
        """A time that the node has just read from its clock: ours is ahead by no more than this."""
        offset = self._clock.now_ms() - node_ms
        if self._clock_offset_ms is None or offset < self._clock_offset_ms:
            self._clock_offset_ms = offset

    def apply(self, run: Run, report: RunStateReport) -> None:
        """What the node says of a run that has not ended here."""
        if report.status == RunStatus.RUNNING and run.state.started_ms is None:
            self._started(run, report)
        elif report.status in ENDED_RUNS and not run.state.has_ended_on_node:
            self._ended(run, report)

    def begin_here(self, run: Run) -> None:
        """A node's part in a map has begun: no kernel tells it."""
        now = self._clock.now_ms()
        self._facts.note(RunStarted(lease_id=self._lease_id, at_ms=now, run_id=run.run_id))
        run.change(started_ms=now, status=RunStatus.RUNNING, node_status=RunStatus.RUNNING.value)

    def end_here(self, run: Run, status: RunStatus, reason: str) -> None:
        """A run ended without the node: it never reached it."""
        now = self._clock.now_ms()
        self._facts.put(
            RunEnded(
                lease_id=self._lease_id,
                at_ms=now,
                run_id=run.run_id,
                status=status,
                started_ms=run.state.started_ms,
                reason=reason[:MAX_TEXT],
            )
        )
        run.change(
            status=status,
            node_status=status.value,
            ended_ms=now,
            reason=reason[:MAX_TEXT],
            outputs=self._no_outputs(run, reason),
            is_settled=True,
        )
        run.close()
        self.tell_idle()

    def lose(self, run: Run, reason: str) -> None:
        """The node is gone, and what of the run is not here is lost with it."""
        if not run.state.has_ended_on_node:
            self.end_here(run, RunStatus.LOST, reason)
            return
        is_whole = run.log.agent_upto >= run.state.agent_messages and not run.state.request.outputs
        status = RunStatus(run.state.node_status) if is_whole else RunStatus.LOST
        run.change(status=status, reason=reason, outputs=self._no_outputs(run, reason), is_settled=True)
        run.close()

    async def settle(self, run: Run, outputs: tuple[OutputRef, ...]) -> None:
        """All messages and outputs are here: once that is on the disk, with the facts about it, doors may see the end.

        Raises:
            OSError: the disk is full or failing; doors do not see the end yet.
        """
        await run.end(self._facts.sync, status=RunStatus(run.state.node_status), outputs=outputs, is_settled=True)

    def tell_idle(self) -> None:
        """Tell the broker since when the node has had nothing to do; nothing while it has, or may have."""
        if self.ready_ms is None or self._open():
            return
        ends = [run.state.ended_ms or 0 for run in self._runs.of_node(self._lease_id)]
        since_ms = max(self.ready_ms, self.other_work_ms, *ends, 0)
        self._facts.note(NodeIdle(lease_id=self._lease_id, at_ms=self._clock.now_ms(), idle_since_ms=since_ms))

    def tell_traffic(self, received_bytes: int, sent_bytes: int) -> None:
        """Tell the broker how much has gone through the node's network, when it has become much more."""
        total = received_bytes + sent_bytes
        if total - self._traffic_told < max(TRAFFIC_STEP_BYTES, self._traffic_told // TRAFFIC_STEP_PART):
            return
        self._traffic_told = total
        now_ms = self._clock.now_ms()
        self._facts.note(
            NodeTraffic(lease_id=self._lease_id, at_ms=now_ms, received_bytes=received_bytes, sent_bytes=sent_bytes)
        )

    def _open(self) -> list[Run]:
        return [
            run
            for run in self._runs.of_node(self._lease_id)
            if not run.state.has_ended and not run.state.has_ended_on_node
        ]

    def _started(self, run: Run, report: RunStateReport) -> None:
        started_ms = self._ours(report.started_ms, run.state.created_ms)
        self._facts.note(RunStarted(lease_id=self._lease_id, at_ms=started_ms, run_id=run.run_id))
        run.change(started_ms=started_ms, status=RunStatus.RUNNING, node_status=report.status)

    def _ended(self, run: Run, report: RunStateReport) -> None:
        started_ms = run.state.started_ms
        if started_ms is None and report.started_ms is not None:
            started_ms = self._ours(report.started_ms, run.state.created_ms)
        ended_ms = self._ours(report.ended_ms, started_ms or run.state.created_ms)
        self._facts.note(
            RunEnded(
                lease_id=self._lease_id,
                at_ms=ended_ms,
                run_id=run.run_id,
                status=RunStatus(report.status),
                started_ms=started_ms,
                reason=report.reason[:MAX_TEXT],
            )
        )
        reason = (run.state.save_for if report.status == RunStatus.INTERRUPTED else "") or report.reason
        run.change(
            status=RunStatus.RUNNING,
            node_status=report.status,
            agent_messages=report.messages,
            started_ms=started_ms,
            ended_ms=ended_ms,
            reason=reason[:MAX_TEXT],
            error_name=report.error_name[:MAX_NAME_CHARS],
            error_value=report.error_value[:MAX_TEXT],
            traceback=tuple(line[:MAX_TEXT] for line in report.traceback[:MAX_TRACEBACK_LINES]),
            expected=self._expected(run, report),
        )
        self.tell_idle()

    def _ours(self, node_ms: int | None, earliest_ms: int) -> int:
        """A time of the node's clock as one of ours, never before what it must follow nor in the future."""
        now = self._clock.now_ms()
        if node_ms is None:
            return now
        self.compare_clocks(node_ms)
        return max(earliest_ms, min(now, node_ms + (self._clock_offset_ms or 0)))

    @staticmethod
    def _expected(run: Run, report: RunStateReport) -> tuple[ExpectedOutput, ...]:
        wanted = set(run.state.request.outputs)
        return tuple(
            ExpectedOutput(name=o.name, codec=o.codec[:40], size=o.size, sha256=o.sha256[:64], error=o.error[:2000])
            for o in report.outputs
            if o.name in wanted
        )

    @staticmethod
    def _no_outputs(run: Run, reason: str) -> tuple[OutputRef, ...]:
        return tuple(OutputRef(name=name, error=reason[:2000]) for name in run.state.request.outputs)
