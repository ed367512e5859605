"""A user's side for tests: starts a real agent in a folder and talks to it through `attach`, as the link does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from jupyter_gpumarket.errors import PeerRestarted
from jupyter_gpumarket.wire.door import DoorReports
from jupyter_gpumarket.wire.messages import (
    Execute,
    Report,
    RunOutput,
    RunStateReport,
    Tail,
)
from jupyter_gpumarket.wire.peer import Peer

PATIENCE_S = 30
ENDED = {"ok", "error", "interrupted", "timed_out", "lost"}


class UserSide:
    """One user-side process with one agent."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.session = "main"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "agent.json").write_text(json.dumps({"lease_id": "lease", "obey_s": 1.0, **settings}))
        self.peer = Peer(boot_id=uuid.uuid4().hex, receives=Report | DoorReports)
        self.reports: list[Any] = []
        self.restarts = 0
        self.agent: asyncio.subprocess.Process | None = None
        self.bridge: asyncio.subprocess.Process | None = None
        self._news = asyncio.Condition()
        self._tasks: list[asyncio.Task[Any]] = []

    async def start_agent(self) -> None:
        command = [sys.executable, "-m", "jupyter_gpumarket.agent", "serve", "--folder", str(self.folder)]
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = await asyncio.create_subprocess_exec(*command, stderr=log)

    async def attach(self) -> asyncio.Task[Any]:
        self.bridge = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "jupyter_gpumarket.agent",
            "attach",
            "--folder",
            str(self.folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        task = asyncio.create_task(self.peer.attach(self.bridge.stdout, self.bridge.stdin))
        self._tasks.append(task)
        return task

    async def cut(self) -> None:
        """The link is gone, as when the SSH connection is."""
        with contextlib.suppress(ProcessLookupError):
            self.bridge.kill()
        await self.bridge.wait()

    async def listen(self) -> None:
        while True:
            try:
                report = await self.peer.receive()
            except PeerRestarted:
                self.restarts += 1
                continue
            async with self._news:
                self.reports.append(report)
                self._news.notify_all()

    async def until(self, found: Callable[[Any], bool], patience_s: float = PATIENCE_S) -> Any:
        """The first report, of those so far and to come, that is what is looked for."""
        at = 0
        async with asyncio.timeout(patience_s), self._news:
            while True:
                for report in self.reports[at:]:
                    if found(report):
                        return report
                at = len(self.reports)
                await self._news.wait()

    async def start_run(self, code: str, **options: Any) -> str:
        run_id = options.pop("run_id", uuid.uuid4().hex)
        await self.peer.send(Execute(run_id=run_id, session=options.pop("session", self.session), code=code, **options))
        await self.peer.send(Tail(run_id=run_id, after=0))
        return run_id

    async def ended(self, run_id: str, patience_s: float = PATIENCE_S) -> RunStateReport:
        """The run's last report, once all of its output is here too."""
        state: RunStateReport = await self.until(
            lambda r: isinstance(r, RunStateReport) and r.run_id == run_id and r.status in ENDED, patience_s
        )
        if state.messages:
            await self.until(
                lambda r: isinstance(r, RunOutput) and r.run_id == run_id and r.n == state.messages, patience_s
            )
        return state

    async def run(self, code: str, **options: Any) -> RunStateReport:
        patience_s = options.pop("patience_s", PATIENCE_S)
        return await self.ended(await self.start_run(code, **options), patience_s)

    def outputs(self, run_id: str) -> list[RunOutput]:
        return [r for r in self.reports if isinstance(r, RunOutput) and r.run_id == run_id]

    def text(self, run_id: str, stream: str = "stdout") -> str:
        contents = [json.loads(r.content) for r in self.outputs(run_id) if r.msg_type == "stream"]
        return "".join(content["text"] for content in contents if content["name"] == stream)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in (self.bridge, self.agent):
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                try:
                    await asyncio.wait_for(process.wait(), 10)
                except TimeoutError:
                    process.kill()
                    await process.wait()
            transport = getattr(process, "_transport", None)
            if transport is not None:
                transport.close()


@contextlib.asynccontextmanager
async def user_side(folder: Path, *, attach: bool = True, **settings: Any) -> AsyncIterator[UserSide]:
    """A user's side with its agent running and attached."""
    user = UserSide(folder, **settings)
    try:
        await user.start_agent()
        user._tasks.append(asyncio.create_task(user.listen()))
        if attach:
            await user.attach()
        yield user
    finally:
        await user.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


async def gone(pid: int, patience_s: float = 10) -> bool:
    """Whether the process ends within the time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            while is_alive(pid):
                await asyncio.sleep(0.05)
            return True
    return False
