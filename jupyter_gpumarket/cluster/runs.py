"""All cell runs of this cluster: on disk, found again after a restart, followed by doors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from jupyter_gpumarket.api import RunRequest, RunView
from jupyter_gpumarket.cluster.log import SPILL_NAME, RunLog
from jupyter_gpumarket.cluster.records import RunState
from jupyter_gpumarket.config import private_folder, write_private
from jupyter_gpumarket.errors import BadRequest

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class Run:
    """One cell run: its state and its log. Every change is on disk before it shows."""

    def __init__(self, folder: Path, state: RunState) -> None:
        self.folder = folder
        self.state = state
        self._log: RunLog | None = None
        self._news = asyncio.Event()
        self._ending = asyncio.Event()

    @property
    def run_id(self) -> str:
        return self.state.request.run_id

    @property
    def log(self) -> RunLog:
        """Its output; read from the disk on first use, which for an ended run may be never."""
        if self._log is None:
            self._log = RunLog(self.folder, self.state.request.output_limit_bytes)
        return self._log

    def close(self) -> None:
        """Close the log's files."""
        if self._log is not None:
            self._log.close()

    def change(self, **fields: Any) -> None:
        """Write a changed state and wake whoever follows the run.

        Beginning and end are forced to the disk. What lies between survives a kill of this process, and after a power
        cut the node tells it again.
        """
        state = self._changed(fields)
        path, content = self.folder / "state.json", msgspec.json.encode(state)
        if state.has_ended or not path.exists():
            write_private(path, content)
        else:
            _write_quickly(path, content)
        self.state = state
        self.tell()

    async def end(self, also: Callable[[], Awaitable[None]], **fields: Any) -> None:
        """Like `change`, for the end of a run that has its output here: all goes to the disk at once, off the loop.

        `also` is what else must be on the disk before the end is. Nobody sees the end when this fails or is cancelled.

        Raises:
            OSError: the disk is full or failing.
        """
        state = self._changed(fields)
        draft = self.folder / "state.end"
        work: list[Awaitable[None]] = [also(), asyncio.to_thread(write_private, draft, msgspec.json.encode(state))]
        if self.log.is_open:
            work.append(asyncio.to_thread(self.log.sync))
        # All are waited for: a second attempt must not meet the first one's writing.
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if outcome is not None:
                raise outcome
        draft.replace(self.folder / "state.json")
        self.state = state
        self.tell()

    def _changed(self, fields: dict[str, Any]) -> RunState:
        state = msgspec.structs.replace(self.state, **fields)
        if state.has_ended:
            state = msgspec.structs.replace(state, messages=self.log.count, has_spilled=self.log.has_spilled)
        return state

    def tell(self) -> None:
        """Wake whoever waits for news of this run."""
        self._news.set()
        self._news = asyncio.Event()
        if self.state.has_ended:
            self._ending.set()

    async def wait_news(self, timeout_s: float) -> None:
        """Return when something has changed, or after the time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), timeout_s)

    async def wait_end(self, timeout_s: float) -> None:
        """Return when the run has ended, or after the time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), timeout_s)

    def output_path(self, name: str) -> Path:
        """Where an output variable lies. Named by its place in the request: a node's word never becomes a path."""
        return self.folder / f"output-{self.state.request.outputs.index(name)}"

    def view(self) -> RunView:
        """The run as doors see it."""
        state, request = self.state, self.state.request
        return RunView(
            run_id=request.run_id,
            lease_id=request.lease_id,
            session=request.session,
            status=state.status,
            messages=state.messages if state.has_ended else self.log.count,
            started_ms=state.started_ms,
            ended_ms=state.ended_ms,
            reason=state.reason,
            error_name=state.error_name,
            error_value=state.error_value,
            traceback=state.traceback,
            outputs=state.outputs,
            owner=request.owner,
            cell_id=request.cell_id,
            map_id=request.map_id,
            spill_path=str(self.folder / SPILL_NAME) if state.has_spilled or self._spills() else "",
        )

    def _spills(self) -> bool:
        return not self.state.has_ended and self.log.has_spilled


def _write_quickly(path: Path, content: bytes) -> None:
    """Old content or new, never a part; not forced to the disk."""
    draft = path.with_suffix(".draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)


class RunStore:
    """The folder of runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        self._runs: dict[str, Run] = {}
        self._of_node: dict[str, list[Run]] = {}
        for entry in sorted(self._folder.iterdir()):
            file = entry / "state.json"
            if file.exists():
                run = Run(entry, msgspec.json.decode(file.read_bytes(), type=RunState))
                self._runs[run.run_id] = run
        for run in self:
            self._of_node.setdefault(run.state.request.lease_id, []).append(run)

    def __iter__(self) -> Iterator[Run]:
        """Oldest first."""
        return iter(sorted(self._runs.values(), key=lambda run: run.state.created_ms))

    def find(self, run_id: str) -> Run | None:
        """The run, or None."""
        return self._runs.get(run_id)

    def of_node(self, lease_id: str) -> list[Run]:
        """The runs of one node, oldest first."""
        return list(self._of_node.get(lease_id, ()))

    def create(self, request: RunRequest, now_ms: int) -> tuple[Run, bool]:
        """A new run, on disk; or the one that was made from the same request before (and False).

        Raises:
            BadRequest: the id is not fit for a folder's name, or belongs to a different request.
        """
        if not RUN_ID.fullmatch(request.run_id):
            raise BadRequest(f"run_id: {request.run_id[:100]!r} is not a name of letters, digits, '-', '_' and '.'")
        known = self._runs.get(request.run_id)
        if known is not None:
            if known.state.request != request:
                raise BadRequest(f"run_id: {request.run_id} was used before for another cell; choose a new one")
            return known, False
        folder = private_folder(self._folder / request.run_id)
        run = Run(folder, RunState(request=request, created_ms=now_ms))
        run.change()
        self._runs[request.run_id] = run
        self._of_node.setdefault(request.lease_id, []).append(run)
        return run, True

    def close(self) -> None:
        """Close every log."""
        for run in self._runs.values():
            run.close()
