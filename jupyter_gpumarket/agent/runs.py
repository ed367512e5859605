"""The runs that this agent knows: their state on disk, so that a restarted agent can still tell what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from jupyter_gpumarket.agent.content import Piece
from jupyter_gpumarket.agent.folder import NodeFolder, write_atomically
from jupyter_gpumarket.agent.runlog import RunLog
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.models import ENDED_RUNS, RunStatus
from jupyter_gpumarket.wire.frames import MAX_PAYLOAD_BYTES
from jupyter_gpumarket.wire.messages import Execute, OutputReport, RunList, RunStateReport

MAX_KEPT_BYTES = 1024 * 1024 * 1024


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended."""

    status: RunStatus
    reason: str = ""
    error_name: str = ""
    error_value: str = ""
    traceback: tuple[str, ...] = ()
    outputs: tuple[OutputReport, ...] = ()


class Run:
    """One cell run on this node."""

    def __init__(self, folder: Path, state: RunStateReport, clock: Clock, tell: Callable[[Run], None]) -> None:
        self.folder = folder
        self.order: Execute | None = None
        self.state = state
        self.log = RunLog(folder, state.run_id)
        self.is_interrupted = False
        self.saves_outputs = False
        self.grew = asyncio.Event()
        self._clock = clock
        self._tell = tell
        self._dropped_bytes = 0

    @property
    def run_id(self) -> str:
        return self.state.run_id

    @property
    def has_ended(self) -> bool:
        return self.state.status in ENDED_RUNS

    def output_file(self, name: str) -> Path:
        """Where the encoded output variable of this name lies."""
        assert self.order is None or name in self.order.outputs
        return self.folder / f"out-{name.encode().hex()}"

    def begin(self) -> None:
        """The run is now running."""
        self._change(msgspec.structs.replace(self.state, status=RunStatus.RUNNING, started_ms=self._clock.now_ms()))

    def remark(self, reason: str) -> None:
        """Say something about a run that goes on."""
        self._change(msgspec.structs.replace(self.state, reason=reason))

    def end(self, outcome: Outcome) -> None:
        """The run is over; a second ending is ignored."""
        if self.has_ended:
            return
        with contextlib.suppress(OSError):
            self._tell_dropped()
        self._change(
            msgspec.structs.replace(
                self.state,
                ended_ms=self._clock.now_ms(),
                messages=self.log.last,
                **{name: getattr(outcome, name) for name in outcome.__struct_fields__},
            )
        )
        self.grew.set()

    def write(self, piece: Piece) -> None:
        """Number an output message and write it to the disk. Past `MAX_KEPT_BYTES` unsaved, it is dropped and counted.

        Raises:
            OSError: the disk is full.
        """
        if self.has_ended:
            return
        if self.log.kept_bytes > MAX_KEPT_BYTES:
            self._dropped_bytes += len(piece.content)
            return
        self._tell_dropped()
        self.log.append(
            at_ms=self._clock.now_ms(), msg_type=piece.msg_type, content=piece.content, metadata=piece.metadata
        )
        self.grew.set()

    def report(self) -> RunStateReport:
        """The state as of now."""
        return msgspec.structs.replace(self.state, messages=self.log.last)

    def _tell_dropped(self) -> None:
        if self._dropped_bytes:
            text = f"{self._dropped_bytes} bytes of output were dropped: the node keeps at most {MAX_KEPT_BYTES} unsent"
            self.log.append(
                at_ms=self._clock.now_ms(), msg_type="truncated", content=msgspec.json.encode({"text": text})
            )
            self._dropped_bytes = 0

    def _change(self, state: RunStateReport) -> None:
        self.state = state
        # A full disk must not hide a state from the user's side: it is still told.
        with contextlib.suppress(OSError):
            self.save()
        self._tell(self)

    def save(self) -> None:
        """Write the state to the disk."""
        write_atomically(self.folder / "state.json", msgspec.json.encode(self.report()))


class RunStore:
    """All runs, by id. `tell` is called with each run that changed."""

    def __init__(self, folder: NodeFolder, clock: Clock, tell: Callable[[Run], None]) -> None:
        self._folder = folder
        self._clock = clock
        self._tell = tell
        self._forgotten_file = folder.runs / "forgotten"
        self._runs: dict[str, Run] = {}
        self._forgotten = self._load_forgotten()
        self._load()

    def known(self, run_id: str) -> RunStateReport | None:
        """The state of a run of this id, also of one that was forgotten."""
        run = self._runs.get(run_id)
        if run is not None:
            return run.report()
        if run_id in self._forgotten:
            reason = "this run has ended, and its output was handed over"
            return RunStateReport(run_id=run_id, session="", status=RunStatus.LOST, messages=0, reason=reason)
        return None

    def get(self, run_id: str) -> Run | None:
        """The run of this id."""
        return self._runs.get(run_id)

    def all(self) -> list[Run]:
        """Every run, oldest first."""
        return list(self._runs.values())

    def create(self, order: Execute) -> Run:
        """A new run, queued and on the disk.

        Raises:
            BadRequest: its id cannot be a file's name.
            OSError: the disk is full.
        """
        folder = self._folder.run(order.run_id)
        state = RunStateReport(run_id=order.run_id, session=order.session, status=RunStatus.QUEUED, messages=0)
        run = Run(folder, state, self._clock, self._tell)
        run.order = order
        run.save()
        self._runs[run.run_id] = run
        self._tell(run)
        return run

    def forget(self, run_id: str) -> None:
        """Drop an ended run with its files; its id stays known, so that it can never run again."""
        run = self._runs.get(run_id)
        if run is None or not run.has_ended:
            return
        with self._forgotten_file.open("a") as file:
            file.write(run_id + "\n")
        self._forgotten.add(run_id)
        del self._runs[run_id]
        run.grew.set()
        shutil.rmtree(run.folder, ignore_errors=True)

    def _load_forgotten(self) -> set[str]:
        try:
            return set(self._forgotten_file.read_text().split())
        except FileNotFoundError:
            return set()

    def _load(self) -> None:
        """What a former agent left behind: runs that had not ended are lost with their kernels."""
        lost = Outcome(status=RunStatus.LOST, reason="the agent on the node was restarted while this run was under way")
        for path in sorted(self._folder.runs.glob("*/state.json"), key=lambda path: path.stat().st_mtime):
            try:
                state = msgspec.json.decode(path.read_bytes(), type=RunStateReport)
            except (msgspec.MsgspecError, OSError):
                state = RunStateReport(run_id=path.parent.name, session="", status=RunStatus.RUNNING, messages=0)
            run = Run(path.parent, state, self._clock, lambda _: None)
            run.end(lost)
            self._runs[run.run_id] = run


def run_list(reports: list[RunStateReport]) -> RunList:
    """The answer to ListRuns, small enough for a frame: of very many runs the tracebacks are left to their output."""
    while sum(len(msgspec.msgpack.encode(report)) for report in reports) > MAX_PAYLOAD_BYTES // 2:
        if not any(report.traceback for report in reports):
            reports = reports[len(reports) // 2 :]
        reports = [
            msgspec.structs.replace(report, traceback=(), error_value=report.error_value[:200]) for report in reports
        ]
    return RunList(runs=tuple(reports))
