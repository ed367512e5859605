"""What the broker has to know, kept on disk until it has taken it.

Facts are numbered in the order in which they happened, and sent again until their receipt has come; the broker skips
numbers that it has. `broker.json` is read anew after each failure, since a new broker has another address and token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import IO

import msgspec

from jupyter_gpumarket.api import AnyFact, FactBatch, FactReceipt, RunStarted
from jupyter_gpumarket.cluster.records import BrokerAddress
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.loopback import Connections, Lost
from jupyter_gpumarket.models import Record

logger = logging.getLogger(__name__)

BATCH = 100
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
COMPACT_AFTER = 1000
STARTED_WAITS_S = 0.05
CONNECT_S = 5.0
ANSWER_S = 20.0


class _Head(Record, frozen=True, kw_only=True):
    """The first line of the file: the queue's name, and the number of the first fact in it."""

    queue: str
    first: int


class FactQueue:
    """Facts on disk, and the task that delivers them. `facts.taken` notes how far the broker has them."""

    def __init__(self, folder: Path, cluster_id: str) -> None:
        self._path = folder / "facts.jsonl"
        self._taken_path = folder / "facts.taken"
        self._broker_file = folder / "broker.json"
        self._cluster_id = cluster_id
        self._waiting: list[AnyFact] = []
        self._arrived = asyncio.Event()
        self._pressing = asyncio.Event()
        self._delivered = 0
        self._broker: tuple[BrokerAddress, Connections] | None = None
        self._head = self._load()
        self._file: IO[bytes] = self._path.open("ab", buffering=0)

    @property
    def waiting(self) -> int:
        """How many facts the broker has not taken yet."""
        return len(self._waiting)

    def put(self, fact: AnyFact) -> None:
        """Record a fact; it survives a crash of the machine when this returns.

        Raises:
            OSError: the disk is full or failing.
        """
        self._write(fact, is_forced=True)

    def note(self, fact: AnyFact) -> None:
        """Record a fact; it survives a kill of this process when this returns, and more only after `sync`.

        Raises:
            OSError: the disk is full or failing.
        """
        self._write(fact, is_forced=False)

    async def sync(self) -> None:
        """Force to the disk what was noted before; one wait for however many.

        Raises:
            OSError: the disk is failing.
        """
        descriptor = os.dup(self._file.fileno())  # the file may be replaced by a shorter one meanwhile
        try:
            await asyncio.to_thread(os.fdatasync, descriptor)
        finally:
            os.close(descriptor)

    def _write(self, fact: AnyFact, *, is_forced: bool) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(msgspec.json.encode(fact) + b"\n")
            if is_forced:
                os.fdatasync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise
        self._waiting.append(fact)
        self._arrived.set()
        if not isinstance(fact, RunStarted):
            self._pressing.set()

    async def deliver(self) -> None:
        """Send what waits, for ever."""
        wait_s = FIRST_WAIT_S
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            await self._gather()
            try:
                await self._send_some()
                wait_s = FIRST_WAIT_S
            except (OSError, Lost, msgspec.MsgspecError, ValueError) as error:
                logger.info("the broker has not taken %d facts: %s", len(self._waiting), error)
                await asyncio.sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)

    async def _gather(self) -> None:
        """That a cell has begun waits a moment for its end: most cells are short, and both then travel as one."""
        self._pressing.clear()
        if all(isinstance(fact, RunStarted) for fact in self._waiting):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STARTED_WAITS_S):  # `wait_for` may swallow that this task is cancelled
                    await self._pressing.wait()

    def close(self) -> None:
        """Close the file; what waits is sent by the next process."""
        if self._broker is not None:
            self._broker[1].close()
        self._file.close()

    async def _send_some(self) -> None:
        broker = self._current_broker()
        first = self._head.first
        batch = FactBatch(cluster_id=self._cluster_id, queue=self._head.queue, first=first, facts=self._waiting[:BATCH])
        headers = {"Content-Type": "application/json"}
        answer = await broker.call("POST", "/v1/facts", msgspec.json.encode(batch), headers, silence_s=ANSWER_S)
        if answer.status != 200:
            raise ValueError(f"it answered {answer.status}")
        self._take_receipt(msgspec.json.decode(answer.body, type=FactReceipt).upto)

    def _current_broker(self) -> Connections:
        address = msgspec.json.decode(self._broker_file.read_bytes(), type=BrokerAddress)
        if self._broker is not None and self._broker[0] == address:
            return self._broker[1]
        if self._broker is not None:
            self._broker[1].close()
        self._broker = (address, Connections(address.url, lambda: address.token, connect_s=CONNECT_S))
        return self._broker[1]

    def _take_receipt(self, upto: int) -> None:
        taken = max(0, min(upto - self._head.first + 1, len(self._waiting)))
        if not taken:
            raise ValueError(f"the broker's receipt says {upto}, and {self._head.first} is the first that waits")
        del self._waiting[:taken]
        self._head = msgspec.structs.replace(self._head, first=self._head.first + taken)
        self._delivered += taken
        # Not forced to the disk: after a power cut some facts are sent again, and the broker knows their numbers.
        self._taken_path.write_bytes(b"%020d" % self._head.first)
        if self._delivered >= COMPACT_AFTER:
            self._compact()

    def _compact(self) -> None:
        lines = [msgspec.json.encode(self._head), *(msgspec.json.encode(fact) for fact in self._waiting)]
        write_private(self._path, b"\n".join(lines) + b"\n")
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._delivered = 0

    def _load(self) -> _Head:
        if not self._path.exists():
            head = _Head(queue=os.urandom(8).hex(), first=1)
            write_private(self._path, msgspec.json.encode(head) + b"\n")
            return head
        whole = self._path.read_bytes()
        end = whole.rfind(b"\n") + 1
        os.truncate(self._path, end)  # half a line: a fact that was never acknowledged to anybody
        lines = whole[:end].splitlines()
        head = msgspec.json.decode(lines[0], type=_Head)
        taken = max(0, min(self._taken_before() - head.first, len(lines) - 1))
        self._waiting = [msgspec.json.decode(line, type=AnyFact) for line in lines[1 + taken :]]
        if self._waiting:
            self._arrived.set()
        self._delivered = taken
        return msgspec.structs.replace(head, first=head.first + taken)

    def _taken_before(self) -> int:
        """The number of the first fact that the broker has not taken, as far as was noted."""
        try:
            return int(self._taken_path.read_bytes())
        except (FileNotFoundError, ValueError):
            return 0
