"""The node's direct ways: its own door, and the doors of others to which the cluster process has ordered ways.

A way that fails is given up at once and told; what was to go there goes through the relay. So a direct way can make
things quicker, and never impossible.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl
import time
from collections.abc import Callable
from typing import IO, Any

from jupyter_gpumarket.agent.blobs import Blobs
from jupyter_gpumarket.agent.door import (
    PIECE_BYTES,
    Door,
    Ends,
    carry,
    context_for,
    remove_files,
    set_keep_alive,
    with_buffer,
)
from jupyter_gpumarket.agent.folder import NodeFolder
from jupyter_gpumarket.agent.network import own_addresses
from jupyter_gpumarket.errors import BadRequest, WireError
from jupyter_gpumarket.wire.bulk import TakeBlob
from jupyter_gpumarket.wire.door import (
    MAX_ADDRESSES,
    Answer,
    Ask,
    AskBlob,
    AskEcho,
    AskPort,
    BlobFetched,
    DoorOrder,
    DoorProbed,
    DoorReport,
    DoorRules,
    FetchBlob,
    OpenDoor,
    ProbeDoor,
    Route,
    RouteBroken,
    UseRoutes,
    frame,
    read_frame,
)

DIAL_S = 3.0
ANSWER_S = 8.0
READ_S = 10.0
MAX_TASKS = 100
# Fewer than a door lets wait from one address: workers that all connect at once take turns.
MAX_DIALS = 4
# Set to "no" by whoever runs a machine on which nothing may listen.
ALLOWED = "GPUMARKET_DIRECT"


class DirectWays:
    """Doors, as one agent has to do with them."""

    def __init__(self, folder: NodeFolder, blobs: Blobs, tell: Callable[[tuple[str, ...], Any], None]) -> None:
        self._folder = folder
        self._blobs = blobs
        self._tell = tell
        self._door = Door(folder)
        self._context: ssl.SSLContext | None = None
        self._routes: dict[str, Route] = {}
        # For each member, so that one that does not answer holds up nobody else.
        self._dials: dict[str, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def obey(self, order: DoorOrder) -> None:
        """Carry out an order; what takes time goes on by itself, and is told."""
        match order:
            case OpenDoor():
                self._open(order)
            case DoorRules():
                self._door.obey(order)
                self._report()
            case ProbeDoor():
                self._start(self._probe(order))
            case UseRoutes():
                self._routes |= {route.name: route for route in order.routes}
            case FetchBlob():
                self._start(self._fetch(order))

    def forget_peer(self) -> None:
        """The user's side is a new process, which will order anew what it wants."""
        self._routes = {}
        self._door.rules = DoorRules(version=0)
        self._stop_tasks()

    def close(self) -> None:
        """End all of it."""
        self._routes = {}
        self._stop_tasks()
        self._door.close()
        remove_files(self._folder)

    async def carry(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Carry a connection that was accepted for a port directly; False: there is no way but the relay."""
        route = next((route for route in self._routes.values() if port in route.ports), None)
        if route is None:
            return False
        try:
            async with self._dials.setdefault(route.name, asyncio.Semaphore(MAX_DIALS)):
                if self._routes.get(route.name) is None:
                    return False  # it broke meanwhile
                far, _ = await self._ask(route, AskPort(port=port))
        except BadRequest:
            return False  # nobody at the port, or not allowed (yet): the relay will know
        except (OSError, EOFError, WireError, TimeoutError) as error:
            self._break(route, error)
            return False
        await carry((reader, writer), far)
        return True

    def _start(self, work: Any) -> None:
        if len(self._tasks) >= MAX_TASKS:
            work.close()
            return
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    # ── the own door ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, order: OpenDoor) -> None:
        try:
            # Also where this node may not listen it may go out to others.
            self._context = context_for(self._folder, order, is_server=False)
            if os.environ.get(ALLOWED, "").lower() in ("no", "0", "off", "false"):
                raise PermissionError(f"nothing may listen on this node ({ALLOWED})")
            self._door.open(order)
        except OSError as error:
            self._tell(("door",), DoorReport(addresses=_addresses(), error=f"{error.strerror or error}"[:300]))
            return
        self._report()

    def _report(self) -> None:
        report = DoorReport(
            port=self._door.port,
            addresses=_addresses(),
            version=self._door.rules.version,
            error="" if self._door.port else "no door is open",
        )
        self._tell(("door",), report)

    # ── the doors of others ──────────────────────────────────────────────────────────────────────────────────────────

    async def _dial(self, route: Route) -> Ends:
        """A TLS connection to a door, whose name has been checked.

        Raises:
            OSError, TimeoutError: there is none, or it is somebody else's.
        """
        if self._context is None:
            raise OSError("this node has no certificate of the cluster yet")
        async with asyncio.timeout(DIAL_S):
            reader, writer = await asyncio.open_connection(
                route.address, route.port, ssl=self._context, server_hostname=route.name, limit=PIECE_BYTES
            )
        if (sock := writer.get_extra_info("socket")) is not None:
            set_keep_alive(sock)
        return reader, with_buffer(writer)

    async def _ask(self, route: Route, ask: Ask) -> tuple[Ends, Answer]:
        """Knock at a door and be let in.

        Raises:
            BadRequest: the door refuses it.
            OSError, EOFError, WireError, TimeoutError: there is no way.
        """
        reader, writer = await self._dial(route)
        try:
            writer.write(frame(ask))
            async with asyncio.timeout(ANSWER_S):
                answer = await read_frame(reader, Answer)
        except BaseException:
            writer.transport.abort()
            raise
        if answer.error:
            writer.transport.abort()
            raise BadRequest(answer.error[:300])
        return (reader, writer), answer

    def _break(self, route: Route, error: Exception) -> None:
        self._routes.pop(route.name, None)
        reason = f"{error}" or type(error).__name__
        self._tell(("broken", route.name), RouteBroken(name=route.name, reason=reason[:300]))

    async def _probe(self, order: ProbeDoor) -> None:
        """The first address that answers as the member counts; they are tried side by side."""
        routes = [Route(name=order.name, address=a, port=order.port) for a in order.addresses[:MAX_ADDRESSES]]
        found = [asyncio.ensure_future(self._round_trip(route)) for route in routes]
        if found:
            await asyncio.wait(found)
        reached = [(ms, route) for route, task in zip(routes, found, strict=True) if (ms := task.result()[0]) > 0]
        if reached:
            ms, route = min(reached, key=lambda one: one[0])
            report = DoorProbed(number=order.number, address=route.address, round_trip_ms=ms)
        else:
            told = "; ".join(f"{r.address}: {t.result()[1]}" for r, t in zip(routes, found, strict=True))
            report = DoorProbed(number=order.number, error=told[:500] or "no address to try")
        self._tell(("probed", str(order.number)), report)

    async def _round_trip(self, route: Route) -> tuple[float, str]:
        """Milliseconds there and back, without the handshake; 0 and why, where there is no way."""
        writer = None
        try:
            reader, writer = await self._dial(route)
            async with asyncio.timeout(DIAL_S):
                best = float("inf")
                for _ in range(2):
                    began = time.perf_counter()
                    writer.write(frame(AskEcho()))
                    await read_frame(reader, Answer)
                    best = min(best, (time.perf_counter() - began) * 1000)
            return max(best, 0.001), ""
        except (OSError, EOFError, WireError, TimeoutError) as error:
            return 0.0, f"{error}"[:100] or type(error).__name__
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _fetch(self, order: FetchBlob) -> None:
        report = BlobFetched(number=order.number, sha256=order.sha256)
        try:
            path = self._folder.blob(order.sha256).with_suffix(".in")
            async with asyncio.timeout(min(order.timeout_s, 24 * 3600.0)):
                # By position, not appended: an earlier receiver that has not ended yet writes the same bytes there.
                part = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                is_hashed = await self._fetch_into(os.fdopen(part, "r+b", buffering=0), order)
                take = TakeBlob(sha256=order.sha256, size=order.size, is_checked=is_hashed)
                stored = await asyncio.to_thread(self._blobs.take, take)
            have = order.size if not stored.error else path.stat().st_size if path.exists() else 0
            report = BlobFetched(
                number=order.number,
                sha256=order.sha256,
                have=have,
                error=stored.error,
                is_wrong=bool(stored.error) and have == 0,
            )
        except (OSError, EOFError, WireError, BadRequest, TimeoutError) as error:
            have = 0
            with contextlib.suppress(OSError, BadRequest):
                have = self._folder.blob(order.sha256).with_suffix(".in").stat().st_size
            reason = f"{error}"[:300] or type(error).__name__
            report = BlobFetched(number=order.number, sha256=order.sha256, have=have, error=reason)
        self._tell(("fetched", str(order.number)), report)

    async def _fetch_into(self, file: IO[bytes], order: FetchBlob) -> bool:
        """Add what is missing; whether all of it has come now, and is what it should be."""
        with file:
            have = file.seek(0, os.SEEK_END)
            if have >= order.size:
                return False
            (reader, writer), answer = await self._ask(order.route, AskBlob(sha256=order.sha256, offset=have))
            digest, came = hashlib.sha256(), 0
            try:
                if answer.size != order.size:
                    raise BadRequest("the input there has another size")
                while have + came < order.size:
                    async with asyncio.timeout(READ_S):
                        data = await reader.read(PIECE_BYTES)
                    if not data:
                        raise EOFError("the other node ended it")
                    data = data[: order.size - have - came]
                    await asyncio.to_thread(_keep, file, digest, data)
                    came += len(data)
            finally:
                writer.transport.abort()
            return have == 0 and digest.hexdigest() == order.sha256


def _addresses() -> tuple[str, ...]:
    """Also where no door is open: they tell where this node can look for others."""
    return tuple(own_addresses()[:MAX_ADDRESSES])


def _keep(file: IO[bytes], digest: Any, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    digest.update(data)
