"""One kernel process of a session, driven by jupyter_client over ipc sockets in a private folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from jupyter_gpumarket.agent.launcher import PARENT_VARIABLE
from jupyter_gpumarket.errors import NodeError

START_TIMEOUT_S = 60.0
DEATH_POLL_S = 0.1
# What libraries write to the kernel's stderr past Python; only its end matters, for a death's last words.
MAX_LOG_BYTES = 1024 * 1024
# What is beyond waits in the kernel's socket, and then the cell's print waits.
PENDING_MESSAGES = 32
# Longest path of a unix socket, less room for jupyter_client's endings.
SOCKET_PATH_CHARS = 95

Handler = Callable[[dict[str, Any]], None]


class KernelDied(NodeError):
    """The kernel's process is gone; the message says how."""


class NodeKernels(KernelSpecManager):
    """The one kind of kernel that a node has."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002 - the base class's signature
        argv = [sys.executable, "-m", "jupyter_gpumarket.agent.launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python on the node", language="python", interrupt_mode="signal")


class Kernel:
    """A running kernel. Make it with `start`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._sockets = socket_folder(folder, name)
        self._context = zmq.asyncio.Context()
        # Default for all sockets of this context; what is beyond waits in the kernel.
        self._context.rcvhwm = PENDING_MESSAGES
        connection_file = folder / f"{name}.json"
        self._log = folder / f"{name}.log"
        self._manager = AsyncKernelManager(
            connection_file=str(connection_file),
            transport="ipc",
            ip=str(self._sockets / "k"),
            kernel_spec_manager=NodeKernels(),
            context=self._context,
        )
        self._client: Any = None
        self._handlers: dict[str, Handler] = {}
        self._drained: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._oom_kills = oom_kills()
        self.death: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, folder: Path, name: str, *, cwd: Path, environment: dict[str, str]) -> Kernel:
        """Start a kernel process and wait until it answers.

        Raises:
            KernelDied: it ended, or said nothing for a minute; the message has its last words.
        """
        kernel = cls(folder, name)
        environment = {**environment, PARENT_VARIABLE: str(os.getpid())}
        try:
            with kernel._log.open("ab") as log:
                await kernel._manager.start_kernel(
                    cwd=str(cwd), env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=log
                )
            kernel._open_channels()
            await asyncio.wait_for(kernel._answers(), START_TIMEOUT_S)
        except TimeoutError:
            await kernel.kill()
            raise KernelDied(f"the kernel did not answer within {START_TIMEOUT_S:.0f} s") from None
        except BaseException:
            await kernel.kill()
            raise
        return kernel

    @property
    def is_alive(self) -> bool:
        """Whether the process runs, as far as is known."""
        return not self.death.done()

    async def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the kernel and its children."""
        if self.is_alive:
            await self._manager.interrupt_kernel()

    async def kill(self) -> None:
        """End the kernel and its process group at once, and tidy up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(OSError, RuntimeError, AssertionError):
            await self._manager.shutdown_kernel(now=True)
        self._tell_death("it was ended")
        if self._client is not None:
            self._client.stop_channels()
        self._context.destroy(linger=0)
        shutil.rmtree(self._sockets, ignore_errors=True)

    async def request(
        self, msg_type: str, content: dict[str, Any], on_output: Handler, on_drained: Callable[[], None]
    ) -> dict[str, Any]:
        """Send a request on the shell channel; returns the content of its reply once the kernel is idle again.

        `on_output` gets each message of the output channel that belongs to the request; `on_drained` is called
        whenever no more of them wait.

        Raises:
            KernelDied: the process ended before it replied.
            OSError: `on_output` or `on_drained` could not write; the kernel goes on.
        """
        idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def handle(message: dict[str, Any]) -> None:
            is_status = message["msg_type"] == "status"
            if is_status and message["content"].get("execution_state") == "idle" and not idle.done():
                idle.set_result(None)
            guarded(lambda: on_output(message))

        def guarded(write: Callable[[], None]) -> None:
            try:
                write()
            except OSError as error:
                if not unwritten.done():
                    unwritten.set_exception(error)

        unwritten: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        message = self._client.session.msg(msg_type, content)
        msg_id: str = message["header"]["msg_id"]
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._handlers[msg_id] = handle
        self._replies[msg_id] = reply
        self._drained = lambda: guarded(on_drained)
        try:
            self._client.shell_channel.send(message)
            waiting = asyncio.gather(reply, idle)
            await asyncio.wait([waiting, self.death, unwritten], return_when=asyncio.FIRST_COMPLETED)
            if unwritten.done():
                waiting.cancel()
                unwritten.result()
            if not waiting.done():
                # What the kernel had said before it died may still be under way.
                await asyncio.wait([waiting], timeout=0.3)
            if not waiting.done():
                waiting.cancel()
                on_drained()
                raise KernelDied(self.death.result())
            answer: dict[str, Any] = waiting.result()[0]
            on_drained()
            return answer
        finally:
            unwritten.cancel()
            self._drained = lambda: None
            del self._handlers[msg_id]
            del self._replies[msg_id]

    def _open_channels(self) -> None:
        self._client = self._manager.client(context=self._context)
        self._client.start_channels(hb=False, stdin=False, control=False)
        self._tasks = [
            asyncio.create_task(self._read_output()),
            asyncio.create_task(self._read_replies()),
            asyncio.create_task(self._watch()),
        ]

    async def _answers(self) -> None:
        """Wait for the answer to a question on both channels: the subscription may come into force late."""
        while True:
            heard = asyncio.Event()

            def hear(_: dict[str, Any], heard: asyncio.Event = heard) -> None:
                heard.set()

            asking = asyncio.create_task(self.request("kernel_info_request", {}, hear, lambda: None))
            done, _ = await asyncio.wait([asking], timeout=5)
            if done:
                asking.result()
                if heard.is_set():
                    return
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _read_output(self) -> None:
        socket = self._client.iopub_channel.socket
        while True:
            frames = await socket.recv_multipart()
            self._dispatch(frames)
            # Take at once what waits, so that small prints are joined.
            for _ in range(1000):
                if not zmq.select([socket], [], [], 0)[0]:
                    break
                self._dispatch(await socket.recv_multipart())
            self._drained()
            await asyncio.sleep(0)

    def _dispatch(self, frames: list[bytes]) -> None:
        session = self._client.session
        _, parts = session.feed_identities(frames)
        try:
            message = session.deserialize(parts)
        except (ValueError, TypeError):
            return
        handler = self._handlers.get(message["parent_header"].get("msg_id", ""))
        if handler is not None:
            handler(message)

    async def _read_replies(self) -> None:
        while True:
            message = await self._client.shell_channel.get_msg()
            waiting = self._replies.get(message["parent_header"].get("msg_id", ""))
            if waiting is not None and not waiting.done():
                waiting.set_result(message["content"])

    async def _watch(self) -> None:
        while (code := await self._manager.provisioner.poll()) is None:
            await asyncio.sleep(DEATH_POLL_S)
            if self._log.stat().st_size > MAX_LOG_BYTES:
                os.truncate(self._log, 0)
        words = self._log.read_text(errors="replace")[-2000:].strip()
        self._tell_death(how_it_died(code, out_of_memory=oom_kills() > self._oom_kills), words)

    def _tell_death(self, how: str, last_words: str = "") -> None:
        if not self.death.done():
            self.death.set_result(f"{how}\n{last_words}" if last_words else how)


def how_it_died(code: int, *, out_of_memory: bool) -> str:
    """The end of a kernel process in words."""
    if code >= 0:
        return f"the kernel ended by itself with exit code {code} (something called exit)"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if code == -signal.SIGKILL and out_of_memory:
        return "the kernel was killed because the node ran out of memory: use less, or rent more"
    if code == -signal.SIGKILL:
        return "the kernel was killed (SIGKILL): most often the node ran out of memory, or somebody killed it"
    return f"the kernel was ended by {name}"


def oom_kills() -> int:
    """How many processes of our control group have been killed for lack of memory; 0 where it cannot be known."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text("ascii")
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])
    except (OSError, ValueError, KeyError):
        return 0


def socket_folder(folder: Path, name: str) -> Path:
    """A private folder with a path short enough for unix sockets."""
    wanted = folder / name
    if len(str(wanted)) <= SOCKET_PATH_CHARS - 4:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        return wanted
    # TMPDIR may lie deep itself (a pool's lease has one of its own), so the short ones are tried as well.
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):  # noqa: S108 - mkdtemp makes it 0700
        if len(place) + len("/gm-12345678") <= SOCKET_PATH_CHARS - 4 and os.access(place, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="gm-", dir=place))
    raise OSError(f"no folder on this node has a path short enough for unix sockets; {wanted} is too long")
