"""A run's output on the node's disk: numbered from 1, written before it is sent, dropped when the user's side has it.

The log is a row of segment files, each named by the number of its first message, so that what is saved can be dropped
while the cell still prints. A record is a four-byte length and the message as msgpack.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from jupyter_gpumarket.wire.messages import RunOutput

SEGMENT_BYTES = 4 * 1024 * 1024
LENGTH = struct.Struct(">I")

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(RunOutput)


class RunLog:
    """The output of one run. Not for use from several threads."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # First message number of each segment -> its bytes.
        self._segments: dict[int, int] = {
            int(path.stem): path.stat().st_size for path in sorted(folder.glob("*.log")) if path.stem.isdigit()
        }
        self.last = self._count_last()

    def append(self, *, at_ms: int, msg_type: str, content: bytes, metadata: bytes = b"{}") -> RunOutput:
        """Number a message and write it.

        Raises:
            OSError: the disk is full. What was written of it is taken back, and the number is not used.
        """
        message = RunOutput(
            run_id=self._run_id, n=self.last + 1, at_ms=at_ms, msg_type=msg_type, content=content, metadata=metadata
        )
        record = _ENCODER.encode(message)
        first = self._segment_for_next()
        path = self._path(first)
        size = self._segments.get(first, 0)
        try:
            with path.open("ab") as file:
                file.write(LENGTH.pack(len(record)) + record)
        except OSError:
            if path.exists():
                with path.open("r+b") as file:
                    file.truncate(size)
            raise
        self._segments[first] = size + LENGTH.size + len(record)
        self.last += 1
        return message

    @property
    def kept_bytes(self) -> int:
        """How much of the output lies on the disk."""
        return sum(self._segments.values())

    def trim(self, upto: int) -> None:
        """Drop the segments that hold nothing after this number."""
        firsts = sorted(self._segments)
        for first, following in itertools.pairwise(firsts):
            if following <= upto + 1:
                self._path(first).unlink(missing_ok=True)
                del self._segments[first]

    def reader(self, after: int) -> LogReader:
        """Reads what comes after a number, as far as it is kept."""
        return LogReader(self, after)

    def segment_of(self, n: int) -> tuple[int, Path] | None:
        """The segment that holds message `n`, or the first one after it."""
        candidates = [first for first in self._segments if first <= n]
        first = max(candidates) if candidates else min(self._segments, default=None)
        return None if first is None else (first, self._path(first))

    def _segment_for_next(self) -> int:
        newest = max(self._segments, default=None)
        if newest is None or self._segments[newest] >= SEGMENT_BYTES:
            return self.last + 1
        return newest

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:012d}.log"

    def _count_last(self) -> int:
        if not self._segments:
            return 0
        newest = max(self._segments)
        last, end = newest - 1, 0
        for message, offset in read_records(self._path(newest), 0):
            last, end = message.n, offset
        # A record that a crash left half written is taken back.
        if end < self._segments[newest]:
            with self._path(newest).open("r+b") as file:
                file.truncate(end)
            self._segments[newest] = end
        return last


class LogReader:
    """Goes through a log that is still growing."""

    def __init__(self, log: RunLog, after: int) -> None:
        self._log = log
        self.after = after
        self._at: tuple[int, int] | None = None

    def read(self, limit_bytes: int) -> list[RunOutput]:
        """The next messages, about `limit_bytes` of them; empty when there are none yet."""
        messages: list[RunOutput] = []
        size = 0
        while self.after < self._log.last and size < limit_bytes:
            place = self._log.segment_of(self.after + 1)
            if place is None:
                break
            first, path = place
            offset = self._at[1] if self._at is not None and self._at[0] == first else 0
            found = False
            for message, end in read_records(path, offset):
                self._at = (first, end)
                if message.n <= self.after:
                    continue
                found = True
                self.after = message.n
                messages.append(message)
                size += len(message.content)
                if size >= limit_bytes:
                    break
            if not found:
                break
        return messages


def read_records(path: Path, offset: int) -> Iterator[tuple[RunOutput, int]]:
    """The whole records from an offset on, each with the offset behind it."""
    with path.open("rb") as file:
        file.seek(offset)
        while len(header := file.read(LENGTH.size)) == LENGTH.size:
            (length,) = LENGTH.unpack(header)
            record = file.read(length)
            if len(record) < length:
                return
            offset += LENGTH.size + length
            try:
                yield _DECODER.decode(record), offset
            except msgspec.MsgspecError:
                return
